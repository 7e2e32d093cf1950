// Pseudo terminals both of whose ends are in this one process, in every state that they can be in.
#include "common.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>

static const char *about = "pairs with both ends here: settings, modes, what waits in both directions, ends that are closed or were never open";
static const char *usage = "  --what pairs|status|discipline|flood|many-lines|async|written|held   all but the first are refused";
static const char *what = "pairs";
static int (*option)(const char *, const char *) = what_option;

#define MANY 9000
#define TYPED 3000
enum { LINES, RAW, CLOSED, NEVER, STOPPED, HALTED, PAIRS };
static int masters[PAIRS], slaves[PAIRS], dupped, writer, executed, not_executed;
static struct termios settings[PAIRS];
static char many[MANY], typed[TYPED];

static int poll_now(int fd) {
    struct pollfd p = {fd, POLLIN | POLLOUT | POLLPRI, 0};
    return poll(&p, 1, 0) < 0 ? -1 : p.revents;
}
// Writes, and waits until as much can be read at the other end: from there on nothing is on its way.
static void put(int fd, const char *text, int length, int other, int more) {
    int before = 0, now = 0;
    MUST(ioctl(other, FIONREAD, &before));
    for (int n = 0, k; n < length; n += k) k = MUST(write(fd, text + n, (size_t)(length - n < 500 ? length - n : 500)));
    while (now < before + more) MUST(ioctl(other, FIONREAD, &now)), poll_now(other);
}
static int open_master(void) { return MUST(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC)); }
static int open_slave(int master, int flags) {
    MUST(unlockpt(master));
    return MUST(ioctl(master, TIOCGPTPEER, flags | O_NOCTTY));
}
static void change(int i) { MUST(tcsetattr(slaves[i], TCSANOW, &settings[i])); }

static void pair(int i) {
    masters[i] = open_master();
    slaves[i] = open_slave(masters[i], O_RDWR);
    MUST(tcgetattr(slaves[i], &settings[i]));
}

// Holds the slave in another process, which is no child of this one; ends with it.
static void hold(int i) {
    pid_t me = getpid(), between = MUST(fork());
    if (!between) {
        if (MUST(fork())) _exit(0);
        for (int fd = 0; fd < 100; fd++) {
            if (fd != slaves[i]) close(fd);
        }
        while (!kill(me, 0) && access(work("gate"), F_OK)) sleep_ms(2);
        _exit(0);
    }
    MUST(waitpid(between, NULL, 0));
}

static void refused(void) {
    pair(LINES);
    if (!strcmp(what, "status")) {
        int one = 1;
        MUST(ioctl(masters[LINES], TIOCPKT, &one));
        MUST(tcflow(slaves[LINES], TCOOFF));
        if (!(poll_now(masters[LINES]) & POLLPRI)) skip("no status waits in packet mode");
    } else if (!strcmp(what, "discipline")) {
        int ppp = 27; // N_NULL: always there
        if (ioctl(slaves[LINES], TIOCSETD, &ppp)) skip("line discipline %d: %s", ppp, strerror(errno));
    } else if (!strcmp(what, "flood")) {
        cfmakeraw(&settings[LINES]);
        change(LINES);
        put(masters[LINES], many, 5000, slaves[LINES], 4095);
    } else if (!strcmp(what, "many-lines")) {
        for (int i = 0; i < 30; i++) put(masters[LINES], many, 99, masters[LINES], 0), put(masters[LINES], "\n", 1, slaves[LINES], 100);
    } else if (!strcmp(what, "async")) {
        MUST(fcntl(slaves[LINES], F_SETFL, MUST(fcntl(slaves[LINES], F_GETFL)) | O_ASYNC));
    } else if (!strcmp(what, "written")) {
        masters[NEVER] = open_master();
        put(masters[NEVER], "x", 1, masters[NEVER], 1);
    } else if (!strcmp(what, "held")) {
        hold(LINES);
    }
}

