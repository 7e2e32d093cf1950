// A child that has its parent's huge pages by its birth, but for what it has written.
#define WITH_CHILD true
static const char *about = "shared memory of huge pages in two processes";
static const char *usage;
#include "mem_hugeshared.c"
