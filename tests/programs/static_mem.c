// build: static
#include "mem_anon.c"
