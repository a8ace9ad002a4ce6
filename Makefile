# `make` alone lists the targets. Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
# Targets are relative: Make takes words apart at spaces, which the path of this folder may have.
# Named by the contents of what it was made from: a second run installs nothing, a changed pin installs again.
PINS := $(shell cat pyproject.toml constraints.txt | cksum | tr ' ' '-')
INSTALLED := .venv/.installed-$(PINS)
# What tests, lint and docs need besides: a first run does not wait for it.
DEV := .venv/.dev-$(PINS)
PIP := .venv/bin/python -m pip install --quiet --no-compile --progress-bar off --constraint constraints.txt
# PROFILE=profiles/slurm runs on a cluster.
SNAKEMAKE := snakemake $(if $(PROFILE),--profile $(PROFILE),--cores all)
MKDOCS := NO_MKDOCS_2_WARNING=1 mkdocs
# Two files at a time, those with the most tests first: a file's tests share what one of them opens.
PYTEST := pytest --numprocesses 2 --dist loadfile
ARGS ?=

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help install run report study sync test test-all lint docs docs-serve clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## create .venv with the pinned versions; tests, lint and docs add what they need

$(INSTALLED):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { \
	  echo "Python 3.11 or 3.12 is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	  "Try: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	@# pip would compile on one core. Templates among the packages' files are no Python: that fails.
	@.venv/bin/python -m compileall -qq -j 0 .venv/lib || :
	@rm -f .venv/.installed-*
	@touch $@

$(DEV): $(INSTALLED)
	$(PIP) --editable '.[dev]'
	@rm -f .venv/.dev-*
	@touch $@

run: $(INSTALLED) ## run the whole pipeline of params.yaml and write the report (ARGS="--dry-run" shows what would run)
	$(SNAKEMAKE) $(ARGS)

report: $(INSTALLED) ## after a run: Snakemake's own report, beside the page (rules, times, figures with captions)
	$(SNAKEMAKE) $(ARGS) --report results/report/workflow.html

study: $(INSTALLED) ## train the variants of `study` in params.yaml over seeds and compare them (four hours or more on two cores)
	$(SNAKEMAKE) $(ARGS) study
	@echo "Study: $$PWD/results/study/index.html"

sync: $(INSTALLED) ## after `git checkout` or `dvc pull`: make files, DVC and Snakemake agree without running anything
	@# The lock ends with the first command: Snakemake takes it below.
	@said=$$(python -c 'from pathlib import Path; from star.system.locks import take_lock; take_lock(Path(".star/workflow.lock"), "")' 2>&1) \
	  || { echo "$$said" | tail -n 1 >&2; exit 1; }
	dvc checkout
	@# Touching blesses whatever lies on the disk, so only what DVC knows to be right is touched.
	@dvc status --quiet || { echo "dvc status is not clean: run 'dvc pull', or 'make run'" >&2; exit 1; }
	@mkdir -p .star && touch .star/versions-recorded
	snakemake --cores 1 --touch --forceall --quiet

test: $(DEV) ## run the tests that take seconds, after a change (two to seven minutes on two cores)
	$(PYTEST) -m "not slow" $(ARGS)

test-all: test ## run these and the slow ones: Snakemake, DVC, torchrun, SLURM, a browser
	$(PYTEST) -m slow $(ARGS)

lint: $(DEV) ## check style, types, the direction of imports and the links of the documentation
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	mypy
	lint-imports --no-cache
	$(MKDOCS) build --quiet

docs: $(DEV) ## build the documentation into site/
	$(MKDOCS) build
	@echo "Docs: $(CURDIR)/site/index.html"

docs-serve: $(DEV) ## show the documentation at http://127.0.0.1:8000
	$(MKDOCS) serve

clean: ## remove results, logs and resume states; keep .venv, DVC's cache and the study
	rm -rf results/prompts results/core results/train results/evaluate results/report logs .star .snakemake dvc_plots site
