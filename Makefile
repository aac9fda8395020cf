# Needs Python 3.11+ and nothing else: the first target that runs creates .venv and installs into it.

MODERN := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c "$(MODERN)" 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: help train test lint docs notebooks clean

help:
	@echo 'make train ARGS="--model=t2t"   train; by default T2T-ViT on the embedded digits (ARGS=--help lists the options)'
	@echo 'make test  ARGS="-k t2t"        run the tests, torch parity included'
	@echo 'make lint                       ruff: rules and formatting'
	@echo 'make docs                       build the documentation into site/; a warning is an error'
	@echo 'make notebooks                  write notebooks/*.ipynb from the .py files of the same names'
	@echo 'make clean                      remove .venv, site/ and caches; keeps runs/'
	@echo 'PYTHON=python3.12               the interpreter that .venv is made with (make clean first)'

train: .venv/.train
	$(BIN)/python -m train.main $(ARGS)

test: .venv/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal tests $(ARGS)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: .venv/.dev
	$(BIN)/jupytext --update --to ipynb notebooks/*.py

clean:
	rm -rf .venv site .ci/work .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per extra of pyproject.toml: a second make installs nothing, a changed pyproject.toml installs again.
.venv/.train .venv/.dev .venv/.test .venv/.docs: .venv/.%: pyproject.toml | $(BIN)/pip
	@echo 'Installing vit-jax[$*] into .venv: a few minutes, once per change of pyproject.toml'
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --editable '.[$*]' || { \
		echo "make: pip could not install vit-jax[$*] for $$($(BIN)/python --version), see its message above." \
			"Another interpreter may do: make clean, then make PYTHON=..." >&2; exit 1; }
	@touch $@

# pip is the last thing that venv writes, so an interrupted .venv is made again.
$(BIN)/pip:
	@$(or $(PYTHON),false) -c '$(MODERN)' 2>/dev/null || { \
		echo 'make: needs Python 3.11 or newer; name yours with make PYTHON=/path/to/python' >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo 'make: this Python cannot create virtual environments (on Debian: apt install python3-venv)' >&2; exit 1; }
