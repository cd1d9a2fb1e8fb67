# The project's commands; the work is done in scripts/ and tests/kernel/.

.DEFAULT_GOAL := help
# On a machine that cannot build, a wheel and programs that were brought along are used: see scripts/gpu.sh. The
# redirection has older versions of make ask a shell, which knows `command`.
BUILD := $(if $(shell command -v cargo 2>/dev/null),setup wheel)
.PHONY: help demo test test-rust test-python test-kernel test-two-kernels test-systemd test-gpu test-newest test-long fuzz mutants lint docs lock update
.PHONY: bench bench-gpu build wheel dist test-dist test-arm64 test-pages clean clean-cache

help:            ## this list
	@sed -n 's/^\([a-z0-9-]*\): *.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo:            ## pack a real model, open it from a descriptor in other processes, compute embeddings without a copy
	@scripts/demo.sh

test:            ## everything: format, lints, Rust, Vulkan, Python, demo, a kernel with udmabuf and dma-heap, two kernels over one memory, fuzzing; installs what it needs
	@scripts/test.sh

test-long:       ## what takes long: all block sizes with all settings, abuse of a holder, documentation of each feature, fuzzing for twenty minutes a target, each system call that fails, the address sanitizer where there is a nightly toolchain, the systemd units, a release in clean systems, signatures beside cosign and a registry, 64-bit Arm and larger pages under emulation, advisories on crates where their database is reachable
	@DAXFS_TEST_LONG=1 scripts/test.sh setup wheel long-rust long-python long-abuse long-docs long-fuzz asan long-dist long-cosign long-arm64 long-pages advisories systemd

test-rust:       ## Rust tests and doc tests
	@scripts/test.sh rust doctests

test-python:     ## build the wheel, install it into .venv, run the Python tests and the type checks
	@scripts/test.sh setup wheel python stubs

test-kernel:     ## tests on real dma-bufs, and of EROFS on persistent memory, in virtual machines where this one has none
	@scripts/test.sh setup wheel kernel kernel-erofs

test-two-kernels: ## two virtual machines over one memory: devdax, a physical range, PCI memory, a CXL pool
	@scripts/test.sh setup two-kernels

test-systemd:    ## the units in deploy/systemd under a real systemd with control groups, in a virtual machine
	@scripts/test.sh setup systemd

test-gpu:        ## tests of images in GPU memory with this machine's NVIDIA driver; `make test` simulates one
	@DAXFS_TEST_GPU=1 DAXFS_TORCH=$(or $(DAXFS_TORCH),full) scripts/test.sh $(BUILD) gpu-build gpu-rust gpu-examples gpu-vulkan gpu-python gpu-sanitizer

test-newest:     ## the demo and the Python tests with the newest versions of all Python packages, not the locked ones
	@scripts/newest.sh

fuzz:            ## fuzz the readers of images, headers and messages; FUZZ_SECONDS=600 for longer than half a minute a target
	@scripts/fuzz.sh $(or $(FUZZ_SECONDS),30)

mutants:         ## change the code in small ways, and see that the tests find each; MUTANTS_FILES="..." for some files
	@scripts/mutants.sh

lint:            ## formatting, clippy, documentation, ruff, and whether the public API of the crate daxfs is the one that is checked in
	@scripts/test.sh setup format clippy docs ruff public-api

docs:            ## the book, into target/book/html, with its links checked, and the documentation of the crates, into target/doc
	@scripts/test.sh setup wheel docs book

lock:            ## bring the locks in line with the lists *.in and with Cargo.toml; nothing else moves
	@scripts/lock.sh

update:          ## renew all locks, of Python packages and of crates, and say what moved
	@scripts/update.sh

bench:           ## the benchmarks, each beside the peer that it is measured against; ARGS=--quick for one run each
	@scripts/setup.sh peers
	@scripts/test.sh setup wheel
	@.venv/bin/python benches/run.py $(ARGS)

bench-gpu:       ## the benchmark of images in GPU memory alone, on a machine with an NVIDIA driver
	@DAXFS_TEST_GPU=1 DAXFS_TORCH=$(or $(DAXFS_TORCH),full) scripts/test.sh $(BUILD) gpu-build
	@.venv/bin/python benches/run.py gpu --programs target/gpu $(ARGS)

build:           ## the commands daxfs and daxfs-pack, into target/release
	cargo build --locked --release --bins

wheel:           ## the Python wheel, into dist/ and .venv
	@scripts/test.sh setup wheel

dist:            ## the files of a release, into dist/release, as root: wheels and commands for x86-64 and Arm, sources, crates
	@scripts/setup.sh dist
	@scripts/dist.sh

test-dist:       ## try the files of a release in clean Debian 12 and 13, as root
	@scripts/setup.sh dist
	@scripts/test-dist.sh

test-arm64:      ## build for 64-bit Arm and run the Rust tests and the wheel under emulation, as root
	@scripts/setup.sh dist
	@scripts/arm64.sh test
	@scripts/arm64.sh wheel

test-pages:      ## the Rust tests on 64-bit Arm kernels with pages of 16 and of 64 KiB, in emulated machines, as root
	@DAXFS_TEST_LONG=1 scripts/test.sh long-pages

clean:           ## remove everything that was built, downloaded into the project, or installed in .venv
	cargo clean
	rm -rf .venv .venv-newest dist fuzz/target fuzz/corpus fuzz/artifacts

clean-cache:     ## remove what all clones share: Python environments, kernels, emulators, drivers (~/.cache/daxfs)
	@$(or $(PYTHON),python3) scripts/cache.py clean