static void setup(void) {
    for (int i = 0; i < MANY; i++) many[i] = (char)('a' + i % 26);
    for (int i = 0; i < TYPED; i++) typed[i] = (char)(i * 7);
    if (strcmp(what, "pairs")) return refused();

    pair(LINES);
    settings[LINES].c_cc[VEOL] = ';', settings[LINES].c_lflag &= ~(tcflag_t)ECHO;
    change(LINES);
    struct winsize size = {33, 101, 5, 7};
    MUST(ioctl(masters[LINES], TIOCSWINSZ, &size));
    MUST(fcntl(masters[LINES], F_SETFL, O_NONBLOCK));
    dupped = MUST(dup2(masters[LINES], 90));
    writer = open_slave(masters[LINES], O_WRONLY | O_NONBLOCK);
    executed = open_slave(masters[LINES], O_RDWR | O_CLOEXEC);
    not_executed = MUST(dup(executed));
    put(masters[LINES], "one\ntw\026\n;a\004\004", 12, slaves[LINES], 4 + 4 + 1);
    put(masters[LINES], "thr", 3, slaves[LINES], 0);
    put(writer, "out\n", 4, masters[LINES], 5);

    pair(RAW);
    cfmakeraw(&settings[RAW]);
    settings[RAW].c_cc[VMIN] = 3, settings[RAW].c_cc[VTIME] = 2;
    change(RAW);
    int one = 1;
    put(masters[RAW], typed, TYPED, slaves[RAW], TYPED);
    MUST(ioctl(masters[RAW], TIOCPKT, &one));
    put(slaves[RAW], many, MANY, masters[RAW], 4095);
    MUST(ioctl(slaves[RAW], TIOCEXCL));
    MUST(ioctl(masters[RAW], TIOCSPTLCK, &one));

    pair(CLOSED);
    put(masters[CLOSED], "late\n", 5, slaves[CLOSED], 5);
    put(slaves[CLOSED], "bye", 3, masters[CLOSED], 3);
    close(slaves[CLOSED]);

    masters[NEVER] = open_master();

    pair(STOPPED);
    put(slaves[STOPPED], "before", 6, masters[STOPPED], 6);
    MUST(write(masters[STOPPED], "\023", 1));
    while (poll_now(slaves[STOPPED]) & POLLOUT) sched_yield();
    pair(HALTED);
    MUST(tcflow(slaves[HALTED], TCOOFF));
}

static void spoil(void) {
    if (strcmp(what, "pairs")) return (void)fail("spoiled, expected %s, got nothing", what);
    tcflush(slaves[LINES], TCIFLUSH);
}

static int reads(int fd, char *into, size_t size) {
    if (!(poll_now(fd) & POLLIN)) return -2;
    return (int)read(fd, into, size);
}
static void check_settings(int i) {
    struct termios now = {0};
    CHECK_OK(tcgetattr(slaves[i], &now), "settings of pair %d", i);
    CHECK_MEM(&settings[i], &now, sizeof now, "settings of pair %d", i);
}
static void expect(int fd, const char *text, const char *of) {
    char got[256] = "";
    int n = reads(fd, got, sizeof got - 1);
    CHECK_EQ(strlen(text), n, "bytes of %s", of);
    CHECK_STR(text, got, "%s", of);
}

static void lines(void) {
    check_settings(LINES);
    struct winsize size = {0};
    CHECK_OK(ioctl(slaves[LINES], TIOCGWINSZ, &size), "window size");
    CHECK(size.ws_row == 33 && size.ws_col == 101 && size.ws_xpixel == 5 && size.ws_ypixel == 7, "window size");
    CHECK_EQ(O_RDWR | O_NONBLOCK, fcntl(dupped, F_GETFL) & ~0100000, "flags of the dup");
    CHECK_EQ(O_WRONLY | O_NONBLOCK, fcntl(writer, F_GETFL) & ~0100000, "flags of the writer");
    CHECK_EQ(O_RDWR, fcntl(slaves[LINES], F_GETFL) & ~0100000, "flags of the slave");
    CHECK_EQ(FD_CLOEXEC, fcntl(executed, F_GETFD), "close-on-exec");
    CHECK_EQ(0, fcntl(not_executed, F_GETFD), "close-on-exec of its dup");
    expect(slaves[LINES], "one\n", "a line");
    expect(slaves[LINES], "tw\n;", "a line ended by VEOL, with a quoted newline");
    expect(slaves[LINES], "a", "a line ended by VEOF");
    expect(slaves[LINES], "", "an empty line ended by VEOF");
    CHECK_EQ(-2, reads(slaves[LINES], many, 1), "nothing but a part of a line");
    CHECK_EQ(5, write(dupped, "\177ee!\n", 5), "typing on");
    for (int i = 0; i < 1000 && !(poll_now(slaves[LINES]) & POLLIN); i++) sleep_ms(1);
    expect(slaves[LINES], "thee!\n", "the rest of the line");
    expect(dupped, "out\r\n", "output");
    char name[64] = "", path[64];
    int number = -1;
    CHECK_OK(ioctl(masters[LINES], TIOCGPTN, &number), "its number");
    snprintf(path, sizeof path, "/dev/pts/%d", number);
    CHECK_EQ(0, ttyname_r(slaves[LINES], name, sizeof name), "its name is to be found");
    CHECK_STR(path, name, "its name");
}

