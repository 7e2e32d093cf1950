# all        release build: launcher, ctl, libdormouse  demo    the main job, with timings
# test       everything, as everyone                  bench   the figures (bench/run)
# test-full  more of the same; REPEAT=50 for each case fifty times
# test-soak  500 checkpoints and 100 restores in a row, of two programs, as everyone (part of test-full, too)
# test ONE=mem_anon/restore/user runs one case again; ONLY=blocked all those with that in their names. KEEP=1 keeps their files.
# CARGO_TARGET_DIR says where to build; nothing is read from stdin.
CARGO ?= cargo

all:
	$(CARGO) build --release -p dormouse-launcher -p dormouse-ctl -p dormouse

demo:
	@examples/demo.sh

test:
	@tests/run.sh

test-full:
	@FULL=1 tests/run.sh

test-soak:
	@SOAK=1 tests/run.sh

bench:
	@if [ -x bench/run ]; then exec bench/run; else echo 'there is no bench/run' >&2; exit 1; fi

fmt:
	$(CARGO) fmt --all

clippy:
	$(CARGO) clippy --workspace --all-targets -- -D warnings

.PHONY: all demo test test-full test-soak bench fmt clippy
