# RLHF Lab. `make lab` opens the workbench, `make test` runs every test. Each makes .venv and installs the pinned
# dependencies of constraints.txt first, when that has not been done; Python 3.11 or newer with venv is all it needs.

VENV := .venv
PY := $(VENV)/bin/python

PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11 python
LAB_ARGS ?=
TEST_ARGS ?=
TORCH_INDEX ?=
WORKERS ?= 2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help lab test lint constraints clean FORCE

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo
	@echo '  make lab LAB_ARGS="--no-browser --port 8899"   arguments for JupyterLab'
	@echo '  make test TEST_ARGS="-k store"                 arguments for pytest;  WORKERS=1 runs the tests one by one'
	@echo '  make lab PYTHON=/path/to/python3.12            a Python that is not the first one found'
	@echo '  make lab TORCH_INDEX=https://download.pytorch.org/whl/cpu'
	@echo '                                                 on Linux: the small CPU build of torch, not the 2.6 GB with CUDA'

# --- environment ---
# A stamp says that an installation was finished, and in which folder: a clone that was moved, a Python that was removed
# or a changed pin is installed again. It is taken away before an installation and written after it succeeded.

stale = $(shell test -x $(PY) && test "`cat $(1) 2>/dev/null`" = "`pwd -P`" || echo FORCE)

$(VENV)/.lab: pyproject.toml constraints.txt $(call stale,$(VENV)/.lab)
	$(call install,.[all])
	@pwd -P > $@

$(VENV)/.test: pyproject.toml constraints.txt $(call stale,$(VENV)/.test)
	$(call install,.[test])
	$(find_browser)
	@pwd -P > $(VENV)/.lab && pwd -P > $@

define install
@rm -f $(VENV)/.lab $(VENV)/.test
@$(PY) -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { $(make_venv); }
@echo "Installing into $(VENV); the first time this takes some minutes."
@$(PY) -m pip install --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
	--constraint constraints.txt --editable '$(1)'
@mkdir -p $(VENV)/share/jupyter/lab/settings
@echo '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}' \
	> $(VENV)/share/jupyter/lab/settings/overrides.json
endef

make_venv = found=; for python in $(PYTHON); do \
	if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found=$$python; break; fi; \
	done; \
	if test -z "$$found"; then \
	echo "error: Python 3.11 or newer is needed and was not found as: $(PYTHON); install it, or say where: PYTHON=PATH" >&2; \
	exit 2; fi; \
	if ! $$found -c 'import venv, ensurepip' >/dev/null 2>&1; then \
	echo "error: $$found has no venv module; install it (Debian and Ubuntu: sudo apt-get install python3-venv)" >&2; \
	exit 2; fi; \
	$$found -m venv --clear $(VENV)

# The browser tests use the system's Chromium or Chrome; where there is none, Playwright's own is fetched.
define find_browser
@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	|| $(PY) -m playwright install chromium \
	|| echo "warning: no Chromium and none could be fetched; the browser tests cannot run" >&2
endef

# --- work ---

# OpenMP threads that spin while they wait ruin a laptop that also runs a browser.
lab: $(VENV)/.lab ## open JupyterLab in notebooks/
	@mkdir -p notebooks
	@cd notebooks && OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 PATH="$(CURDIR)/$(VENV)/bin:$$PATH" exec "$(CURDIR)/$(PY)" -m jupyterlab \
	$(if $(filter 0,$(shell id -u)),--allow-root) $(quiet_lab) $(LAB_ARGS)

# Nothing leaves the machine: no news, no look for updates (nor a question about them: overrides.json, above).
# The first notebook opens by itself.
quiet_lab = --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate \
	$(if $(wildcard notebooks/00_start_here.ipynb),--LabApp.default_url=/lab/tree/00_start_here.ipynb)

# Two workers with one computing thread each; the order of the files is decided in conftest.py.
test: $(VENV)/.test ## run every test: unit, notebooks, browser
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" OMP_NUM_THREADS=1 RLHF_LAB_PROFILE=quick RLHF_LAB_ANNOTATOR=simulated \
	$(PY) -m pytest -n $(WORKERS) --dist loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout 600 \
	tests $(wildcard notebooks) $(TEST_ARGS)

lint: $(VENV)/.test ## check style and format of the code
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .

constraints: $(VENV)/.test ## write constraints.txt from what .venv holds
	@{ echo '# The versions that are tested: every dependency, direct and indirect, whatever the platform.'; \
	echo '# Written by `make constraints` from the packages in .venv (pip freeze, without local versions such as +cpu and'; \
	echo "# without torch's CUDA packages). To move to newer versions: .venv/bin/pip install -U -e '.[test]', then"; \
	echo '# `make test`, then `make constraints`.'; \
	$(PY) -m pip freeze --all --exclude-editable | grep -E '^[A-Za-z0-9._-]+==' \
	| grep -v -i -E '^(nvidia-|cuda-|triton|pip=|wheel=)' | sed -E 's/\+[A-Za-z0-9.]+$$//'; } > constraints.new
	@mv constraints.new constraints.txt
	@touch $(VENV)/.lab $(VENV)/.test

clean: ## remove .venv and caches; runs and feedback stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