static void raw(void) {
    check_settings(RAW);
    int packets = 0, exclusive = 0, locked = 0;
    CHECK_OK(ioctl(masters[RAW], TIOCGPKT, &packets), "packet mode");
    CHECK_OK(ioctl(slaves[RAW], TIOCGEXCL, &exclusive), "exclusive mode");
    CHECK_OK(ioctl(masters[RAW], TIOCGPTLCK, &locked), "lock");
    CHECK(packets && exclusive && locked, "packet mode, exclusive mode, lock");
    static char got[MANY + 100];
    int n = 0, k;
    while (n < TYPED && (k = reads(slaves[RAW], got + n, sizeof got - (size_t)n)) > 0) n += k;
    CHECK_EQ(TYPED, n, "bytes typed");
    CHECK_MEM(typed, got, TYPED, "what was typed");
    char packet[5000];
    for (n = 0; (k = reads(masters[RAW], packet, sizeof packet)) > 0; n += k - 1) {
        CHECK_EQ(TIOCPKT_DATA, packet[0], "a packet's first byte");
        if (n + k - 1 <= MANY) memcpy(got + n, packet + 1, (size_t)k - 1);
    }
    CHECK_EQ(MANY, n, "bytes written");
    for (int i = 0; i < n && i < MANY; i++) {
        if (got[i] != (char)('a' + i % 26)) {
            fail("what was written, expected %c at %d, got %c", 'a' + i % 26, i, got[i]);
            break;
        }
    }
}

static void closed(void) {
    CHECK(poll_now(masters[CLOSED]) & POLLHUP, "the master knows that its slave is closed");
    expect(masters[CLOSED], "late\r\nbye", "output of a closed slave");
    char c;
    CHECK_ERRNO(EIO, read(masters[CLOSED], &c, 1), "then its end");
    int slave = CHECK_OK(ioctl(masters[CLOSED], TIOCGPTPEER, O_RDWR | O_NOCTTY), "it can be opened again")
                    ? ioctl(masters[CLOSED], TIOCGPTPEER, O_RDWR | O_NOCTTY)
                    : -1;
    expect(slave, "late\n", "input of a closed slave");
}

static void never(void) {
    int locked = 0;
    CHECK(!(poll_now(masters[NEVER]) & POLLHUP), "the slave was never opened");
    CHECK_OK(ioctl(masters[NEVER], TIOCGPTLCK, &locked), "lock");
    CHECK(locked, "it is locked yet");
    CHECK_OK(unlockpt(masters[NEVER]), "unlocking");
    CHECK_OK(ioctl(masters[NEVER], TIOCGPTPEER, O_RDWR | O_NOCTTY), "opening it now");
}

static void stopped(void) {
    CHECK(!(poll_now(slaves[STOPPED]) & POLLOUT), "stopped by a key");
    CHECK(!(poll_now(slaves[HALTED]) & POLLOUT), "stopped by the program");
    MUST(write(masters[HALTED], "\021", 1)), MUST(write(masters[STOPPED], "\021", 1));
    for (int i = 0; i < 1000 && !(poll_now(slaves[STOPPED]) & POLLOUT); i++) sleep_ms(1);
    CHECK(poll_now(slaves[STOPPED]) & POLLOUT, "a key lets it go on");
    CHECK(!(poll_now(slaves[HALTED]) & POLLOUT), "no key lets this one go on");
    CHECK_OK(tcflow(slaves[HALTED], TCOON), "the program does");
    CHECK(poll_now(slaves[HALTED]) & POLLOUT, "it goes on");
    expect(masters[STOPPED], "before", "output");
}

static void prove(void) {
    if (strcmp(what, "pairs")) {
        char c = 0;
        int held = strcmp(what, "written") ? LINES : NEVER;
        CHECK(poll_now(masters[held]) != -1, "the master is there");
        if (!strcmp(what, "flood")) {
            CHECK_EQ(1, read(slaves[LINES], &c, 1), "what was typed");
            CHECK_EQ('a', c, "what was typed");
        }
        return;
    }
    lines();
    raw();
    closed();
    never();
    stopped();
}
