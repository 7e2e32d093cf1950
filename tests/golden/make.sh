#!/bin/bash
# Makes the golden images of the format that the build of today writes: make.sh DIR (tests/golden/v1). As root: one image is of
# root's, the others of the tests' ordinary user. What is there is kept for ever (README.md): only images that DIR lacks are made.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
to=$(realpath -m "$1")
bin=${BIN:-$here/../../target/release}
mkdir -p "$to"
common="-Os -ffreestanding -fno-stack-protector -fcf-protection=none -fno-pie -no-pie -mgeneral-regs-only -fno-tree-loop-distribute-patterns -fno-asynchronous-unwind-tables -Wall -Wextra"
flags="$common -static -nostdlib"
place=/tmp/dormouse-golden
export DORMOUSE_STATE_DIR=$place/state
work() { rm -rf $place; mkdir -m 777 $place; cd $place; printf '01234567890123\n' >data; chmod 644 data; sed -i 's/.*/0123456789abcde/' data; }
as() { uid=$1; shift; setpriv --reuid "$uid" --regid "$uid" --clear-groups "$@"; }
until_ready() { timeout 10 sh -c 'until [ -e ready ]; do sleep 0.01; done'; }
work
gcc $flags -DHASH=0 -o hasher "$here/sleeper.c" && ./hasher
hash="0x$(cat hash)"
keep() { # NAME UID: the checkpoint is the image NAME
    as "$2" "$bin/ctl" export golden "$place/state/image"
    cp state/image "$to/$1.image"
}
by_pid() { # NAME UID PROGRAM: a static program that nobody launched
    work
    cp "$to/$3" .
    as "$2" mkdir -m 700 state
    as "$2" setsid python3 -c 'import os; os.closerange(3, 4096); os.execve("./'"$3"'", ["'"$3"'"], {})' </dev/null >/dev/null 2>&1 &
    until_ready
    as "$2" "$bin/ctl" checkpoint --pid "$(pgrep -ox "$3")" --name golden --kill
    keep "$1" "$2"
    cp data "$to/data"
}
launched() { # NAME UID: one with the agent, and the loader that it needs (musl's, which is the whole C library)
    work
    cp "$to/launched" "$to/ld.so" .
    as "$2" mkdir -m 700 state
    as "$2" python3 -c 'import os, sys; os.closerange(3, 4096); os.execve(sys.argv[1], sys.argv[1:], {"DORMOUSE_STATE_DIR": os.environ["DORMOUSE_STATE_DIR"]})' \
        "$bin/launcher" --name golden --detach --door agent -- ./launched </dev/null
    until_ready
    as "$2" "$bin/ctl" checkpoint golden --door agent --kill
    keep "$1" "$2"
}
if [ ! -e "$to/root.image" ]; then
    gcc $flags -Wl,--build-id=sha1 -DHASH="$hash" -o "$to/sleeper" "$here/sleeper.c"
    strip -R .comment "$to/sleeper"
    by_pid root 0 sleeper
    by_pid user 65533 sleeper
fi
if [ ! -e "$to/tree.image" ]; then
    musl-gcc -Os -static -Wall -Wextra -Wl,--build-id=sha1 -o "$to/family" "$here/family.c"
    strip -R .comment "$to/family"
    by_pid tree 65533 family
fi
if [ ! -e "$to/agent.image" ]; then
    cp "$(realpath /lib/ld-musl-x86_64.so.1)" "$to/ld.so"
    musl-gcc -pthread $common -Wl,--build-id=sha1 -Wl,-dynamic-linker,$place/ld.so -DHASH="$hash" -DLAUNCHED -o "$to/launched" "$here/sleeper.c"
    strip -R .comment "$to/launched"
    launched agent 65533
fi
rm -rf $place
