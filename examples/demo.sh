#!/bin/bash
# The main job, with timings: a web server with a memory is put to sleep and wakes where it was. Builds what it needs; leaves no
# process, no port and no file behind; needs no right that its caller does not have. Usage: examples/demo.sh
# DORMOUSE_DEMO_BIN=DIR: takes launcher and ctl from there, and builds nothing.
set -eu
cd "$(dirname "$0")/.."
here=$(pwd)
exec </dev/null
# What our caller left open (make's job server, say) is nothing to be checkpointed.
for fd in /proc/$$/fd/*; do
    fd=${fd##*/}
    if [ "$fd" -gt 2 ] && [ "$fd" -lt 255 ]; then eval "exec $fd>&-"; fi
done
target=${CARGO_TARGET_DIR:-target}
bin=${DORMOUSE_DEMO_BIN:-}
missing=""
tools="python3"
[ -n "$bin" ] || tools="cargo gcc python3"
for tool in $tools; do command -v $tool >/dev/null || missing="$missing $tool"; done
[ -z "$missing" ] || { echo "demo: please install:$missing" >&2; exit 1; }

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || say() { printf '\n%s\n' "$*"; }
if [ -z "$bin" ]; then
    say "Building launcher and ctl (release)"
    cargo build --release -q -p dormouse-launcher -p dormouse-ctl
    bin=$(cd "$target/release" && pwd)
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/dormouse-demo.XXXXXX")
export DORMOUSE_STATE_DIR=$work/state
server=""
cleanup() {
    for name in web other; do "$bin/ctl" kill "$name" >/dev/null 2>&1 || true; done
    [ -z "$server" ] || kill -9 "$server" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

cat >"$work/get.py" <<'P'
"""get.py PORT PATH COUNT: asks until there is an answer (5 s at most), prints it on a line; it must be request COUNT."""
import sys, time, urllib.request
port, path, count = sys.argv[1:]
began = time.monotonic()
while True:
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).read().decode()
        break
    except OSError as why:
        if time.monotonic() - began > 5: sys.exit(f"no answer from port {port}: {why}")
        time.sleep(0.002)
first, *paths = text.split()[2:]
print(f"    GET {path:8} -> Request No: {first}, paths remembered: {' '.join(paths)}")
if first != count or paths[-1] != path or len(paths) != int(count): sys.exit(f"expected request {count}")
P
get() { python3 "$work/get.py" "$port" "$1" "$2"; }
gone() { python3 -c 'import socket, sys; sys.exit(socket.socket().connect_ex(("127.0.0.1", int(sys.argv[1]))) == 0)' "$port" || { echo "port $port is still open" >&2; exit 1; }; echo "    connection refused: it is gone"; }
ctl() { # prints the command, what it says, and the time it took
    echo "  \$ ctl $*"
    local began=${EPOCHREALTIME/[.,]/} ended
    "$bin/ctl" "$@" 2>&1 | sed "s|$work|\$WORK|; s/^/    /"
    [ "${PIPESTATUS[0]}" = 0 ] || exit 1
    ended=${EPOCHREALTIME/[.,]/}
    awk -v us=$((ended - began)) 'BEGIN { printf "    (%.1f ms in all)\n", us / 1000 }'
}

say "1. Started by launcher, as $(id -un 2>/dev/null || id -u): checkpointed and running on, killed, restored"
echo "  \$ launcher --name web --detach -- python3 examples/server.py $port"
"$bin/launcher" --name web --detach -- python3 "$here/examples/server.py" "$port" 2>&1 | sed "s|$work|\$WORK|; s/^/    /"
get /a 1
get /b 2
ctl checkpoint web
get /c 3
ctl checkpoint web --kill
gone
ctl restore web --detach
get /d 4
ctl list
ctl kill web
gone

say "2. Not started by us: checkpointed by its PID, killed, restored, five times in a row"
python3 "$here/examples/server.py" "$port" >"$work/out" 2>&1 &
server=$!
get /a 1
ctl checkpoint --pid "$server" --name other --kill
wait "$server" 2>/dev/null || true
server=""
gone
ctl restore other --detach
get /b 2
for n in 3 4 5 6; do
    ctl --quiet checkpoint other --kill
    ctl --quiet restore other --detach
    get "/cycle$n" "$n"
done
ctl list
ctl kill other
gone
say "Done. Nothing is left running, and $work is removed."
