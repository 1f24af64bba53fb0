# On a machine with Python 3.11 or newer and make, nothing else:
#
#   make demo      the whole story in one go: index, ask, compare
#   make test      every check
#   make docs      the docs as a site, in build/docs
#   make package   sdist and wheel, and the wheel tried in an empty environment
#   make format    ruff's fixes and formatting
#   make clean     removes all that these made
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
# The FAISS of this machine: the two overwrite each other, so both environments have the same one.
FAISS  := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)

.PHONY: demo test docs package format clean

demo: $(VENV)/.installed
	$(BIN)/matvit demo

test: $(VENV)/.installed-dev
	@echo "Style, types and layers ..."
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@echo "Docs ..."
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Tests ..."
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "The site is in build/docs; to read it: $(BIN)/python -m http.server --directory build/docs"

package: $(VENV)/.installed-dev
	.ci/package $(BIN)/python build/dist

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; try: make PYTHON=python3.12 demo" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.created
	@echo "Installing into $(VENV): ONNX Runtime, FAISS, Streamlit and the rest ..." >&2
	$(PIP) --editable '.[page,demo,$(FAISS)]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing torch, timm and the tools for tests and docs, about 7 GB ..." >&2
	$(PIP) --quiet --editable '.[build,page,serve,demo,docs,dev,$(FAISS)]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
