// A vDSO as another kernel might have had: other entries, in another order and at other addresses, and of another size. None is ever
// to run as it is: each is a trap, so that one which a restore did not lead to this kernel's ends the program.
#define ENTRY(name)                                                                                        \
    __asm__(".globl __vdso_" #name "\n.type __vdso_" #name ", @function\n"                                 \
            ".weak " #name "\n.type " #name ", @function\n"                                                \
            ".balign 16\n__vdso_" #name ":\n" #name ":\nud2\n.skip 46, 0xcc\n"                             \
            ".size __vdso_" #name ", 48\n.size " #name ", 48\n")
ENTRY(time);
ENTRY(getcpu);
ENTRY(clock_ticks); // this kernel has none of the name
__asm__(".skip 0x1800, 0xcc"); // the rest on another page
ENTRY(clock_getres);
ENTRY(clock_gettime);
ENTRY(gettimeofday);
