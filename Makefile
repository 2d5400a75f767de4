.DEFAULT_GOAL := help
.PHONY: help setup lint check test services stop stacks examples demo soak hostile bench clean
BIN := .venv/bin

help: ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

setup: ## Install what is missing: system packages, .venv, the project in it
	@scripts/setup

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

check: lint ## Format, lint, layers, types, unit tests: in seconds, without services
	$(BIN)/pytest tests/unit

test: lint ## What check does, and all other tests with a real broker and a real engine
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

services: setup ## Start the private broker and engine; eval "$(make -s services)"
	@scripts/services start

stop: ## Stop the private broker and engine
	@scripts/services stop

stacks: ## Build all stacks of config/stacks, and the bases that they stand on
	@scripts/stacks

examples: ## Run a small program in each language, and compare its output
	@scripts/examples

demo: ## See three jobs go through, from nothing to a result
	@scripts/demo

soak: setup ## Ten minutes of jobs while broker, engine, network and workers fail
	@$(BIN)/python -m scripts.soak

bench: setup ## Measure how fast it is, beside what people would use instead (25 minutes)
	@$(BIN)/python -m bench

hostile: setup ## What a job keeps of its CPU time beside each attack of tests/hostile; on an idle machine
	@$(BIN)/python -m scripts.hostile

clean: ## Stop the private services and delete everything that was made
	@scripts/services clean
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist src/runner/init/bin
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
