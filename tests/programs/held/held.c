// A library whose constructor takes as long as api.c wants: dlopen is entered, and the loader's lock held.
void held_in_constructor(void);
__attribute__((constructor)) static void begin(void) { held_in_constructor(); }
