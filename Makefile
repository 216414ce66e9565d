# The only task list: people and CI call these targets. `make` explains itself from the comments after `##`.

PYTHON ?= python3
DATA ?=
PIPELINE ?= pipeline.toml
JOBS ?= 2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run up test test-fast lint format bench-ridge bench-loop bench-drift calibrate lock clean

# The interpreter that is there is used; none is downloaded.
export UV_PYTHON_DOWNLOADS := never
# Certificates are those of the machine, as pip uses them.
export UV_SYSTEM_CERTS := true

LOCKS := deploy/requirements
UV := .tools/bin/uv
INSTALL := $(UV) pip install --quiet --no-deps --build-constraints $(LOCKS)/uv.txt --python
SYNC := $(UV) pip sync --quiet --require-hashes --compile-bytecode --python
TEST := .venv-test/bin
ROOMS := learners streams services
# The folders are listed too: their time changes when a module is removed.
SOURCES := $(shell find $(ROOMS) -not -path '*__pycache__*' \( -type d -o -name '*.py' -o -name py.typed \) 2>/dev/null)

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "make %-13s %s\n", $$1, $$2}' Makefile

setup: .venv/.ready  ## make the environment that `make run` needs (.venv, editable)

run: setup $(if $(DATA),.venv/.parquet)  ## watch a model learn a real stream, be killed, resume and prove it (DATA=name for another stream)
	.venv/bin/python -m millrace.services.story $(if $(DATA),--data $(DATA))

up: .venv/.serve  ## learn and answer over HTTP until Ctrl-C (PIPELINE=file.toml)
	.venv/bin/millrace up $(PIPELINE)

test: lint  ## test the installed package: lint, types, doctests, all tests
	$(TEST)/pytest --doctest-modules --pyargs $(addprefix millrace.,$(ROOMS))
	MILLRACE_INSTALLED=1 $(TEST)/pytest -n $(JOBS) --dist loadgroup tests

test-fast: .venv-test/.installed  ## the unit tests alone
	MILLRACE_INSTALLED=1 $(TEST)/pytest -n $(JOBS) --dist loadgroup -m "not slow" tests

lint: .venv-test/.installed  ## ruff and mypy --strict
	$(TEST)/ruff check $(ROOMS) tests
	$(TEST)/ruff format --check $(ROOMS) tests
	$(TEST)/mypy --strict $(addprefix -p millrace.,$(ROOMS))

format: .venv-test/.ready  ## let ruff lay out the code and mend what it can
	$(TEST)/ruff check --fix $(ROOMS) tests
	$(TEST)/ruff format $(ROOMS) tests

bench-ridge: .venv-test/.installed  ## ridge against the machine's own dsyrk and the textbook recursion
	$(TEST)/python tests/bench/bench_ridge.py

bench-loop: .venv-test/.installed  ## the whole worker against a bare read of the same log
	$(TEST)/python tests/bench/bench_loop.py

bench-drift: .venv-test/.installed  ## false alarms against their budgets, detection delays, cost of a row beside bare river
	$(TEST)/python tests/bench/bench_drift.py

calibrate: .venv-test/.installed  ## measure the table of learners/calibration.py anew (half an hour)
	$(TEST)/python tests/bench/calibrate_drift.py

lock: $(UV)  ## resolve the requirements anew
	$(UV) pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links \
		--custom-compile-command 'make lock' --python-version 3.11 -o $(LOCKS)/uv.txt $(LOCKS)/uv.in
	$(UV) pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links \
		--custom-compile-command 'make lock' --python-version 3.11 --all-extras --group test \
		-o $(LOCKS)/test.txt pyproject.toml
	$(UV) pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links \
		--custom-compile-command 'make lock' --python-version 3.11 --extra demo -c $(LOCKS)/test.txt \
		-o $(LOCKS)/run.txt pyproject.toml
	$(UV) pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links \
		--custom-compile-command 'make lock' --python-version 3.11 --extra demo --extra serve -c $(LOCKS)/test.txt \
		-o $(LOCKS)/serve.txt pyproject.toml

clean:  ## remove the environments and everything built
	rm -rf .tools .venv .venv-test build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find $(ROOMS) tests -name __pycache__ -prune -exec rm -rf {} +

$(UV): $(LOCKS)/uv.txt
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCKS)/uv.txt
	@touch $@

.venv/.ready: $(UV) $(LOCKS)/run.txt pyproject.toml
	$(UV) venv --quiet --clear --python $(PYTHON) .venv
	$(SYNC) .venv $(LOCKS)/run.txt
	$(INSTALL) .venv --editable .
	@touch $@

# Most other streams are Parquet files; the first run of all does not wait for their reader.
.venv/.parquet: .venv/.ready
	awk '/^[^ #]/ { wanted = /^pyarrow==/ } wanted' $(LOCKS)/test.txt > .venv/parquet.txt
	$(UV) pip install --quiet --no-deps --require-hashes --python .venv -r .venv/parquet.txt
	@touch $@

# Nor does it wait for Ray.
.venv/.serve: .venv/.ready $(LOCKS)/serve.txt
	$(UV) pip install --quiet --no-deps --require-hashes --compile-bytecode --python .venv -r $(LOCKS)/serve.txt
	@touch $@

.venv-test/.ready: $(UV) $(LOCKS)/test.txt
	$(UV) venv --quiet --clear --python $(PYTHON) .venv-test
	$(SYNC) .venv-test $(LOCKS)/test.txt
	@touch $@

# First the sdist, then the wheel from it: a wheel built straight from the tree can ship modules deleted long ago.
.venv-test/.installed: .venv-test/.ready $(SOURCES) pyproject.toml README.md LICENSE
	rm -rf dist
	$(UV) build --quiet --require-hashes --build-constraints $(LOCKS)/uv.txt --python .venv-test/bin/python -o dist
	$(INSTALL) .venv-test --reinstall dist/millrace-*.whl
	@touch $@
