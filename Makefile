# What a developer types. Every target sets up what it needs; plain `make` lists them.
#   make PYTHON=python3.12 test     another interpreter
#   make WORKERS=4 test             more test processes

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
# One thread a process: two processes that each take every core only wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest
FAST := -m "not slow"

# A study goes on where it stopped; without the text collection beside the checkout it is skipped.
STUDIES := ../shared/data
define study
	@if [ -d $(STUDIES) ]; then $(BIN)/moiety study studies/$(1).toml --out studies/out/$(1); \
	else echo "skipped: no text collection at $(STUDIES)"; fi
endef

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo test test-slow check laws docs bench fuzz load clean
.PHONY: vllm test-vllm bench-vllm
.PHONY: study-tiny study-small study-eight study-privacy

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Make .venv with what the commands need
	@PYTHON=$(PYTHON) tools/setup.sh

setup-dev:
	@PYTHON=$(PYTHON) tools/setup.sh dev

vllm: ## Make .venv-vllm for `moiety serve --engine vllm` (3.4 GB)
	@PYTHON=$(PYTHON) tools/setup_vllm.sh

test-vllm: setup-dev vllm ## The tests that start vLLM (ten minutes)
	MOIETY_TEST_VLLM=1 $(PYTEST) tests/serve/test_vllm.py tests/serve/test_vllm_served.py

bench-vllm: setup-dev vllm ## vLLM behind our engine beside plain vLLM
	PYTHONPATH=. $(BIN)/python tools/bench_vllm.py

demo: setup ## The whole story on this machine, told anew in demo/
	rm -rf demo
	$(BIN)/moiety demo --out demo

test: setup-dev ## Every fast test; warnings are errors
	$(PYTEST) -n $(WORKERS) --dist worksteal $(FAST)

test-slow: setup-dev ## The tests that take minutes
	$(PYTEST) -m slow

check: setup-dev ## Format, lint, types, and the map of the house
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) tests/house

laws: setup-dev ## The claims the project stands on
	$(PYTEST) tests/laws $(FAST)

docs: setup-dev ## Write commands and settings pages anew, check every page
	$(BIN)/python tools/write_pages.py
	$(PYTEST) tests/docs

bench: setup-dev ## Time and memory of every tools/bench_*.py
	@for bench in tools/bench_*.py; do echo "== $$bench"; PYTHONPATH=. $(BIN)/python $$bench || exit 1; done

fuzz: setup-dev ## Every request that the server's own description can spell, for minutes
	FUZZ_CASES=3000 $(PYTEST) -s tests/serve/test_fuzz.py

load: setup-dev ## A real server under 200 clients, 10,000 requests, and long beside short
	PYTHONPATH=. $(BIN)/python tools/load_serve.py --out studies/out/load

study-tiny: setup ## Every way to merge, on real text, in under half an hour
	$(call study,flexmix-tiny)

study-small: setup ## The comparison that docs/results.md rests on (a night; goes on where it stopped)
	$(call study,flexmix-small)

study-eight: setup ## Eight owners
	$(call study,flexmix-8)

study-privacy: setup-dev ## Bits per byte and measured leaks against epsilon (two hours; goes on where it stopped)
	@if [ -d $(STUDIES) ]; then $(BIN)/python tools/study_privacy.py --data $(STUDIES)/medical \
		--anchor studies/out/flexmix-small/anchor; \
	else echo "skipped: no text collection at $(STUDIES)"; fi

clean: ## Remove what was built; keeps demo/
	rm -rf .venv .venv-vllm dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
