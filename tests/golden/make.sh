#!/bin/bash
# Makes the golden images of the format that the build of today writes: make.sh DIR (tests/golden/v1). As root: one image is of
# root's, one of the tests' ordinary user. Never run it over images that are there: they are kept for ever (README.md).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
to=$(realpath -m "$1")
bin=${BIN:-$here/../../target/release}
[ ! -e "$to/root.image" ] || { echo "$to has images already" >&2; exit 1; }
mkdir -p "$to"
flags="-Os -static -nostdlib -ffreestanding -fno-stack-protector -fcf-protection=none -fno-pie -no-pie -mgeneral-regs-only -fno-tree-loop-distribute-patterns -fno-asynchronous-unwind-tables -Wall -Wextra"
place=/tmp/dormouse-golden
work() { rm -rf $place; mkdir -m 777 $place; cd $place; printf '01234567890123\n' >data; chmod 644 data; sed -i 's/.*/0123456789abcde/' data; }
work
gcc $flags -DHASH=0 -o hasher "$here/sleeper.c" && ./hasher
gcc $flags -Wl,--build-id=sha1 -DHASH="0x$(cat hash)" -o "$to/sleeper" "$here/sleeper.c"
strip -R .comment "$to/sleeper"
for who in root:0 user:65533; do
    name=${who%:*} uid=${who#*:}
    work
    cp "$to/sleeper" sleeper
    run=(setpriv --reuid "$uid" --regid "$uid" --clear-groups)
    "${run[@]}" mkdir -m 700 state
    export DORMOUSE_STATE_DIR=$place/state
    "${run[@]}" setsid python3 -c 'import os; os.closerange(3, 4096); os.execve("./sleeper", ["sleeper"], {})' </dev/null >/dev/null 2>&1 &
    timeout 10 sh -c 'until [ -e ready ]; do sleep 0.01; done'
    pid=$(pgrep -x sleeper)
    "${run[@]}" "$bin/ctl" checkpoint --pid "$pid" --name golden --kill
    "${run[@]}" "$bin/ctl" export golden "$place/state/image"
    cp state/image "$to/$name.image"
    cp data "$to/data"
done
rm -rf $place
