# make run: set up and start the service.   make test: set up and run all tests.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup run test check bench soak clean
.DELETE_ON_ERROR:

setup: .venv/ready

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	touch $@

# Written once: secrets of this checkout, which git ignores.
.env: | .venv/ready
	@umask 077 && $(BIN)/python -c "import secrets; \
	print(f'GITHUB_WEBHOOK_SECRET={secrets.token_hex(32)}'); \
	print(f'DIRECTOR_TOKEN={secrets.token_urlsafe(32)}')" > $@
	@echo "wrote .env with a GITHUB_WEBHOOK_SECRET and a DIRECTOR_TOKEN"

run: setup .env
	$(BIN)/director up

test: .venv/ready-dev tests/vendors/node_modules/.ready
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile

# Without npm the vendors' SDKs for Node are left out, and their tests say so.
tests/vendors/node_modules/.ready: tests/vendors/package-lock.json
	if command -v npm >/dev/null; then cd tests/vendors && npm ci --loglevel=error && touch node_modules/.ready; fi

check: .venv/ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/ready-dev
	$(BIN)/python -m bench.state_size
	$(BIN)/python -m bench.startup
	$(BIN)/python -m bench.throughput
	$(BIN)/python -m bench.ingress
	$(BIN)/python -m bench.hostile
	$(BIN)/python -m bench.backlog
	$(BIN)/python -m bench.schedules

# Real processes under faults, ten minutes: make soak SECONDS=60 SEED=7
soak: .venv/ready-dev
	$(BIN)/python -m tests.faults --keep $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS))

clean:
	rm -rf .venv tests/vendors/node_modules .director build dist *.egg-info
