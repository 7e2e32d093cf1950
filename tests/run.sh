#!/bin/bash
# make test: installs what is missing (as root), builds, runs the tests of every crate, and ends with one line,
# "N passed, N failed, N skipped". ONE=CASE: only that case. ONLY=TEXT: only cases with that in their names.
# FULL=1: also what `make test-full` adds. SOAK=1: only the long soak. REPEAT=N: each case of tests/ N times.
set -u
cd "$(dirname "$0")/.." || exit 1
exec </dev/null
cargo=${CARGO:-cargo}
# Faults on demand and a state directory of the caller's are not for tests that set their own.
unset DORMOUSE_FAULT DORMOUSE_STATE_DIR MAKEFLAGS MFLAGS MAKELEVEL
export CARGO_TERM_COLOR=never

missing() { # programs and packages that the tests need, as apt names them
    command -v gcc >/dev/null || echo gcc
    command -v make >/dev/null || echo make
    # Below /root or a home it is of no use to the ordinary user of the tests.
    [ -x /usr/bin/python3 ] || echo python3
    echo '#include <stdio.h>' | gcc -E - >/dev/null 2>&1 || echo libc6-dev
    command -v go >/dev/null || echo golang-go
    command -v musl-gcc >/dev/null || echo musl-tools
    command -v setpriv >/dev/null || echo util-linux
    command -v curl >/dev/null || echo curl
    [ -x /usr/bin/tmux ] || echo tmux
}
need=$(missing | sort -u | tr '\n' ' ')
if [ -n "${need// /}" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        # shellcheck disable=SC2086
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $need; } >&2 || exit 1
    else
        echo "the tests need what is not installed here: apt-get install $need" >&2
        exit 1
    fi
fi
command -v "$cargo" >/dev/null || { echo "the tests need the Rust toolchain (https://rustup.rs)" >&2; exit 1; }

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
run() { # a cargo command whose output is shown and kept
    "$@" 2>&1 | tee -a "$log"
    [ "${PIPESTATUS[0]}" = 0 ] || status=1
}
run "$cargo" build -p dormouse-launcher -p dormouse-ctl
run "$cargo" build -p dormouse --lib --examples
if [ $status = 0 ] && [ -n "${ONE:-}${ONLY:-}" ]; then
    one=("${ONE:-$ONLY}")
    [ -n "${ONE:-}" ] && one+=(--exact)
    run "$cargo" test -p dormouse-tests --no-fail-fast --tests -- "${one[@]}"
elif [ $status = 0 ] && [ -n "${SOAK:-}" ]; then
    run "$cargo" test -p dormouse-tests --no-fail-fast --test soak -- --full --jobs 2 soak.long/
elif [ $status = 0 ]; then
    # In this order, so that the small tests are over when the large ones begin.
    run "$cargo" test --workspace --exclude dormouse-tests --no-fail-fast
    run "$cargo" test -p dormouse-tests --no-fail-fast
fi

# The sums of all "test result:" lines. A build that failed counts as a failure, and so does a run of nothing.
totals=$(awk '/^test result: / { for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) p += $(i-1); if ($i ~ /^failed/) f += $(i-1); if ($i ~ /^ignored/) s += $(i-1) } }
    END { print p + 0, f + 0, s + 0 }' "$log")
read -r passed failed skipped <<<"$totals"
[ "$passed" = 0 ] && status=1
[ $status != 0 ] && [ "$failed" = 0 ] && failed=1
if [ "$failed" != 0 ]; then
    sed -n 's/^again: /failed: /p' "$log" | sort -u
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ $status = 0 ] && [ "$failed" = 0 ]
