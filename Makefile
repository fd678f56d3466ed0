# Every target does its own set-up and can be repeated. PYTHON picks the interpreter of a new environment.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := CMakeLists.txt setup.py $(shell find csrc -type f)
# Two pytest workers per machine of two cores; each runs PyTorch on one thread (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
GPU_TESTS := tests/kernels tests/cuda tests/ops/test_stencils.py

.PHONY: help install demo test lint test-gpu sanitize fuzz docs test-torch dist release-check clean

help:
	@echo "make demo        search, evaluate and report on handwritten digits, with all set-up"
	@echo "make test        lint and tests, with all set-up"
	@echo "make test-gpu    the kernels' tests and pamkd doctor on a GPU, under compute-sanitizer too if it is installed"
	@echo "make sanitize    the operations' tests under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make fuzz        twenty times as many wrong inputs as make test tries, and others in every run"
	@echo "make docs        the API reference as HTML in build/docs"
	@echo "make test-torch  one wheel under the oldest supported and the newest PyTorch"
	@echo "make dist        sdist and wheel in dist/"
	@echo "make release-check  sdist and wheel checked and installed in clean environments, dependencies audited"
	@echo "make clean       remove the environment and everything built"

install: pamkd/_C.so

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "pamkd needs Python 3.10 or later: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@ pamkd/_C.so

pamkd/_C.so: .venv/installed $(SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

demo: install
	$(BIN)/pamkd search --preset demo --out runs/demo --overwrite
	$(BIN)/pamkd evaluate --run runs/demo --preset digits
	$(BIN)/pamkd report runs/demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(PYTEST)

test-gpu: install
	$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("make test-gpu: PyTorch finds no CUDA device here")'
	$(BIN)/python -m pytest $(GPU_TESTS)
	if command -v compute-sanitizer; then \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --target-processes all --error-exitcode 1 $(BIN)/python -m pytest $(GPU_TESTS); fi
	$(BIN)/pamkd doctor

sanitize: install
	PAMKD_CUDA=OFF PAMKD_SANITIZE=address,undefined $(BIN)/python setup.py --quiet build --build-lib build/sanitized
	PYTHONPATH=build/sanitized LD_PRELOAD=$$(c++ -print-file-name=libasan.so):$$(c++ -print-file-name=libubsan.so) \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  $(BIN)/pytest -n auto --dist worksteal tests/ops tests/fuzz/operations.py -k "not compile and not enough"

fuzz: install
	PAMKD_FUZZ=20 $(BIN)/python -m pytest tests/fuzz

docs: install
	$(BIN)/python docs/api.py build/docs

dist: install
	rm -rf dist
	$(BIN)/python setup.py --quiet sdist
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps -w dist .

test-torch: dist
	for versions in "torch==2.10.0 torchvision==0.25.0" "torch torchvision"; do \
	  rm -rf build/test-torch && $(PYTHON) -m venv build/test-torch && \
	  build/test-torch/bin/pip install --quiet --disable-pip-version-check $$versions && \
	  build/test-torch/bin/pip install --quiet --disable-pip-version-check "$$(echo dist/*.whl)[test]" && \
	  build/test-torch/bin/python -c 'import torch; print("PyTorch", torch.__version__)' && \
	  build/test-torch/bin/pytest -n auto tests/ops tests/spaces tests/trilevel || exit 1; \
	done

release-check: dist
	rm -rf build/release && $(PYTHON) -m venv build/release/tools
	build/release/tools/bin/pip install --quiet --disable-pip-version-check twine pip-audit
	build/release/tools/bin/twine check --strict dist/*
	for archive in dist/*.whl dist/*.tar.gz; do \
	  rm -rf build/release/clean && $(PYTHON) -m venv build/release/clean && \
	  build/release/clean/bin/pip install --quiet --disable-pip-version-check -r requirements.txt && \
	  build/release/clean/bin/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps $$archive && \
	  (cd build/release && clean/bin/pamkd doctor && \
	    clean/bin/pamkd search --preset demo --epochs 1 --channels 2 --cells 3 --out smoke --overwrite) || exit 1; \
	done
	build/release/tools/bin/pip-audit --strict --requirement requirements.txt --no-deps --disable-pip

clean:
	rm -rf .venv build dist *.egg-info pamkd/*.so
