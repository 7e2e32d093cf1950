// A library whose constructor takes as long as api.c wants: dlopen is entered, and the loader's lock held.
void held_in_constructor(void);
int held_constructed;
__attribute__((constructor)) static void begin(void) {
    held_in_constructor();
    held_constructed = 42;
}
