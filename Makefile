# Short names for long commands. `make help` explains them.
CONFIG ?= quick
CORES  ?= 2
PROFILE ?=
FROM   ?=
PYTHON ?= $(shell for v in 3.11 3.12 3.13; do command -v python$$v && break; done)
PIP    ?=
EXTRAS ?= dev,book,workflow
CONSTRAINTS ?= constraints.txt
BIN    := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
ifndef OMP_WAIT_POLICY
export OMP_WAIT_POLICY = PASSIVE
export GOMP_SPINCOUNT ?= 10000
endif

.DEFAULT_GOAL := help
.PHONY: help env python wheels book test bench read publish clean

help: ## this list
	@echo "make TARGET [CONFIG=quick|real|truth|paper] [CORES=2] [FROM=models] [PROFILE=profiles/slurm]"
	@sed -n 's/^\([a-z]*\):.*## /  \1@/p' $(MAKEFILE_LIST) | awk -F@ '{printf "%-10s %s\n", $$1, $$2}'

env: .venv/ready ## set up .venv with the versions of constraints.txt (PIP="--index-url ..." for another source)

.venv/ready: settings.ini setup.py $(CONSTRAINTS) | python
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP) -c $(CONSTRAINTS) -e ".[$(EXTRAS)]"
	@touch $@

python:
	@test -n "$(PYTHON)" && command -v $(PYTHON) > /dev/null || \
	{ echo "$(or $(PYTHON),Python) not found: install Python 3.11, 3.12 or 3.13, or name it with PYTHON=..." >&2; exit 2; }

wheels: python ## gather all packages in wheels/, for a machine without internet; there: make env PIP="--no-index --find-links wheels"
	$(PYTHON) -m pip wheel --quiet $(PIP) -w wheels -c $(CONSTRAINTS) ".[$(EXTRAS)]" "setuptools>=64" wheel
	rm -f wheels/integrated_cell-*.whl  # the node installs this folder

book: env ## run a config's chapters, those that changed, and build its book; prints where it stands
	@snakemake --quiet all $(if $(PROFILE),--profile $(PROFILE),--cores $(CORES)) --rerun-incomplete --config run=$(CONFIG) $(if $(FROM),from=$(FROM))
	@echo results/$(CONFIG)/book/index.html

test: env ## all tests: the lesson cells of the library notebooks, then tests/
	each=$$($(BIN)/python -c "import os; print(max(1, len(os.sched_getaffinity(0))//$(CORES)))"); \
	export OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$each}; \
	nbdev_test --path nbs --n_workers $(CORES) && \
	pytest -q -n $$(($(CORES) + 1)) --dist loadfile --no-loadscope-reorder tests  # one more, for many tests wait

bench: env ## measure this machine, the important first, and go on when called again (DEVICE=gpu MINUTES=10 CARD=name)
	@$(BIN)/python bench/measure.py $(DEVICE:%=--device %) $(MINUTES:%=--minutes %) $(CARD:%=--card %)

read: env ## build the book of the kept chapters (book/published) without executing anything
	@integrated-cell read

publish: $(if $(FROM),book,env) ## keep the finished chapters of a config in book/published, with their numbers and commit
	@integrated-cell publish --config config/$(CONFIG).yaml

clean: ## remove .venv and what tools left behind; results/ stays
	rm -rf .venv .snakemake .pytest_cache .ruff_cache build dist *.egg-info
