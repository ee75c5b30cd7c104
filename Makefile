# make demo: install, then prune the bundled model by four methods and compare them
# make test: install, then lint, type-check and test (the slow tests: make test-slow)
# make lock: refresh requirements.lock and requirements-test.lock, from which both install

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NEWEST := .venv-newest
LOCKED := 'import platform as p, sys; \
  sys.exit(not (sys.version_info < (3, 15) and p.machine() in ("x86_64", "aarch64")))'
COMPILE := echo torch | UV_CUSTOM_COMPILE_COMMAND="make lock" .venv-lock/bin/uv pip compile -q \
  --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
  --no-emit-find-links --excludes - --group build pyproject.toml
export OPENBLAS_NUM_THREADS = 1
export OMP_WAIT_POLICY = PASSIVE

.PHONY: demo test test-slow test-gpu test-newest lint bench lock clean

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

# From the lock, what builds the package included; from the open ranges where the lock has no wheels.
define install
if $(BIN)/python -c $(LOCKED); then \
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

# The newest releases that the ranges of pyproject.toml allow, with the hashes of all their files.
# torch comes first and apart: which build of it is wanted depends on the machine.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install -q 'uv>=0.13,<1'
	$(COMPILE) -o requirements.lock
	$(COMPILE) --extra test -c requirements.lock -o requirements-test.lock

clean:
	rm -rf $(VENV) $(NEWEST) .venv-lock build dist demo-out
