# Two commands do everything: `make run` and `make test`. Nothing unchanged is installed or trained again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test test-vllm lint poet-long clean help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

run: $(VENV)/installed ## train the poet and open the studio at http://127.0.0.1:8400
	$(BIN)/wenfang run recipes/poet.yaml
	$(BIN)/wenfang studio runs/poet

# Most tests are too small for two threads: two processes of one thread take half the time.
test: export OMP_NUM_THREADS = 1
test: $(VENV)/installed-test lint ## run the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-vllm: export OMP_NUM_THREADS = 1
test-vllm: $(VENV)/installed-test ## compare our engine with a vLLM on the PATH; it is not installed
	$(BIN)/python -m pytest tests/cli/test_real_vllm.py

lint: $(VENV)/installed-test ## ruff, strict types, and which room may import which
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

poet-long: $(VENV)/installed ## the longer recipe, half an hour on two cores
	$(BIN)/wenfang run recipes/poet-long.yaml

clean: ## remove the environment and every run
	rm -rf $(VENV) runs

$(VENV)/created:
	$(PYTHON) -c 'import sys; sys.exit("Wenfang needs Python 3.11 or newer; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/installed: $(VENV)/created pyproject.toml requirements.lock
	$(BIN)/pip install --quiet -c requirements.lock -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install --quiet -c requirements.lock -e '.[test,lint]'
	touch $@
