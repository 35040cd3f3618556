# `make demo` and `make test` do all their own set-up, in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint clean transformers-tests

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0 --editable '.[dev]'
	touch $@

demo: .venv/ready
	$(BIN)/ehrmamba demo --out demo

test: .venv/ready transformers-tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: .venv/ready transformers-tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

# The common tests of the installed transformers come with its source distribution alone. Where that
# cannot be had, the tests that run them are skipped, and say so.
transformers-tests: .venv/ready
	@version=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("transformers"))'); \
	folder=.cache/transformers-$$version; part=$$folder.part; \
	test -d $$folder || { \
	  rm -rf $$part && mkdir -p $$part && \
	  $(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
	    --no-build-isolation --dest $$part transformers==$$version && \
	  tar -xzf $$part/transformers-$$version.tar.gz -C $$part --strip-components=1 \
	    transformers-$$version/tests && \
	  rm $$part/*.tar.gz && mv $$part $$folder; \
	} || echo "make: no source of transformers $$version: its common tests are skipped"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .cache demo
