# `make help` lists the verbs. Each one sets itself up: python3, make and git are enough.
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
CYCLES ?= 300
JOBS   ?= logical
IMAGES ?= 50000
SEED   ?=
FLIPS  ?= 2000
ARGS   ?=
FAST   ?=

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help venv demo test lint fmt types cover bench kill-test model sim soak prove sizes states ci wheel clean kill-matrix kill-moments order-test power-test io-test flip-test mutants

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "halfmsg needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@test -d halfmsg/coordinator || { echo "halfmsg/coordinator is not a link: clone again with  git clone -c core.symlinks=true"; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools
	$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[test,postgres,fast]'
	@touch $@

venv: $(STAMP)  ## make .venv and install everything at the pinned versions

demo: $(STAMP)  ## two services, kills, and books that balance  (ARGS="--keep")
	@$(VENV)/bin/halfmsg demo $(ARGS)

test: $(STAMP)  ## the tests, on all cores  (ARGS="-k fence", JOBS=0 for one after the other)
	@$(PY) -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: $(STAMP)  ## ruff check
	@$(PY) -m ruff check .

fmt: $(STAMP)  ## sort imports, mend what ruff can mend, and format
	@$(PY) -m ruff check --fix-only --quiet .
	@$(PY) -m ruff format .

types: $(STAMP)  ## mypy --strict
	@$(PY) -m mypy --strict -p halfmsg

cover: $(STAMP)  ## the tests, measured with their child processes; branch coverage
	@$(PY) -m coverage erase
	@$(PY) -m coverage run -m pytest -n $(JOBS) --dist worksteal $(ARGS)
	@$(PY) -m coverage combine --quiet
	@$(PY) -m coverage report

bench: $(STAMP)  ## figures of this machine
	@$(VENV)/bin/halfmsg bench $(ARGS)

kill-test: $(STAMP)  ## kill -9 at random moments, then check the books  (CYCLES=300 SEED=)
	@$(PY) -m tests.kill.run --cycles $(CYCLES) $(if $(SEED),--seed $(SEED)) $(ARGS)

kill-matrix: $(STAMP)  ## a kill at each fail point of each operation  (ROUNDS=1 SEED=)
	@$(PY) -m tests.kill.matrix --rounds $(or $(ROUNDS),1) $(if $(SEED),--seed $(SEED)) $(ARGS)

kill-moments: $(STAMP)  ## kill -9 in first start, start, checkpoint and stop  (TIMES=100 SEED=)
	@$(PY) -m tests.kill.moments --times $(or $(TIMES),100) $(if $(SEED),--seed $(SEED)) $(ARGS)

order-test: $(STAMP)  ## ordered effects over kills, pauses and nacks  (EFFECTS=20000 SEED=)
	@$(PY) -m tests.kill.order --effects $(or $(EFFECTS),20000) $(if $(SEED),--seed $(SEED)) $(ARGS)

power-test: $(STAMP)  ## disks as power cuts would leave them, each opened and judged  (IMAGES=50000 SEED=)
	@$(PY) -m tests.disk.power --images $(IMAGES) $(if $(SEED),--seed $(SEED)) $(ARGS)

io-test: $(STAMP)  ## the n-th call on the store's files fails, for every kind and n  (ARGS="--step 5")
	@$(PY) -m tests.disk.life $(if $(SEED),--seed $(SEED)) $(ARGS)

flip-test: $(STAMP)  ## bits flipped and ends cut in a stopped store  (FLIPS=2000 SEED=)
	@$(PY) -m tests.corruption.flips --flips $(FLIPS) $(if $(SEED),--seed $(SEED)) $(ARGS)

model: $(STAMP)  ## the protocol models and their planted bugs
	@$(PY) -m pytest tests/model $(ARGS)

sim: $(STAMP)  ## simulated worlds on virtual time  (SEEDS=300, or SEED=7 alone)
	@$(PY) -m tests.sim.run $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),300)) $(ARGS)

mutants: $(STAMP)  ## plant each known bug in a copy; its tests must see it  (FAST=10, ARGS=NAME)
	@$(PY) -m tests.mutants.run $(if $(FAST),--fast $(FAST)) $(ARGS)

soak: $(STAMP)  ## a steady load; memory, files, WAL and tables must not grow  (MINUTES=10 RATE=)
	@$(PY) -m benchmarks.soak --minutes $(or $(MINUTES),10) $(if $(RATE),--rate $(RATE)) $(ARGS)

prove: $(STAMP)  ## all proofs at full length, one after the other: many hours
	@$(MAKE) --no-print-directory model
	@$(MAKE) --no-print-directory mutants
	@$(MAKE) --no-print-directory kill-matrix ROUNDS=20
	@$(MAKE) --no-print-directory kill-moments TIMES=200
	@$(MAKE) --no-print-directory power-test IMAGES=50000
	@$(MAKE) --no-print-directory io-test
	@$(MAKE) --no-print-directory flip-test FLIPS=2000
	@$(MAKE) --no-print-directory order-test EFFECTS=1000000
	@$(MAKE) --no-print-directory sim SEEDS=20000
	@$(MAKE) --no-print-directory kill-test CYCLES=3000
	@$(MAKE) --no-print-directory soak MINUTES=120

sizes: $(STAMP)  ## the longest files and functions
	@$(PY) -m tests.tidy.sizes

states: $(STAMP)  ## draw docs/states.md anew from the table
	@$(PY) docs/make_states.py

ci: lint types test  ## what has to pass, the tests last

wheel: $(STAMP)  ## dist/*.whl
	@rm -rf build dist
	@$(PY) -m build --wheel --no-isolation --outdir dist

clean:  ## remove what was made, and the venv
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
