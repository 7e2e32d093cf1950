#include "common.h"
#include <sys/ioctl.h>
#include <termios.h>

static const char *about = "a terminal at 0: mode (termios), foreground group, /dev/tty, a dup; its window size is the terminal's of now";
// Needs a terminal at 0 that is the controlling one (else SKIP). With DORMOUSE_TEST_SIZE="ROWS COLUMNS" it demands that size.

static struct termios before;
static int copy, by_name, flags;
static bool controlling, foreground;

static void setup(void) {
    if (!isatty(0)) skip("no terminal at 0");
    MUST(tcgetattr(0, &before));
    before.c_lflag &= ~(tcflag_t)(ECHO | ICANON);
    before.c_iflag &= ~(tcflag_t)ICRNL;
    before.c_cc[VINTR] = 0x07, before.c_cc[VMIN] = 3, before.c_cc[VTIME] = 2;
    signal(SIGTTOU, SIG_IGN);
    MUST(tcsetattr(0, TCSANOW, &before));
    MUST(tcgetattr(0, &before));
    copy = MUST(fcntl(0, F_DUPFD_CLOEXEC, 30));
    by_name = open("/dev/tty", O_RDWR);
    controlling = by_name >= 0;
    foreground = controlling && tcgetpgrp(0) == getpgrp();
    flags = fcntl(0, F_GETFL);
}
static void spoil(void) {
    struct termios t = before;
    t.c_cc[VINTR] = 0x03;
    MUST(tcsetattr(0, TCSANOW, &t));
}
static void prove(void) {
    struct termios now = {0};
    CHECK_EQ(1, isatty(0), "a terminal at 0");
    CHECK_OK(tcgetattr(0, &now), "tcgetattr");
    CHECK_HEX(before.c_iflag, now.c_iflag, "input flags");
    CHECK_HEX(before.c_oflag, now.c_oflag, "output flags");
    CHECK_HEX(before.c_cflag, now.c_cflag, "control flags");
    CHECK_HEX(before.c_lflag, now.c_lflag, "local flags");
    CHECK_MEM(before.c_cc, now.c_cc, sizeof now.c_cc, "control characters");
    CHECK_EQ(flags, fcntl(0, F_GETFL), "flags");
    CHECK_EQ(1, isatty(copy), "the dup is a terminal");
    CHECK_EQ(FD_CLOEXEC, fcntl(copy, F_GETFD), "close-on-exec of the dup");
    if (controlling) CHECK_EQ(1, isatty(by_name), "/dev/tty is a terminal");
    if (foreground) CHECK_EQ(getpgrp(), tcgetpgrp(0), "foreground group");
    if (foreground) CHECK_EQ(getsid(0), tcgetsid(0), "session of the terminal");
    if (getenv("DORMOUSE_TEST_SIZE")) {
        char size[64];
        struct winsize w = {0};
        ioctl(0, TIOCGWINSZ, &w);
        snprintf(size, sizeof size, "%d %d", w.ws_row, w.ws_col);
        CHECK_STR(getenv("DORMOUSE_TEST_SIZE"), size, "window size");
    }
}
