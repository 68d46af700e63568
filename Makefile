# Each target does its own set-up: a fresh machine needs Python 3.10 to 3.13 and a C++ compiler.
# Development happens in the active virtual environment, or in .venv-dev where none is active.

PYTHON ?= python3
DEMO := .venv
DEV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv-dev)
RUN := $(DEV)/bin/python -m
COMPAT := .venv-compat
EXPORTED := $(wildcard tests/test_export_*.py) tests/test_hugging_face.py tests/test_lavis.py
CORE := $(wildcard engines/*.cpp engines/*.h)
SOURCES := $(CORE) $(wildcard tests/native/*.cpp)

.PHONY: demo test test-slow test-compat lint format bench clean

demo: $(DEMO)/installed  ## the runtime alone, as a user installs it; captions a photograph
	$(DEMO)/bin/blip2rt caption docs/photo.jpg

test: $(DEV)/blip2rt-installed
	$(RUN) pytest

test-slow: $(DEV)/blip2rt-installed
	$(RUN) pytest -m slow

test-compat: $(COMPAT)/blip2rt-installed  ## the exporter's tests with the oldest transformers that it works with
	$(COMPAT)/bin/python -m pytest $(EXPORTED)

lint: $(DEV)/blip2rt-installed
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(DEV)/bin/lint-imports
	$(DEV)/bin/clang-format --dry-run --Werror $(SOURCES)

format: $(DEV)/blip2rt-installed
	$(RUN) ruff check --fix .
	$(RUN) ruff format .
	$(DEV)/bin/clang-format -i $(SOURCES)

bench: $(DEV)/blip2rt-installed  ## speed and memory of the embedded model on this machine
	$(RUN) benchmarks.nano

$(DEMO)/installed: pyproject.toml CMakeLists.txt $(CORE) $(shell find blip2rt -name '*.py')
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python -m pip install --quiet .
	touch $@

# Editable, so that only a change of the core or of what is needed installs anew.
$(DEV)/blip2rt-installed: pyproject.toml CMakeLists.txt $(CORE)
	test -x $(DEV)/bin/python || $(PYTHON) -m venv $(DEV)
	$(DEV)/bin/python -m pip install --quiet -e ".[dev]" -Ccmake.define.BLIP2RT_WERROR=ON
	touch $@

$(COMPAT)/blip2rt-installed: pyproject.toml CMakeLists.txt $(CORE)
	test -x $(COMPAT)/bin/python || $(PYTHON) -m venv $(COMPAT)
	$(COMPAT)/bin/python -m pip install --quiet -e ".[export]" pytest "transformers==4.57.*"
	touch $@

clean:
	rm -rf build .venv .venv-dev .venv-compat
