# make demo: install, then prune the bundled model by four methods and compare them
# make test: install, then lint, type-check and test (the slow tests: make test-slow)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NEWEST := .venv-newest
export OPENBLAS_NUM_THREADS = 1
export OMP_WAIT_POLICY = PASSIVE

.PHONY: demo test test-slow test-gpu test-newest lint bench clean

demo: $(VENV)/installed
	$(BIN)/icp-jax demo

test: lint
	$(BIN)/python -m pytest -q -m "not slow and not gpu"

test-slow: $(VENV)/tested
	$(BIN)/python -m pytest -q -m slow

# On a machine with a GPU, in an environment that has JAX for it: make test-gpu BIN=/path/to/env/bin
test-gpu:
	$(BIN)/python -m pytest -q -m gpu

lint: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/tested
	$(BIN)/python benchmarks/bench_claim.py
	$(BIN)/python benchmarks/bench_prune.py

# The same fast tests on a newer Python, where JAX is newer, without torch.
test-newest:
	@newest=$$(ls -d $$HOME/.pyenv/versions/3.1[2-9]*/bin/python 2>/dev/null | sort -V | tail -n 1); \
	for v in 3.14 3.13 3.12; do \
	  if python$$v -c '' 2>/dev/null; then newest=$${newest:-python$$v}; fi; done; \
	test -n "$$newest" || { echo "test-newest needs Python 3.12 or newer" >&2; exit 2; }; \
	"$$newest" -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install -q -e '.[test]'
	$(NEWEST)/bin/python -m pytest -q -m "not slow and not gpu and not needs_torch"

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e .
	touch $@

# torch is for the parity tests only, where there is a build of this version for this Python.
$(VENV)/tested: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  && $(BIN)/python -m pip install -q torch==2.13.0 \
	  || echo "no torch for this Python: its parity tests will be skipped"
	$(BIN)/python -m pip install -q -e '.[test]'
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) $(NEWEST) build dist demo-out
