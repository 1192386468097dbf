# Everything a user or CI calls. `make help` lists the targets.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
TOOLS := $(CURDIR)/.tools
PROTO := proto/translator/v1/translation.proto
GENERATED := translator/v1

.PHONY: help setup run test lint format client tools load bench train fuzz wheel docs clean proto proto-check

.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(VENV)/.complete ## create .venv from requirements.lock and install the project into it

# The stamp is written last: an interrupted setup starts again.
$(VENV)/.complete: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or later is needed; name it with: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up $(VENV) (the first time takes a minute or two: torch is large) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: setup ## start the server on the embedded model
	@exec $(BIN)/comment-translate serve

test: setup proto-check ## run the tests
	$(BIN)/python -m pytest

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## let ruff format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

client: setup ## call the running server from Python
	@$(BIN)/python docs/client.py $(ARGS)

GHZ_VERSION := v0.121.0
GRPCURL_VERSION := v1.9.4

tools: $(TOOLS)/.ghz-$(GHZ_VERSION) $(TOOLS)/.grpcurl-$(GRPCURL_VERSION) ## install ghz and grpcurl into .tools (needs Go)

# A stamp per version: a new pin installs anew, a second `make tools` does nothing.
$(TOOLS)/.ghz-$(GHZ_VERSION): PACKAGE = github.com/bojand/ghz/cmd/ghz@$(GHZ_VERSION)
$(TOOLS)/.grpcurl-$(GRPCURL_VERSION): PACKAGE = github.com/fullstorydev/grpcurl/cmd/grpcurl@$(GRPCURL_VERSION)
$(TOOLS)/.ghz-$(GHZ_VERSION) $(TOOLS)/.grpcurl-$(GRPCURL_VERSION):
	@command -v go >/dev/null || { echo "ghz and grpcurl are written in Go, which is not installed. Get it from https://go.dev/dl/ (1.24 or later), then: make tools. Everything else works without it."; exit 1; }
	@mkdir -p $(TOOLS)
	@echo "Building $(PACKAGE) (the first time takes a minute or three) ..."
	@GOBIN=$(TOOLS) GOFLAGS=-trimpath CGO_ENABLED=0 go install -ldflags='-s -w' $(PACKAGE)
	@touch $@

load: setup tools ## load test with ghz into bench/results/ (ARGS=--quick: a smoke run)
	@$(BIN)/python -m bench.load $(ARGS)

bench: setup tools ## throughput side by side: plain transformers server, LibreTranslate, CTranslate2, ours
	@$(BIN)/python -m bench.throughput $(ARGS)

RUNS := build/train

train: setup ## train both embedded models from models/data into build/train (resumes; ARGS='--device cuda ...')
	$(BIN)/python models/train.py prepare --data models/data --out $(RUNS)/data
	for pair in zh-en en-zh; do \
	  $(BIN)/python models/train.py train --data $(RUNS)/data --pair $$pair --out $(RUNS)/$$pair $(ARGS) && \
	  $(BIN)/python models/train.py export --run $(RUNS)/$$pair --pair $$pair --out $(RUNS)/model/$$pair || exit 1; \
	done
	@echo "Serve them: comment-translate serve --model zh-en=$(RUNS)/model/zh-en,en-zh=$(RUNS)/model/en-zh"

fuzz: setup ## a million generated comments through mask and restore (ARGS='--count 10000': fewer)
	@$(BIN)/python tests/fuzz_text.py $(ARGS)

wheel: setup ## build dist/*.whl, models included
	@$(BIN)/python -m hatchling build -t wheel

docs: setup ## write the generated parts of the README
	@$(BIN)/python docs/generate.py

clean: ## remove .venv, .tools and caches
	rm -rf $(VENV) $(TOOLS) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# googleapis-common-protos brings google/rpc/status.proto into site-packages.
define generate
$(BIN)/python -m grpc_tools.protoc -Iproto -I$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
  --python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) $(PROTO)
endef

proto: setup ## generate the Python stubs from proto/
	@touch $(GENERATED)/__init__.py
	@$(call generate,.) && echo "generated $(GENERATED)"

# Generates into a scratch folder and compares, so that a forgotten `make proto` fails the build.
proto-check: setup
	@scratch=$$(mktemp -d) && trap 'rm -rf $$scratch' EXIT && $(call generate,$$scratch) && \
	for file in $$scratch/$(GENERATED)/*; do \
	  cmp -s $$file $(GENERATED)/$$(basename $$file) || { echo "$(GENERATED)/$$(basename $$file) is stale: run make proto"; exit 1; }; \
	done && echo "generated stubs are up to date"
