# Everything a user or CI calls. `make help` lists the targets.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
TOOLS := $(CURDIR)/.tools
PROTO := proto/translator/v1/translation.proto
GENERATED := translator/v1

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

PROTOC = $(BIN)/python -m grpc_tools.protoc -Iproto -I$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

proto: setup ## generate the Python stubs from proto/
	@mkdir -p $(GENERATED) && touch $(GENERATED)/__init__.py
	$(PROTOC) --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	  --python_out=. --grpc_python_out=. --mypy_out=. --mypy_grpc_out=. $(PROTO)

# Generates into a scratch folder and compares, so that a forgotten `make proto` fails the build.
proto-check: setup
	@scratch=$$(mktemp -d) && trap 'rm -rf $$scratch' EXIT && \
	$(PROTOC) --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	  --python_out=$$scratch --grpc_python_out=$$scratch --mypy_out=quiet:$$scratch --mypy_grpc_out=quiet:$$scratch $(PROTO) && \
	for file in $$scratch/$(GENERATED)/*; do \
	  cmp -s $$file $(GENERATED)/$$(basename $$file) || { echo "$(GENERATED)/$$(basename $$file) is stale: run make proto"; exit 1; }; \
	done && echo "generated stubs are up to date"
