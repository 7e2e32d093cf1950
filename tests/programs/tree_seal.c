// A child that has its parent's seals by its birth, and one of its own.
#define WITH_CHILD true
static const char *about = "sealed memory (mseal) in two processes: the child has its parent's seals, and one that its parent has not";
#include "mem_seal.c"
