// build: static
#include "thr_attrs.c"
