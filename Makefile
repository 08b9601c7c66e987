# Every command works from a fresh clone: the environment is made when it is missing.

PYTHON ?= python3
# The version that the tests run against. For a machine without a GPU, PIP_EXTRA_INDEX_URL or another
# TORCH can name a CPU build: the default wheel brings CUDA with it where the index serves that.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install demo test check lint verify fuzz bench format generate pictures tools constraints audit clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 14

install: $(VENV)/.installed ## make .venv with everything that the other commands need

$(VENV)/.installed: pyproject.toml setup.py constraints.txt rankscope_attach.pth rankscope_attach.start $(wildcard torch_hooks/native/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: $(PYTHON) is older than Python 3.11: make install PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) -e '.[dev]'
	@touch $@

demo: install ## a distributed job on this machine with a fault, watched
	$(BIN)/rankscope demo

test: install ## the tests: side by side where they do not watch the clock, then the others one by one
	$(BIN)/python -m pytest -m "not verify and not alone" --numprocesses 3 --dist worksteal
	$(BIN)/python -m pytest -m "not verify and alone"

check: lint test ## format, lint, types, import contracts, generated files, tests

lint: install ## all of check but the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/generated.py --check

verify: install ## what takes long: every scenario with three seeds and the experiments, results into docs/
	$(BIN)/python -m pytest -m verify -o faulthandler_timeout=0
	$(BIN)/python benchmarks/slow_gpu_in_backward.py --write docs/decisions/0001-slow-gpu-in-backward.md
	$(BIN)/python benchmarks/hook_cost.py --write docs/hook-cost.md
	$(BIN)/python benchmarks/agent_cost.py --write docs/agent-cost.md
	$(BIN)/python benchmarks/series.py --write docs/scale.md

fuzz: install ## every reader over mutated inputs for ten minutes; what breaks one is added to the corpus
	$(BIN)/python tests/fuzz/run.py --seconds 600 --keep

bench: install ## beside other tools, results into docs/benchmarks.md
	$(BIN)/python benchmarks/peers_agents.py --write docs/benchmarks.md
	$(BIN)/python benchmarks/peers_hooks.py --write docs/benchmarks.md
	$(BIN)/python benchmarks/peers_hook_instructions.py --write docs/benchmarks.md
	$(BIN)/python benchmarks/peers_sketches.py --write docs/benchmarks.md
	$(BIN)/python benchmarks/growth.py --write docs/benchmarks.md

format: install ## rewrite the sources in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

generate: install ## write the files that are generated from the code
	$(BIN)/python scripts/generated.py

pictures: install ## docs/images/dashboard-*.png, drawn from jobs that run now by Grafana's components (needs npm)
	$(BIN)/python scripts/dashboard_pictures.py

tools: install ## the real components that tests run against, into .tools
	$(BIN)/python scripts/fetch_tools.py $(NAMES)

constraints: install ## pin what is installed now
	$(BIN)/python scripts/freeze.py

audit: install ## a bill of materials into build/, and known vulnerabilities (needs the network)
	@mkdir -p build
	@test -x build/audit/bin/pip-audit || { $(PYTHON) -m venv build/audit && build/audit/bin/pip install --quiet \
		'pip-audit>=2.7,<3' 'cyclonedx-bom>=5,<8'; }
	build/audit/bin/cyclonedx-py environment $(BIN)/python --output-file build/sbom.json
	build/audit/bin/pip-audit --path $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

clean: ## remove what was made, .tools excepted
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
