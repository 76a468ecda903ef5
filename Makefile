# `make demo` and `make test` each start from nothing: they make a virtual environment in .venv,
# install pinned dependencies, build the native code, and do their work.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CPP_TESTS := build/cpp

.PHONY: help setup build demo test test-cpp check format docs cuda sanitize sanitize-python stress fuzz bench gpu clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# pip warns of every index it merely did not need; --quiet leaves errors.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade -c constraints.txt scikit-build-core pybind11 cmake ninja
	$(BIN)/pip install --quiet --upgrade -c constraints.txt "torch>=2.10" numpy safetensors ale-py gymnasium \
	  tyro tensorboard pillow matplotlib pytest pytest-timeout pytest-benchmark hypothesis ruff mypy clang-format clang-tidy pdoc \
	  onnx onnxscript onnxruntime stable-baselines3 sb3-contrib ray
	touch $@

setup: $(VENV)/ready  ## Make .venv with the pinned dependencies

build: setup  ## Build the native code and install the package into .venv
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip install --quiet --no-build-isolation --no-deps .

demo: build  ## Distill the shipped Pong teacher into a student of 7% of its size; leaves a report in runs/
	$(BIN)/fastdistill quickstart

test: build test-cpp  ## Run the C++ and the Python tests
	$(BIN)/pytest

test-cpp: setup  ## Run the C++ tests, among them the CUDA kernels on a simulated GPU
	$(BIN)/cmake -S . -B $(CPP_TESTS) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	  -DFASTDISTILL_PYTHON=OFF -DFASTDISTILL_CUDA=OFF -DFASTDISTILL_CPP_TESTS=ON -DFASTDISTILL_WERROR=ON > /dev/null
	$(BIN)/cmake --build $(CPP_TESTS)
	$(BIN)/ctest --test-dir $(CPP_TESTS) --output-on-failure

CPP_FILES = $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.inl' 'csrc/*.cu' 'csrc/*.cuh' 'tests/cpp/*.h' 'tests/cpp/*.cpp' 'tests/fuzz/*.cpp')
TIDY_FILES = $(filter-out csrc/bindings/cuda%, $(shell git ls-files 'csrc/*.cpp'))

check: build test-cpp docs  ## Lint, format, types, API pages: Python and C++
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)
	$(BIN)/cmake -S . -B build/tidy -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DFASTDISTILL_CUDA=OFF \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) > /dev/null
	$(BIN)/clang-tidy --quiet -p build/tidy $(TIDY_FILES)

docs: build  ## Build the API pages from the docstrings, into build/docs
	$(BIN)/python docs/build_api.py build/docs

format: setup  ## Format Python and C++
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

sanitize: setup  ## Run the C++ tests under ThreadSanitizer, then AddressSanitizer with UBSan
	for kind in thread address; do \
	  $(BIN)/cmake -S . -B build/$$kind -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DFASTDISTILL_PYTHON=OFF \
	    -DFASTDISTILL_CUDA=OFF -DFASTDISTILL_CPP_TESTS=ON -DFASTDISTILL_SANITIZER=$$kind > /dev/null && \
	  $(BIN)/cmake --build build/$$kind && \
	  $(BIN)/ctest --test-dir build/$$kind --output-on-failure || exit 1; \
	done

# -O1: the losses' kernels take an hour to compile otherwise. The sanitizer must come first into the
# process, and libstdc++ with it, whose exceptions it follows; Python's own leaks are none of ours.
SANITIZED := build/address
SANITIZED_TESTS = $(addprefix tests/unit/test_,distill_kl.py distill_jsd.py losses_errors.py losses_infinite.py \
  losses_rows.py losses_strides.py td_loss.py result_tensors.py frames_arguments.py frames_float32.py \
  replay.py replay_hardening.py replay_mutations.py replay_snapshot.py)

sanitize-python: setup  ## Run Python tests of losses, replay and convolutions under AddressSanitizer and UBSan
	$(BIN)/cmake -S . -B $(SANITIZED) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DFASTDISTILL_PYTHON=ON \
	  -DFASTDISTILL_CUDA=OFF -DFASTDISTILL_SANITIZER=address -DCMAKE_CXX_FLAGS_RELEASE=-O1 \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) > /dev/null
	$(BIN)/cmake --build $(SANITIZED) --target _core
	rm -rf $(SANITIZED)/python && mkdir -p $(SANITIZED)/python && cp -r fastdistill $(SANITIZED)/python
	rm -f $(SANITIZED)/python/fastdistill/_core.*.so
	cp $(SANITIZED)/csrc/bindings/_core.*.so $(SANITIZED)/python/fastdistill
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so.6)" \
	  ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(abspath $(SANITIZED)/python) \
	  $(BIN)/python -m pytest -p no:cacheprovider -q $(SANITIZED_TESTS)

stress: setup  ## Run the concurrent replay for 10^9 operations, all tests marked stress or slow, the fuzzers
	$(MAKE) test-cpp
	$(CPP_TESTS)/tests/cpp/test_replay_stress 1000000000
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

bench: build  ## Run the benchmarks, write benchmarks/results, docs/benchmarks.md and the README's table
	$(BIN)/python benchmarks/run.py

cuda: setup  ## Compile the CUDA kernels for all architectures, if nvcc is there; no GPU is needed
	@if ! command -v $${CUDACXX:-nvcc} > /dev/null; then echo "cuda: skipped, no nvcc"; exit 0; fi; set -e; \
	$(BIN)/cmake -S . -B build/cuda -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DFASTDISTILL_CUDA=ON \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) > /dev/null; \
	$(BIN)/cmake --build build/cuda --target _cuda

# Uses $(PYTHON) as it is, without a network: a GPU machine brings its own torch.
gpu:  ## On a machine with a GPU: build, test, compute-sanitizer, benchmarks
	$(PYTHON) -m pip install --no-build-isolation --no-deps -C cmake.define.FASTDISTILL_CUDA=ON .
	cd tests && FASTDISTILL_REQUIRE_CUDA=1 $(PYTHON) -m pytest -m cuda -p no:cacheprovider gpu
	cd tests && for tool in memcheck racecheck; do \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
	    $(PYTHON) -m pytest -m cuda -p no:cacheprovider -k "masks_weights or strides_and_misalignment or td_loss or kl_topk" gpu || exit 1; \
	done
	cd benchmarks && $(PYTHON) -m pytest -p no:cacheprovider -W default \
	  --benchmark-json=results/losses_cuda.json test_bench_losses_cuda.py

clean:  ## Remove what was built, keep .venv
	rm -rf build dist
