# `make run` starts the gateway and `make test` checks everything; both install what they need first, into .venv.
# What has to be there: make and Python 3.11 or newer. The tests also need RabbitMQ, nginx, HAProxy and Node.js, which
# root on Debian is given.

PORT ?= 8000
# Not from the environment, where some shells keep the name of the machine under this name.
HOST := 127.0.0.1

VENV := .venv
BIN := $(VENV)/bin
INSTALL := -m pip -qq --disable-pip-version-check --no-input install
PYENV := "$(HOME)/.pyenv/versions"
JS := clients/js
CONSOLE := clients/console
REACT := examples/react
# Most tests wait for something most of the time, so several run at once: each worker has brokers and servers of its own.
PYTEST := -m pytest -n $(or $(TEST_WORKERS),3) --dist loadfile --no-loadscope-reorder

# $(call find,TEST,CANDIDATES) prints the first candidate which passes the test and can make a virtual environment:
# a pyenv shim is on the PATH for versions that are switched off, too, and Debian's Python may lack ensurepip.
find = for python in $(2); do \
	    if "$$python" -c "import sys, ensurepip, venv; v = sys.version_info; sys.exit(not $(1))" 2> /dev/null; \
	    then echo "$$python"; break; fi; \
	done
minor = python3.$(1) $(PYENV)/3.$(1)*/bin/python3

# 3.11 comes first, because nuropb cannot be installed on anything newer.
PYTHONS = $(PYTHON) $(call minor,11) python3 python3.13 python3.12 python3.14

.NOTPARALLEL:
.SECONDARY:
.PHONY: help run test lint format unit integration clean client vendor provision peer pytest pytest-main

help: ## Show this list.
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile

run: $(VENV)/.runtime ## Start the gateway, on PORT (8000) of HOST (127.0.0.1).
	@exec $(BIN)/python -m nuropb_gateway_asgi serve --host $(HOST) --port $(PORT)

test: provision peer lint ## Check style and types, and run all tests; the unit tests on every Python that is found.
	@$(MAKE) --no-print-directory pytest

lint: $(VENV)/.dev $(JS)/.built $(REACT)/.built $(CONSOLE)/.installed ## Check style and types only.
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m ruff check
	$(BIN)/python -m mypy
	@[ ! -e $(JS)/dist ] || { set -x; cd $(JS) && npm run --silent check; }
	@[ ! -e $(CONSOLE)/.installed ] || { set -x; cd $(CONSOLE) && npm run --silent check; }
	@[ ! -e $(REACT)/.built ] || { set -x; cd $(REACT) && npm run --silent check; }

format: $(VENV)/.dev ## Format the code and mend what can be mended.
	$(BIN)/python -m ruff format
	$(BIN)/python -m ruff check --fix

unit: $(VENV)/.dev ## Run the unit tests only, on one Python.
	$(BIN)/python $(PYTEST) tests/unit

integration: provision peer $(VENV)/.dev $(REACT)/.built $(CONSOLE)/.installed ## Run the tests with real brokers, services and servers only.
	$(BIN)/python $(PYTEST) tests/integration

clean: ## Remove everything that was made here.
	rm -rf .venv .venv-* .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
	rm -rf $(JS)/node_modules $(JS)/dist $(JS)/.built tests/servers/openid_provider/node_modules
	rm -rf benchmarks/moleculer/node_modules
	rm -rf $(REACT)/node_modules $(REACT)/.built
	rm -rf $(CONSOLE)/node_modules $(CONSOLE)/.installed
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Python environments. Each is made anew when pyproject.toml changes.

$(VENV)/.runtime: pyproject.toml
	@python=$$($(call find,v.minor >= 11,$(PYTHONS))); \
	if [ -z "$$python" ]; then \
	    echo "Python 3.11 or newer with its venv module is missing: install it (Debian: python3-venv)," \
	        "or name one: make PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$("$$python" --version), which is done once"; \
	rm -rf $(VENV) && "$$python" -m venv $(VENV)
	@$(BIN)/python $(INSTALL) --editable ".[oidc]"
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "Adding the tools for development to $(VENV)"
	@$(BIN)/python $(INSTALL) --upgrade "pip>=25.1"
	@$(BIN)/python $(INSTALL) --editable . --group dev
	@touch $@

# The JavaScript client. What the gateway serves is in the repository; a test builds it anew and compares.

client: $(JS)/.built ## Build the JavaScript client, and put it into the package.
	cp $(JS)/dist/client.js nuropb_gateway_asgi/static/client.js

