# Every target makes what it needs; `make` alone lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

export PIP_DISABLE_PIP_VERSION_CHECK = 1
.DEFAULT_GOAL := help
.PHONY: help demo test check lint type fmt registries-up registries-down bench bench-outages bench-scale bench-pick \
        simulate docs proofs storm soak clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## watch requests flow while servers die, leave and arrive (REGISTRY=etcd or consul for real ones)
	$(BIN)/lbclient demo $(if $(REGISTRY),--registry $(REGISTRY))

# Four on two cores: half of the time they wait for servers.
test: $(READY) ## all tests, against real etcd and Consul (ARGS="-k name" to choose, JOBS=1 one by one)
	$(BIN)/python -m pytest -n $(or $(JOBS),4) $(ARGS)

check: lint type test ## lint, types and tests: what CI runs

lint: $(READY) ## ruff, rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY) ## mypy --strict on both packages
	$(BIN)/mypy

fmt: $(READY) ## format, and mend what can be mended automatically
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

registries-up: ## three etcd members and a Consul agent in Docker, on loopback
	docker compose up --detach --wait
	@echo 'now: export LBCLIENT_ETCD=127.0.0.1:12379,127.0.0.1:22379,127.0.0.1:32379 LBCLIENT_CONSUL=127.0.0.1:18500'

registries-down: ## stop them and drop their data
	docker compose down --volumes

bench: $(READY) ## what a balanced request costs beside a bare one, and how fast a change arrives
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/attempt_loop.py
	$(BIN)/python benchmarks/propagation.py

bench-outages: $(READY) ## how soon an outage of a registry is known and over, some minutes
	$(BIN)/python benchmarks/outages.py

bench-scale: $(READY) ## what ten thousand endpoints cost at the start
	$(BIN)/python benchmarks/scale.py

bench-pick: $(READY) ## what a pick and a change of the set cost with 3, 100 and 10 000 nodes, a minute or two
	$(BIN)/python benchmarks/pick.py $(ARGS)

simulate: $(READY) ## compare the policies in virtual time, some minutes; plots in OUT=simulated (ARGS="--help")
	$(BIN)/python -m pip install --quiet --group simulation
	$(BIN)/python benchmarks/simulate.py --out $(or $(OUT),simulated) $(ARGS)

docs: $(READY) ## write docs/defaults.md from the code
	$(BIN)/python docs/defaults.py

proofs: $(READY) ## restarts, kills, outages and silence under load with real servers, with their numbers, some minutes
	LBCLIENT_PROOFS=whole $(BIN)/python -m pytest -q -s tests/proofs --deselect tests/proofs/test_storm.py $(ARGS)

storm: $(READY) ## a minute of random faults and churn at 100 requests a second (SECONDS=n)
	LBCLIENT_SOAK_SECONDS=$(or $(SECONDS),60) LBCLIENT_SOAK_SEED=$${RANDOM_SEED:-$$(date +%s)} \
		$(BIN)/python -m pytest -q -s tests/proofs/test_storm.py $(ARGS)

soak: $(READY) ## ten minutes of random faults and churn under load, then disasters on real registries (SECONDS=n for each)
	$(MAKE) --no-print-directory storm SECONDS=$(or $(SECONDS),600)
	LBCLIENT_SOAK_SECONDS=$(or $(SECONDS),150) LBCLIENT_SOAK_SEED=$${RANDOM_SEED:-$$(date +%s)} \
		$(BIN)/python -m pytest -q -s tests/discovery/test_convergence.py $(ARGS)

clean: ## remove the virtual environment and all caches of this folder
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Made in one go, so that an installation that was cut off is not taken for a whole one.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "installing into $(VENV), this takes about half a minute ..." >&2
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'  # the first with --group
	$(BIN)/python -m pip install --quiet --editable '.[all]' --group dev
	@touch $@
