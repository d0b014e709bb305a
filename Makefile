# Each target sets up what it needs. A fresh machine needs Python >= 3.11, git and make, nothing else.
# Say `make PYTHON=/path/to/python3.12 ...` to choose the interpreter, `make test ARGS="-k dense"` to choose tests,
# `make test JOBS=4` to run them in four processes, `make test JOBS=` in one.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo docs examples browser bench bench-serving judge smoke test lint format protocol dist clean

VENV := .venv
BIN := $(VENV)/bin
BENCH := .bench
JUDGE := .judge
DIST := .dist
PROTOCOL := exporters/lamella_serve/protocol
TORCH ?= torch==2.13.0
JAX ?= jax
TRITON ?= nvidia-pytriton==0.7.0
SERVERS := fastapi kserve litserve mosec
ARGS ?=
JOBS ?= 2

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/installed-plot  ## train on real digits, export to ONNX, prove it, draw it (under 10 seconds, once installed)
	$(BIN)/lamella demo $(ARGS)

docs: $(VENV)/installed-docs  ## build the documentation site in runs/site; needs no network but for what it installs
	$(BIN)/python docs/site $(ARGS)

examples: $(VENV)/installed-examples  ## run the examples on real data; results in runs/ (about 10 minutes)
	for name in mnist_cnn mnist_resnet electricity_lstm text_transformer diamonds terrain; do \
	    $(BIN)/python examples/$$name.py || exit 1; \
	done
	$(BIN)/python examples/serve.py runs/mnist_cnn/mnist_cnn.onnx runs/mnist_cnn/images.npy

browser: $(VENV)/installed-plot  ## build a page that trains a model in the browser, in runs/browser; needs npm
	$(BIN)/python examples/browser/build.py $(ARGS)

bench: $(VENV)/installed-plot $(BENCH)/torch/installed $(BENCH)/jax/installed  ## time steps next to PyTorch and JAX; results in runs/bench (about 15 minutes)
	$(BIN)/python benchmarks/suite --torch $(BENCH)/torch/bin/python --jax $(BENCH)/jax/bin/python $(ARGS)

bench-serving: $(VENV)/installed-plot $(VENV)/installed-serve $(SERVERS:%=$(BENCH)/%/installed)  ## load servers of ONNX models, next to FastAPI, KServe, Triton ...; needs wrk; results in runs/serving (about 20 minutes)
	$(BIN)/python benchmarks/serving $(ARGS)

judge: $(VENV)/installed-grpc $(JUDGE)/installed  ## hold lamella serve against NVIDIA's Triton, call by call (about a minute)
	$(BIN)/python tests/against_triton/judge.py $(JUDGE)/bin/python $(ARGS)

smoke: $(VENV)/installed-test  ## run the ten most telling tests (under ten seconds)
	$(BIN)/python -m pytest -q -m smoke $$(grep -l '^@pytest.mark.smoke' tests/test_*.py) $(ARGS)

test: $(VENV)/installed-test $(VENV)/installed-browser  ## run all tests; those in a browser need chromium and npm
	$(BIN)/python -m pytest $(if $(JOBS),-n $(JOBS) --dist worksteal) $(ARGS)

lint: $(VENV)/installed-dev  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_types.py

format: $(VENV)/installed-dev  ## put the code into shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

protocol: $(VENV)/installed-test  ## write the messages of gRPC anew, after a change of their .proto files
	$(BIN)/python -m grpc_tools.protoc -I $(PROTOCOL) --descriptor_set_out=$(PROTOCOL)/messages.binpb $(PROTOCOL)/*.proto

dist: $(DIST)/installed  ## build sdist and wheel, check them, and use the wheel in a fresh environment; results in dist/ (about 2 minutes)
	$(DIST)/bin/python tests/distribution.py

clean:  ## remove the virtual environments and everything that was built; runs/ stays
	rm -rf $(VENV) $(BENCH) $(JUDGE) $(DIST) build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The package, editable, with one extra; again whenever pyproject.toml has changed.
$(VENV)/installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@

# The peers of the benchmarks, each in an environment of its own. One that can't be installed is left out of the race.
$(BENCH)/torch/installed: PEER = $(TORCH)
$(BENCH)/jax/installed: PEER = $(JAX)
$(BENCH)/fastapi/installed: PEER = fastapi uvicorn[standard] onnxruntime
$(BENCH)/kserve/installed: PEER = kserve onnxruntime
$(BENCH)/litserve/installed: PEER = litserve onnxruntime
$(BENCH)/mosec/installed: PEER = mosec onnxruntime
$(BENCH)/schemathesis/installed: PEER = schemathesis
$(BENCH)/%/installed: | $(BIN)/python
	$(BIN)/python -m venv --clear $(@D)
	@echo "$(@D)/bin/python -m pip install $(PEER) numpy"; \
	if $(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(PEER) numpy; then \
	    touch $@; \
	else \
	    echo "make: $(PEER) could not be installed; the benchmark runs without it" >&2; \
	fi

# Triton's server comes in a wheel for Linux on x86-64, and wants NumPy 1, which has no wheels from Python 3.13 on.
$(JUDGE)/installed: | $(BIN)/python
	$(BIN)/python -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: $(TRITON) onnxruntime
	@touch $@

$(DIST)/installed: | $(BIN)/python
	$(BIN)/python -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check build twine "hatchling>=1.26"
	@touch $@

$(BIN)/python:
	@python=$$(for python in "$(PYTHON)" python3 python3.14 python3.13 python3.12 python3.11 python; do \
	    "$$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2> /dev/null \
	        && echo "$$python" && break; \
	done); \
	if [ -z "$$python" ]; then \
	    echo "make: lamella needs Python >= 3.11 with venv and pip, and found none." >&2; \
	    echo "make: install it (Debian, Ubuntu: apt install python3 python3-venv), or name it: make PYTHON=..." >&2; \
	    exit 1; \
	fi; \
	echo "$$python -m venv $(VENV)"; \
	"$$python" -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }
