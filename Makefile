# Every target sets up what it needs; all of them are repeatable.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := .venv-peers

.PHONY: install demo lab test test-gpu lint bench peers clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,test,dev]'
	touch $@

demo: install
	$(BIN)/jupyter gpu demo $(DEMO_ARGS)

lab: install
	$(BIN)/jupyter lab examples

test: install
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-gpu: install
	$(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# What the benchmarks compare with lives apart, over the libraries of $(VENV): pins of its own
# disturb nothing, and both sides run the same Python, numpy and torch.
peers: $(PEERS)/.installed

$(PEERS)/.installed: benchmarks/peers.txt $(STAMP)
	rm -rf $(PEERS)
	$(BIN)/python -m venv $(PEERS)
	$(PEERS)/bin/python -c 'import sys, sysconfig; \
	  f = open(sysconfig.get_path("purelib") + "/over.pth", "w"); \
	  f.write("import site; site.addsitedir(%r)\n" % sys.argv[1]); f.close()' \
	  "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt
	touch $@

bench: install peers
	for file in benchmarks/bench_*.py benchmarks/*_overhead.py benchmarks/reclaim.py benchmarks/snapshot.py; do $(BIN)/python $$file --quick || exit 1; done

clean:
	rm -rf $(VENV) $(PEERS) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
