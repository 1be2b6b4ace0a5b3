# Needs make, and Python 3.10 or newer with venv and pip. `make` alone lists the targets.
#   make test PYTHON=python3.12        another interpreter
#   make test ARGS="-k frames -x"      arguments for pytest, or for what else the target runs

PYTHON ?= python3
VENV ?= .venv
DEMO_VENV ?= .venv-demo
DOCS_VENV ?= .venv-docs
TOOLS_VENV ?= .venv-tools
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo picture test check format docs compat dist bench duplex flood switchover chaos clean

ASK_VERSION := import pip, sys; print("%d.%d" % sys.version_info[:2])
VERSION := $(shell "$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
# The stamps name the Python version, so that another PYTHON makes the environment anew.
DEV := $(VENV)/.installed-dev-$(VERSION)
DEMO := $(DEMO_VENV)/.installed-demo-$(VERSION)
DOCS := $(DOCS_VENV)/.installed-docs-$(VERSION)
TOOLS := $(TOOLS_VENV)/.installed-tools-$(VERSION)
RUN := $(VENV)/bin/python -m

# $(call install,folder,extras): a virtual environment with this package (editable) and its extras
define install
@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	{ echo '$(PYTHON) is missing or older than 3.10. Try PYTHON=python3.12' >&2; exit 1; }
@echo '== $(1): Python $(VERSION), installing .[$(2)]'
@[ "$$($(1)/bin/python -c '$(ASK_VERSION)' 2>/dev/null)" = '$(VERSION)' ] || "$(PYTHON)" -m venv --clear $(1)
@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$(2)]'
@rm -f $(1)/.installed-* && touch $@
endef

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' Makefile

demo: $(DEMO) ## install into .venv-demo and show a pool at work, against a local server
	@$(DEMO_VENV)/bin/llm-sessions demo $(ARGS)

picture: $(DEV) ## run the demo and draw docs/demo.svg, the picture of it in README.md
	@$(VENV)/bin/python tools/draw_demo.py docs/demo.svg

test: $(DEV) ## the whole test suite
	@$(RUN) pytest $(ARGS)

check: $(DEV) ## what must pass before a merge: format, lint, types, tests with branch coverage of 95 %
	@failed=; \
	echo '== format'; $(RUN) ruff format --check . || failed="$$failed format"; \
	echo '== lint'; $(RUN) ruff check . || failed="$$failed lint"; \
	echo '== types'; $(RUN) mypy --strict || failed="$$failed types"; \
	echo '== tests'; \
	$(RUN) pytest -n auto --cov --cov-report=term --cov-fail-under=95 $(ARGS) || failed="$$failed tests"; \
	[ -z "$$failed" ] || { echo "== failed:$$failed" >&2; exit 1; }

format: $(DEV) ## format the code, and repair what lint can repair
	@$(RUN) ruff check --fix-only --quiet .
	@$(RUN) ruff format .

docs: $(DOCS) ## the documentation, into docs/_build/html; a warning is an error
	@$(DOCS_VENV)/bin/python -m sphinx --quiet --fail-on-warning --keep-going -b html docs docs/_build/html $(ARGS)
	@echo '== docs/_build/html/index.html'

compat: $(TOOLS) ## the tests on every Python, with the lowest and the newest dependencies; ARGS="-e py310-lowest -- -k url"
	@$(TOOLS_VENV)/bin/tox run $(ARGS)

dist: $(TOOLS) ## build sdist and wheel into dist, check both, and run the demo from the wheel in an empty environment
	@rm -rf build dist *.egg-info  # setuptools would pack what an old egg-info lists
	@$(TOOLS_VENV)/bin/python -m build --outdir dist .
	@$(TOOLS_VENV)/bin/python -m twine check --strict dist/*
	@$(TOOLS_VENV)/bin/python tools/check_dist.py dist

bench: $(DEV) ## measure everything beside others and write docs/benchmarks; ARGS=--quick for 2 minutes instead of 20
	@$(VENV)/bin/python benchmarks/bench.py $(ARGS)

duplex: $(DEV) ## disconnect and connect again 200 times on wss, with both directions full
	@DUPLEX_CYCLES=200 $(RUN) pytest tests/end_to_end/test_duplex.py $(ARGS)

flood: $(DEV) ## CPU per message under a flood, ours beside a hand-written loop
	@$(VENV)/bin/python benchmarks/flood.py $(ARGS)

switchover: $(DEV) ## a server is replaced under load: a timeline, and whether a message was lost or came twice
	@$(VENV)/bin/python benchmarks/switchover.py $(ARGS)

chaos: $(DEV) ## an account of every message under faults: MINUTES=8 for longer, SEED=17 for a round again
	@$(RUN) tests.chaos $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(ARGS)

clean: ## remove the environments and all that the tools left
	@rm -rf $(VENV) $(DEMO_VENV) $(DOCS_VENV) $(TOOLS_VENV) .tox build dist *.egg-info htmlcov .coverage .coverage.* \
		.mypy_cache .pytest_cache .ruff_cache .hypothesis docs/_build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo '== clean'

$(DEV): setup.py
	$(call install,$(VENV),dev)

$(TOOLS): setup.py
	$(call install,$(TOOLS_VENV),compat$(comma)release)

$(DEMO): setup.py
	$(call install,$(DEMO_VENV),testing$(comma)speed$(comma)cli)

$(DOCS): setup.py
	$(call install,$(DOCS_VENV),docs)

comma := ,
