// A child that has its parent's memory protection keys by its birth, but for one that it has freed, and one of its own.
#define WITH_CHILD true
static const char *about = "memory protection keys in two processes: the child has one more than its parent, and one less";
#include "mem_pkeys.c"
