# `make demo` and `make test` each set up everything they need in .venv, once.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Of benchmarks: small, medium or large; where results go; the commit they are of, where there is no git.
# Of tests: how many processes, and what their order is drawn from: a commit's own, so that a failure comes again.
# Compiled modules are kept, even where the environment says otherwise: hundreds of processes import PyTorch.
# On a GPU, of tests one case in so many, and processes, which compile; of benchmarks seconds after which none is begun.
SIZE       ?= small
RESULTS    ?= benchmarks/results
COMMIT     ?=
WORKERS    ?= 2
SEED       ?= $(shell printf %d 0x$$(git rev-parse --short=7 HEAD 2>/dev/null || echo 0))
PYTEST      = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --randomly-seed=$(SEED)
SHARE      ?= 1
COMPILE    ?= 8
TIME_LIMIT ?= 240

.PHONY: demo test test-fast test-op lint docs test-gpu bench bench-gpu dry-run-gpu bench-report release audit clean

demo: $(VENV)/.installed-demo
	$(BIN)/hysac demo --out runs/demo

# Several processes, one thread each.
test: $(VENV)/.installed-test
	$(PYTEST) tests

# One case of each test that takes no seconds.
test-fast: $(VENV)/.installed-test
	$(PYTEST) tests --share 1000 -m "not slow"

# For the author of a kernel: OP=distance, or another folder with an op.py, and its kernels here and on every target.
test-op: $(VENV)/.installed-test
	$(PYTEST) tests/hypkernels --op $(OP)
	TRITON_INTERPRET=1 HYPKERNELS_BACKEND=auto $(PYTEST) tests/kernels/test_$(OP)_kernel.py --share 8
	$(BIN)/python -m hypkernels.tritonlib.aot --only $(OP)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages of docs/ and the reference as a site, in runs/site. Its search needs a server, such as Python's:
# python -m http.server -d runs/site
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build -f docs/site/mkdocs.yml

# On a machine with a GPU and any Python that has torch, triton, numpy, pytest and, unless COMPILE=1, pytest-xdist.
test-gpu:
	$(PYTHON) -m pytest tests/kernels tests/gpu -p no:randomly $(if $(filter-out 1,$(COMPILE)),-n $(COMPILE)) --share $(SHARE) --gpu-record runs/gpu.json

# A wrong result fails the benchmarks, and is reported all the same.
bench: $(VENV)/.installed-bench
	$(BIN)/python -m pytest benchmarks -p no:randomly --size $(SIZE) --results $(RESULTS); status=$$?; \
	$(BIN)/python -m benchmarks.report --results $(RESULTS) && exit $$status

# The same with pytest-benchmark and matplotlib. Cut short, it goes on where it stopped.
bench-gpu:
	$(PYTHON) -m benchmarks.compile --device cuda --size large --workers $(COMPILE)
	$(PYTHON) -m pytest benchmarks -p no:randomly --device cuda --size large --time-limit $(TIME_LIMIT) --results $(RESULTS) --commit "$(COMMIT)"; \
	status=$$?; $(PYTHON) -m benchmarks.retrieval --device cuda --queries 1000 --items 1000000 --rounds 20 \
		--results $(RESULTS) --commit "$(COMMIT)" || status=1; \
	$(PYTHON) -m benchmarks.report --results $(RESULTS) && exit $$status

# Both, and the tuner, on a CPU that passes for a GPU: nothing is measured. See docs/tuning.md.
dry-run-gpu: $(VENV)/.installed-bench $(VENV)/.installed-test
	rm -rf runs/dry-run
	$(BIN)/python tests/dry_run_gpu.py runs/dry-run

bench-report: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.report --results $(RESULTS)

# The files of a release, in dist: the sources, a wheel with the compiled lane for Linux, and one without for the rest;
# then each in an environment of its own, with a compiler and without. See docs/releasing.md.
release: $(VENV)/.installed-release
	rm -rf dist build runs/release
	$(BIN)/python -m build --sdist
	$(BIN)/python -m pip wheel --no-deps --no-cache-dir -w runs/release dist/*.tar.gz
	PATH="$(BIN):$$PATH" $(BIN)/auditwheel repair --plat manylinux_2_17_$$(uname -m) -w dist runs/release/*.whl
	HYPKERNELS_PURE=1 $(BIN)/python -m pip wheel --no-deps --no-cache-dir -w dist dist/*.tar.gz
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python tests/try_release.py dist --resolved runs/release/resolved.txt

# What a user's environment would hold, against the advisories for Python packages, which are asked for on the network.
audit: $(VENV)/.installed-release
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r runs/release/resolved.txt

clean:
	rm -rf $(VENV) runs build dist *.egg-info

# A stamp per set of extras: a second run installs nothing unless pyproject.toml changed. Modules are compiled when
# they are first imported, which most never are: that halves the time of an install.
$(VENV)/.installed-demo: pyproject.toml setup.py | $(BIN)/python
	$(BIN)/python -m pip install --no-compile --progress-bar on -e '.[train,calibrate]'
	touch $@

$(VENV)/.installed-test: pyproject.toml setup.py | $(BIN)/python
	$(BIN)/python -m pip install --no-compile --progress-bar on -e '.[train,bench,serve,docs,test,test-engines]'
	touch $@

$(VENV)/.installed-docs: pyproject.toml setup.py | $(BIN)/python
	$(BIN)/python -m pip install --no-compile --progress-bar on -e '.[docs]'
	touch $@

$(VENV)/.installed-release: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --no-compile --progress-bar on -e '.[release]'
	touch $@

$(VENV)/.installed-bench: pyproject.toml setup.py | $(BIN)/python
	$(BIN)/python -m pip install --no-compile --progress-bar on -e '.[train,bench,bench-peers]'
	touch $@

# What a venv that failed half-way leaves would pass for a whole one.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
