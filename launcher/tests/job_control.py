"""Drives a launcher under an interactive bash on a pty (`drive COMMAND`), or is the program that is driven (`program`).

No sleep orders anything: what must not come (a second delivery of a signal) is ruled out by a SIGWINCH sent after it,
which is passed on later and has the higher number.
"""
import os
import pty
import re
import select
import signal
import sys
import time


def program():
    # Not in a handler: Python runs those before its next call, and a signal that comes right before a read waits for its end.
    taken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGCONT, signal.SIGWINCH):
        signal.signal(number, lambda *_: None)
    tty = os.open("/dev/tty", os.O_RDONLY | os.O_NONBLOCK)  # stdin's own flags are the shell's too
    os.write(1, b"ready pid=%d ppid=%d\n" % (os.getpid(), os.getppid()))
    while True:
        background = os.tcgetpgrp(tty) != os.getpgrp()
        ready = select.select([taken] if background else [taken, tty], [], [], 0 if background else None)[0]
        if taken in ready:
            for number in os.read(taken, 64):
                os.write(1, b"got %s\n" % signal.Signals(number).name.encode())
            continue
        try:
            line = os.read(tty, 999)  # in the background it is stopped by that
        except BlockingIOError:
            continue
        os.write(1, b"line " + line)
        if line == b"quit\n":
            sys.exit(5)


class Shell:
    def __init__(self):
        self.seen = ""
        self.shell, self.fd = pty.fork()
        if self.shell == 0:
            os.environ["PS1"] = "PS> "
            os.environ.pop("PROMPT_COMMAND", None)
            os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
        self.expect("PS> ")

    def type(self, text):
        os.write(self.fd, text.encode())

    def expect(self, pattern):
        """Everything up to and with the match."""
        until = time.monotonic() + 20
        while not (match := re.search(pattern, self.seen)):
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.fd], [], [], left)[0]:
                sys.exit(f"{pattern!r} did not come; there was {self.seen!r}")
            self.seen += os.read(self.fd, 4096).decode(errors="replace")
        before, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        self.match = match
        return before

    def once(self, name, front):
        """The program gets this signal exactly once."""
        self.expect(f"got {name}")
        os.kill(front, signal.SIGWINCH)
        between = self.expect("got SIGWINCH")
        if f"got {name}" in between:
            sys.exit(f"{name} came twice")


def parent(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rsplit(")", 1)[1].split()[1])


def drive(command):
    shell = Shell()
    shell.type(command + "\n")
    shell.expect(r"ready pid=(\d+) ppid=(\d+)")
    program, supervisor = map(int, shell.match.groups())
    front = parent(supervisor)

    shell.type("\x03")
    shell.once("SIGINT", front)
    os.kill(front, signal.SIGTERM)
    shell.once("SIGTERM", front)
    os.killpg(os.getpgid(front), signal.SIGTERM)
    shell.once("SIGTERM", front)

    for _ in range(3):
        shell.type("\x1a")
        shell.expect("Stopped")
        shell.expect("PS> ")
        shell.type("fg\n")
        shell.once("SIGCONT", front)
        shell.type("hello\n")
        shell.expect("line hello")

    # In the background it stops when it reads the terminal.
    shell.type("\x1a")
    shell.expect("Stopped")
    shell.expect("PS> ")
    shell.type("bg\n")
    shell.expect("got SIGCONT")
    shell.type("wait\n")
    shell.expect("Stopped")
    shell.type("fg\n")
    shell.once("SIGCONT", front)

    # Stopped by someone else: the shell sees it, and fg continues it.
    os.kill(program, signal.SIGSTOP)
    shell.expect("Stopped")
    shell.expect("PS> ")
    shell.type("fg\n")
    shell.once("SIGCONT", front)

    shell.type("quit\n")
    shell.expect("line quit")
    shell.expect("PS> ")
    shell.type("echo status=$?\n")
    shell.expect("status=5")
    shell.type("exit\n")
    os.waitpid(shell.shell, 0)


if sys.argv[1] == "program":
    program()
else:
    drive(sys.argv[2])
