// A child that shares its parent's huge pages.
#define WITH_CHILD true
static const char *about = "shared memory of huge pages in two processes";
static const char *usage;
#include "mem_hugeshm.c"
