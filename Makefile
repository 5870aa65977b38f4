# `make demo` and `make test` do everything on a fresh Debian 12 machine with a Rust toolchain.
# III_HOME (default ~/.iii) is where the kit, the images, templates and workers live.

III_HOME ?= $(HOME)/.iii
TARGET ?= $(CURDIR)/target
KIT := $(III_HOME)/lib/kit
IMAGES := $(III_HOME)/lib/images
HOST := $(shell rustc -vV | sed -n 's/^host: //p')
INIT := $(TARGET)/$(HOST)/guest/iii-init
PROGRAMS := -p cli -p engine -p daemon -p vm-process

.PHONY: demo test test-kvm bench bench-kvm load check build kit images kernel qemu init setup-run setup-test clean-home

demo: setup-run build kit images
	@./demo $(TARGET)/release

test: setup-test
	@$(MAKE) --no-print-directory kit images
	@tests/run

# The guests' tests on a real /dev/kvm, in an emulated machine: six to twenty minutes for its kernel, once, and ten to thirty
# to run.
# DRIVER=qemu runs them on QEMU there; TESTS="sandbox fork" only these files.
DRIVER ?= libkrun
test-kvm: setup-test
	@./setup rig
	@tests/rig/fetch-qemu
	@$(MAKE) --no-print-directory kit images
	@images/build-kernel $(TARGET)/rig-kernel rig
	@# libkrun does not boot Debian's kernel: without one of our own, guests have the emulated machine's.
	@own=$${XDG_CACHE_HOME:-$$HOME/.cache}/iii/guest-kernel; [ -f $$own/vmlinux ] || own=$(TARGET)/rig-kernel; \
	    III_OWN_KERNEL=$$own images/build-kit $(TARGET)/rig-kit $(INIT) $(TARGET)/debug/xtask
	@tests/rig/guest-tests $(TARGET)/rig-kernel/vmlinux $(TARGET)/rig $(TARGET)/rig-kit $(DRIVER) $(TESTS)

# Two tables, and the same as JSON in tests/bench/results.json and tests/load/results.json. AREAS="boot fork" measures only
# these of VMs, and leaves the engine's out.
bench: setup-test build kit images
	@III_KERNEL=debian III_OWN_QEMU= images/build-kit $(TARGET)/debian-kit $(INIT) $(TARGET)/debug/xtask
	@III_BIN_DIR=$(TARGET)/release III_BENCH_DEBIAN_KIT=$(TARGET)/debian-kit \
	    cargo run --quiet --release -p bench -- --json tests/bench/results.json $(AREAS)
	@[ -n "$(AREAS)" ] || $(MAKE) --no-print-directory load

# The benches of VMs on a real /dev/kvm, in an emulated machine: for ratios, per DRIVER.
bench-kvm: setup-test
	@./setup rig
	@tests/rig/fetch-qemu
	@$(MAKE) --no-print-directory kit images
	@images/build-kernel $(TARGET)/rig-kernel rig
	@own=$${XDG_CACHE_HOME:-$$HOME/.cache}/iii/guest-kernel; [ -f $$own/vmlinux ] || own=$(TARGET)/rig-kernel; \
	    III_OWN_KERNEL=$$own images/build-kit $(TARGET)/rig-kit $(INIT) $(TARGET)/debug/xtask
	@tests/rig/bench $(TARGET)/rig-kernel/vmlinux $(TARGET)/rig-bench $(TARGET)/rig-kit $(DRIVER) $(AREAS)

# What the engine costs per operation, by its own accounting, beside its targets. CASES="calls idle" measures only these;
# ARGS="--runs 3" takes medians.
load: setup-test build
	@# By itself: together with others it would have their crates built anew, with other features.
	cargo build --quiet --release -p load
	@$(TARGET)/release/load --json tests/load/results.json $(ARGS) $(CASES)

# The checks that need no VM: format, lints, docs, tidy, licences (when cargo-deny is installed).
check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --quiet
	cargo test --quiet -p xtask
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --all-features check; else echo 'cargo-deny is not installed: licences and advisories were not checked'; fi

build:
	cargo build --release $(PROGRAMS)

# The guests' init: one static binary.
init:
	CARGO_TARGET_$(shell echo $(HOST) | tr a-z- A-Z_)_RUSTFLAGS='-C target-feature=+crt-static' \
	    cargo build --profile guest -p guest-init --bin iii-init --target $(HOST)

kit: init
	@cargo build --quiet -p xtask
	@images/build-kit $(KIT) $(INIT) $(TARGET)/debug/xtask

images:
	@for name in python node; do images/build-image $$name $(IMAGES)/$$name || exit 1; done

# Our own guest kernel instead of the distribution's: boots in about 0.4 of the time. Ten minutes, then cached.
kernel:
	@./setup kernel
	@images/build-kernel $${XDG_CACHE_HOME:-$$HOME/.cache}/iii/guest-kernel

# Our own QEMU instead of the distribution's: a VM starts sooner, and less of QEMU is there to be attacked. Ten minutes, then
# cached; `make kit` puts it into the kit.
qemu:
	@./setup qemu
	@images/build-qemu $${XDG_CACHE_HOME:-$$HOME/.cache}/iii/own-qemu

setup-run:
	@./setup run
setup-test:
	@./setup test