# Where Node is missing, everything but the client can still be worked on.
$(JS)/.built: $(JS)/package-lock.json $(wildcard $(JS)/*.js* $(JS)/src/*.ts)
	@if ! command -v npm > /dev/null; then \
	    echo "Node is missing, so the JavaScript client is not built and not checked" >&2; \
	    [ -z "$$CI" ]; exit; \
	fi; \
	cd $(JS) && npm ci --silent --ignore-scripts && npm run --silent build && touch .built

# What the console loads of others, and what it and the contract are tested with. What is shipped of it is in the
# repository; a test compares.

vendor: $(CONSOLE)/.installed ## Put what the console loads of others into the package.
	cd $(CONSOLE) && npm run --silent vendor

$(CONSOLE)/.installed: $(CONSOLE)/package-lock.json
	@if ! command -v npm > /dev/null; then \
	    echo "Node is missing, so the console is not checked" >&2; \
	    [ -z "$$CI" ]; exit; \
	fi; \
	cd $(CONSOLE) && npm ci --silent --ignore-scripts && touch .installed

# What the React example is made of.
$(REACT)/.built: $(JS)/.built $(REACT)/package-lock.json
	@command -v npm > /dev/null || exit 0; cd $(REACT) && npm ci --silent --ignore-scripts && touch .built

# Only what the unit tests need, and no nuropb.
.venv-3.%/.unit: pyproject.toml
	@echo "Setting up $(@D) for the unit tests"
	@rm -rf $(@D)
	@"$$($(call find,v.minor == $*,$(call minor,$*)))" -m venv $(@D)
	@$(@D)/bin/python $(INSTALL) --upgrade "pip>=25.1"
	@$(@D)/bin/python $(INSTALL) --editable . --group unit
	@touch $@

# The peers of the integration tests.

provision: $(VENV)/.runtime
	@$(BIN)/python -m tests.servers.provision
	@$(BIN)/python -m tests.servers.javascript

# nuropb's own service and client. Where .venv is not of Python 3.11 they get an environment of their own.
peer: $(VENV)/.runtime
	@$(BIN)/python -c "import nuropb" 2> /dev/null && exit; \
	[ -e .venv-nuropb/.done ] && exit; \
	python=$$($(call find,v.minor == 11,$(call minor,11))); \
	if [ -z "$$python" ]; then \
	    echo "Python 3.11, the only one that runs nuropb, is missing: no test against nuropb's own code can run" >&2; \
	    [ -z "$$CI" ]; exit; \
	fi; \
	rm -rf .venv-nuropb && "$$python" -m venv .venv-nuropb && \
	.venv-nuropb/bin/python $(INSTALL) "nuropb>=0.1.8,<0.2" && touch .venv-nuropb/.done

# The tests on every Python. In a make of its own, because the Pythons are looked for while the Makefile is read.

ifneq ($(filter pytest,$(MAKECMDGOALS)),)
MAIN := $(shell $(BIN)/python -c "import sys; print(sys.version_info.minor)")
OTHERS := $(filter-out $(MAIN),11 12 13 14)
FOUND := $(strip $(foreach m,$(OTHERS),$(if $(shell $(call find,v.minor == $(m),$(call minor,$(m)))),$(m))))
ABSENT := $(filter-out $(FOUND),$(OTHERS))
endif

pytest: pytest-main $(FOUND:%=pytest-3.%)

pytest-main:
	@echo "All tests on Python 3.$(MAIN); the unit tests also on $(or $(FOUND:%=3.%),no other);" \
	    "not found: $(or $(ABSENT:%=3.%),none)"
	$(BIN)/python $(PYTEST) --cov --cov-branch --cov-fail-under=95

pytest-3.%: .venv-3.%/.unit
	.venv-3.$*/bin/python -m pytest -n 2 tests/unit

# The benchmark. Of those that the gateway is compared with, nuropb_gw has an environment of its own, since it can be
# installed on Python 3.11 only, and moleculer-io needs Node. Where they are missing, they are left out.

MOLECULER := benchmarks/moleculer

.PHONY: bench
bench: .venv-bench/.done .venv-bench-nuropb-gw/.done $(MOLECULER)/node_modules/.done ## Measure what requests and connections cost, in under 3 minutes; BENCH=--full takes longer.
	@.venv-bench/bin/python -m tests.servers.provision rabbitmq >&2
	@.venv-bench/bin/python -m benchmarks.run $(BENCH)

.venv-bench/.done: pyproject.toml
	@python=$$($(call find,v.minor >= 11,$(PYTHONS))); \
	if [ -z "$$python" ]; then echo "Python 3.11 or newer with its venv module is missing" >&2; exit 1; fi; \
	echo "Setting up $(@D) with $$("$$python" --version), which is done once" >&2; \
	rm -rf $(@D) && "$$python" -m venv $(@D)
	@$(@D)/bin/python $(INSTALL) --upgrade "pip>=25.1"
	@$(@D)/bin/python $(INSTALL) --editable ".[uvloop]" --group bench
	@touch $@

.venv-bench-nuropb-gw/.done:
	@python=$$($(call find,v.minor == 11,$(call minor,11))); \
	if [ -z "$$python" ]; then \
	    echo "Python 3.11, the only one that runs nuropb_gw, is missing, so it is left out" >&2; exit; \
	fi; \
	echo "Setting up $(@D) with $$("$$python" --version), which is done once" >&2; \
	rm -rf $(@D) && "$$python" -m venv $(@D) && \
	$(@D)/bin/python $(INSTALL) "nuropb-gw==0.1.4" "python-jose[cryptography]>=3.5" && touch $@

$(MOLECULER)/node_modules/.done: $(MOLECULER)/package.json
	@if ! command -v npm > /dev/null; then \
	    echo "Node is missing, so moleculer-io is left out" >&2; exit; \
	fi; \
	echo "Setting up moleculer-io with Node $$(node --version), which is done once" >&2; \
	cd $(MOLECULER) && npm install --silent --no-package-lock --no-audit --no-fund --ignore-scripts && \
	touch node_modules/.done
