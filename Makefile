# Sets up a virtual environment in the checkout, and runs the demo, the tests, the checks and the benches.

PYTHON ?= python3
EXTRAS ?= train,dev,cuda13
# An interpreter that is named has an environment of its own, so that `make test PYTHON=...` tests it.
VENV := .venv
ifeq ($(origin PYTHON),command line)
VENV := .venv-$(notdir $(PYTHON))
endif
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OLDEST := $(VENV)-oldest
NEWEST := $(VENV)-newest
UNFINISHED := $(VENV)/.unfinished
DOCS_INSTALLED := $(VENV)/.docs-installed

CONSTRAINTS := .ci/constraints.txt
DRIVER := $(shell command -v nvidia-smi || ls /proc/driver/nvidia/version 2>/dev/null)
ifeq ($(DRIVER),)
CONSTRAINTS += .ci/constraints-cpu.txt
endif

# Installs the package with these extras. uv does it faster, and does not read how pip is set up: so it
# is told where pip looks for packages.
PIP := $(BIN)/python -m pip
PIP_INSTALL := $(PIP) install --quiet --disable-pip-version-check $(addprefix --constraint ,$(CONSTRAINTS))
define install
	@links="$${UV_FIND_LINKS-$${PIP_FIND_LINKS-$$($(PIP) config get global.find-links 2>/dev/null)}}"; \
	if [ -n "$$links" ]; then export UV_FIND_LINKS="$$links"; fi; \
	if [ -n "$$PIP_INDEX_URL" ]; then export UV_DEFAULT_INDEX="$$PIP_INDEX_URL"; fi; \
	{ $(PIP_INSTALL) uv && $(BIN)/python -m uv pip install --quiet --python $(BIN)/python \
	    $(addprefix --constraint ,$(CONSTRAINTS)) --editable '.[$(1)]'; } || { \
	    echo "uv did not install all, so pip does, which takes longer" >&2; \
	    $(PIP_INSTALL) --no-compile --editable '.[$(1)]'; }
endef

BENCHES := bench/bench_index.py bench/bench_cages.py bench/bench_sampling.py bench/bench_advantage.py \
    bench/bench_rows.py bench/bench_frames.py bench/bench_replay.py bench/bench_vector.py \
    bench/bench_alternating.py bench/bench_pixels.py bench/bench_step.py bench/bench_shift.py \
    bench/bench_sequences.py bench/bench_ragged.py bench/bench_ray.py

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-rest test-long test-oldest test-newest test-gpu gpu-day check docs bench kernels clean

help:
	@echo "make demo   train PPO from pixels: a key, a door and a goal; one or two minutes"
	@echo "make test   run the tests; what needs a GPU runs on a simulated one"
	@echo "make test-long  run the long tests too: all schedules of the simulation, benches, examples"
	@echo "make test-rest  run what make test left out, but not each case of a test under each schedule"
	@echo "make test-oldest  run the tests with the oldest libraries that are allowed"
	@echo "make test-newest  run the tests with the newest libraries that are allowed"
	@echo "make test-gpu  run the tests of GPU memory and kernels on this machine's GPU"
	@echo "make gpu-day  all that a first visit to a GPU can tell, in BUDGET seconds (500)"
	@echo "make check  lint, format, types and the rules of the repository"
	@echo "make docs   build the site to docs/_build/html; a warning is an error, a missing name is one, too"
	@echo "make bench  run the benchmarks, on the GPU where there is one; files go to bench/results"
	@echo "make kernels  compile the GPU kernels to kernels/parllel.ptx, without a GPU"
	@echo "make venv   set up $(VENV); the targets above do it when it is needed"
	@echo "make clean  remove what checks, tests and builds leave behind; $(VENV) stays"
	@echo "PYTHON=python3.12 names an interpreter, with an environment of its own; EXTRAS=train,dev,cuda12 (with -B venv) is for CUDA 12"

venv: $(INSTALLED)

# The stamp is written last: an interrupted set-up is begun anew, an interrupted update is repeated.
$(INSTALLED): pyproject.toml .ci/constraints.txt .ci/constraints-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "parllel needs Python 3.11 or newer, and PYTHON is '$(PYTHON)'" \
	        "($$($(PYTHON) --version 2>&1)): name another, make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	    echo "'$(PYTHON)' cannot make virtual environments: install its venv module" \
	        "(Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@if [ -e $(UNFINISHED) ]; then rm -rf $(VENV); fi
	@if [ ! -e $(VENV) ]; then \
	    echo "Making $(VENV)"; \
	    mkdir $(VENV) && touch $(UNFINISHED) && $(PYTHON) -m venv $(VENV); \
	fi
	@echo "Installing .[$(EXTRAS)] with $(CONSTRAINTS): a minute or more, the first time"
	$(call install,$(EXTRAS))
	@$(BIN)/python -m parllel.testing.simulated_cuda
	@rm -f $(UNFINISHED)
	@touch $@

demo: $(INSTALLED)
	@$(BIN)/python examples/pixels_ppo.py

# Each process gets half of the tests in their order, so that what a file's tests share is made once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal --durations=20 --durations-min=3
test: $(INSTALLED)
	$(PYTEST)

test-long: $(INSTALLED)
	$(PYTEST) --long --every-schedule

# After make test: the other tests, but not each case under each schedule; a share with SHARE=K/N.
SHARE := 0/1
test-rest: $(INSTALLED)
	$(PYTEST) --long --rest --share $(SHARE)

# In an environment of its own, with the oldest versions that pyproject.toml allows.
test-oldest: .ci/constraints-oldest.txt
	@test -e $(OLDEST) || $(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check \
	    --constraint $< $(if $(DRIVER),,--constraint .ci/constraints-cpu.txt) --editable '.[train]' \
	    pytest pytest-xdist hypothesis build setuptools wheel
	$(OLDEST)/bin/python -m pytest -n 2

# And with the newest ones: nothing but pyproject.toml says which. Each call installs what is new.
test-newest:
	@test -e $(NEWEST) || $(PYTHON) -m venv $(NEWEST)
	@$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check \
	    --upgrade --upgrade-strategy eager $(if $(DRIVER),,--constraint .ci/constraints-cpu.txt) \
	    --editable '.[train]' pytest pytest-xdist hypothesis build setuptools wheel
	$(NEWEST)/bin/python -m pytest -n 2

# One process: the device is one, too.
test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest --cuda=real -m cuda

gpu-day: $(INSTALLED)
	@PYTHON=$(BIN)/python bench/gpu_day/run.sh

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict -p parllel
	$(BIN)/python -m pytest tests/repository/test_repo.py

# Each page that is not built anew may be old: the site is built from nothing. It needs no network.
docs: $(DOCS_INSTALLED)
	@rm -rf docs/_build
	$(BIN)/python -m sphinx --fail-on-warning --quiet --jobs auto \
	    --doctree-dir docs/_build/doctrees docs docs/_build/html
	@echo "Built: docs/_build/html/index.html"

$(DOCS_INSTALLED): $(INSTALLED)
	$(call install,docs)
	@touch $@

bench: $(INSTALLED)
	@set -e; for bench in $(BENCHES); do echo "== $$bench"; $(BIN)/python $$bench; done

kernels: $(INSTALLED)
	@$(BIN)/python -m parllel.kernels.ptx

clean:
	rm -rf build dist docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find parllel kernels examples tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
