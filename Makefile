# Needs make, git and a Python 3.11, 3.12 or 3.13 that can make virtual environments; everything else is installed into .venv.
# Another Python: make test PYTHON=/path/to/python3.12. Another place for the environment: make test VENV=/path/to/venv.
# More cores: make test JOBS=8.

VENV ?= .venv
# Test processes, of one thread each: they share the machine better than threads do.
JOBS ?= 2
BIN := $(VENV)/bin
PYTHONS := $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11)
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := $(VENV)/.installed
LAB := $(BIN)/python -m vjepa_lab

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-browser lint lab figures docs doctor clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## from clips to the trade-off figure, in minutes on a CPU
	@$(LAB) run notebooks/00_quickstart.ipynb -o runs/quickstart
	@echo "figures:  runs/quickstart/figures"

test: $(READY) lint ## lint and the default tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-slow: $(READY) ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-browser: $(VENV)/.browser ## JupyterLab in a headless Chromium (which the system provides)
	$(BIN)/python -m pytest -m browser

lint: $(READY)
	$(BIN)/python -m ruff check

lab: $(READY) ## open JupyterLab on the notebooks
	$(BIN)/python -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks

figures: $(READY) ## every table and figure, from the paper's numbers and the runs in runs/: minutes, no data needed
	@for name in 03_tradeoffs 04_ablation 11_paper 12_audit 14_reference_study; do $(LAB) run notebooks/$$name.ipynb || exit 1; done
	@echo "figures:  figures/index.html"

docs: $(VENV)/.docs ## the API reference, from the docstrings, into site/
	$(BIN)/python docs/reference.py site

doctor: $(READY) ## what this machine has, and what will work on it
	@$(LAB) doctor

setup: $(READY) ## install into .venv

clean: ## remove what tools leave behind; runs and figures stay
	rm -rf .pytest_cache .ruff_cache build dist
	find vjepa_lab tests notebooks -name __pycache__ -prune -exec rm -rf {} + -o -name .ipynb_checkpoints -prune -exec rm -rf {} +

distclean: clean ## also remove .venv
	rm -rf $(VENV) *.egg-info

# Installed anew only when what is wanted changes.
$(READY): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $@

$(VENV)/.browser: $(READY)
	$(PIP) install -c constraints.txt -e ".[dev,browser]"
	@touch $@

$(VENV)/.docs: $(READY)
	$(PIP) install -c constraints.txt -e ".[dev,docs]"
	@touch $@

$(BIN)/python:
	@for python in $(PYTHONS); do \
	  $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && break; \
	  python=; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "vjepa_lab needs Python 3.11, 3.12 or 3.13. Found: $$($(firstword $(PYTHONS)) -V 2>&1 || true)." >&2; \
	  echo "Install one, or name it: make $(or $(firstword $(MAKECMDGOALS)),setup) PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi; \
	echo "creating $(VENV) with $$($$python -V)"; \
	$$python -m venv $(VENV) || { \
	  rm -rf $(VENV); \
	  echo "This Python cannot make virtual environments; Debian and Ubuntu have that in the package python3-venv." >&2; \
	  exit 1; \
	}
