# make demo    set up, then run the main job on generated questions with the shipped model
# make check   set up, then run the static checks and the tests that start neither Ray nor an engine
# make test    set up, then run the static checks and all tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

# Containers often set it. Then every process of a test or run would compile Ray, vLLM and torch again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo check unit test lint compat chaos bench clean

setup: $(VENV)/.ready

# torch comes first and alone: its CPU build is in PyTorch's own index. Where that index does not answer, each further
# package and each retry would cost seconds. Python compiles what a run imports; pip would compile all of torch and vLLM.
$(VENV)/.ready: requirements-cpu.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, this is {v}; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --no-compile --no-deps --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
	$(PIP) install --no-compile --no-deps -r requirements-cpu.lock
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# Tests start hundreds of processes, some as users who may not write here. A few modules are for another Python.
$(VENV)/.test-ready: $(VENV)/.ready requirements-test.lock
	$(PIP) install --no-compile --no-deps -r requirements-test.lock
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null || true
	@if [ "$$(id -u)" = 0 ] && [ -f /etc/debian_version ] && ! { command -v ip && command -v chromium && command -v sshd && command -v rsync; } >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq iproute2 chromium openssh-server rsync; fi
	@touch $@

demo: setup
	@rm -rf .demo
	$(BIN)/rollout prepare demo 100 .demo/questions.parquet
	$(BIN)/rollout --config jobs/demo.yaml

lint: $(VENV)/.test-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The lint has one core and the tests both, so they run side by side.
check: $(VENV)/.test-ready
	@$(MAKE) --no-print-directory -j 2 lint unit

# The fixtures of a test give it its markers (tests/markers.py).
unit: $(VENV)/.test-ready
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not (ray or process or browser or slow)"

# Most tests wait for engines and nodes to start, so three at once take half the time on two cores. Ray gives up a start
# after 15 to 30 s, which a busy machine may need: a test that fails runs once more, and the summary counts it.
test: lint
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --reruns 1

# The engine tests with the lowest and the highest allowed vLLM; each gets an environment of its own in .compat.
compat: $(VENV)/.test-ready
	$(BIN)/python -m tests.compat

chaos: $(VENV)/.test-ready
	$(BIN)/python -m tests.chaos

bench: $(VENV)/.test-ready
	$(BIN)/python -m rollout_ray.jobs.benchmark

clean:
	rm -rf $(VENV) .demo
