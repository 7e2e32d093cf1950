#!/bin/bash
# Runs every program by itself, without a checkpoint: OK without --sabotage and FAIL with it, as the user who calls
# and, if that is root, also as an ordinary user. ./selftest.sh [PROGRAM ...]; LIGHT=1 leaves out --sabotage.
# STOP=1 stops and continues each in between: a pause without a checkpoint. Then those calls of `blocked` fail that end with
# EINTR by that (signal(7): epoll_wait, semop, sigtimedwait, SO_RCVTIMEO, io_getevents), so does epoll;
# sig_pending, which blocks SIGCONT, finds it pending. Nothing else.
set -u
here=$(cd "$(dirname "$0")" && pwd)
stage=$(mktemp -d /tmp/dormouse-selftest.XXXXXX)
trap 'rm -rf "$stage"' EXIT
chmod 755 "$stage"
make -s -C "$here" OUT="$stage/bin" || exit 1
bad=0 runs=0

once() { # once USER EXPECTED PROGRAM ARGS...
    local user=$1 expected=$2 program=$3 as=() dir pid status result=""
    shift 3
    dir=$(mktemp -d "$stage/dir.XXXXXX")
    chmod 777 "$dir"
    [ "$user" = nobody ] && as=(setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all)
    # tty wants a controlling terminal: python's pty gives it one.
    [ "$program" = tty ] && as=(python3 -c 'import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:], lambda fd: os.read(fd, 1024))))' "${as[@]}")
    (cd /tmp && exec timeout -k 5 60 "${as[@]}" "$stage/bin/$program" --dir "$dir" "$@") </dev/null >"$dir/out" 2>&1 &
    pid=$!
    for _ in $(seq 1500); do
        [ -e "$dir/ready" ] || [ -e "$dir/result" ] || ! kill -0 $pid 2>/dev/null || { sleep 0.01; continue; }
        break
    done
    sleep 0.03
    if [ -n "${STOP:-}" ] && [ -e "$dir/ready" ] && [ ! -e "$dir/result" ]; then
        kill -STOP "$(cat "$dir/ready")"
        sleep 0.3
        kill -CONT "$(cat "$dir/ready")"
        sleep 0.02
    fi
    : >"$dir/gate"
    wait $pid
    status=$?
    [ -e "$dir/result" ] && result=$(head -1 "$dir/result")
    runs=$((runs + 1))
    case "$expected:$status:$result" in
    OK:0:OK | FAIL:1:FAIL:*) [ "$expected" = FAIL ] && grep -q 'not a proof' "$dir/result" || { rm -rf "$dir"; return; } ;;
    *:77:SKIP:*) echo "skip $user $program $*: $result"; rm -rf "$dir"; return ;;
    esac
    bad=$((bad + 1))
    echo "BAD  $user $program $*: expected $expected, got status $status:"
    sed 's/^/       /' "$dir/result" "$dir/out" 2>/dev/null | head -12
    rm -rf "$dir"
}

users=me
[ "$(id -u)" = 0 ] && users="me nobody"
[ $# -gt 0 ] && programs="$*" || programs=$(cd "$here" && ls -- *.c *.go | sed 's/\.[a-z]*$//')
for user in $users; do
    for program in $programs; do
        list=("")
        case $program in
        blocked) mapfile -t list < <("$stage/bin/blocked" --list | sed 's/$/ --timeout 300 --exact/; s/^/--call /') ;;
        heartbeat) list=("" "--threads 100 --mib 16") ;;
        esac
        for args in "${list[@]}"; do
            # shellcheck disable=SC2086
            once "$user" OK "$program" $args
            # shellcheck disable=SC2086
            [ -n "${LIGHT:-}" ] || once "$user" FAIL "$program" --sabotage $args
        done
    done
done
echo "$runs runs, $bad bad"
[ $bad = 0 ]
