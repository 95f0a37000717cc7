# zenrepro. `make help` lists the targets. Works with GNU make 3.81 (macOS).
#
#   make report                       everything: set up, run what is stale, render, compile
#   make report BACKEND=jax SCALE=small ONLY=attention DEVICE=cuda:1
#   make report PYTHON=/path/to/python3      use that environment as it is, make no .venv

.DEFAULT_GOAL := help
.PHONY: help setup report test pdf run audit lab check clean

SETUP := zenrepro/setup

ifdef PYTHON
# A prepared environment: looked at, never changed. The checkout is imported in place.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
prepare = @"$(PYTHON)" $(SETUP)/prepared.py --for $(1)
PY := "$(PYTHON)"
else
# The environment's own Python if it works, else the first on PATH that is new enough.
# -I -S: standard library only, and quickly.
FOUND := $(shell for p in .venv/bin/python python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -I -S -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
ifeq ($(FOUND),)
prepare = @echo "setup: no Python 3.11 or newer on PATH (python3, python3.11, ...): install one, or name one, make $@ PYTHON=/path/to/python3" >&2; exit 2
else
prepare = @$(FOUND) -I -S $(SETUP)/bootstrap.py --for $(1)
endif
PY := .venv/bin/python
endif

ZENREPRO = $(PY) -c 'import sys; from zenrepro.cli import main; sys.exit(main())'

# What run and report take from the command line.
SELECT = $(if $(BACKEND),--backend "$(BACKEND)") $(if $(DEVICE),--device "$(DEVICE)") \
	$(if $(SCALE),--scale "$(SCALE)") $(foreach E,$(ONLY),--only "$E")

help:
	@echo "make report   set up what is missing, run what is stale here, render: build/report.pdf, build/html/"
	@echo "make test     set up what is missing, lint, run every test"
	@echo "make pdf      render from the committed results only (no framework needed)"
	@echo "make run      run what is stale, render nothing"
	@echo "make audit    audit the published claims only"
	@echo "make lab      Jupyter Lab in this environment"
	@echo "make check    lint, types, import rules"
	@echo "make setup    set up again, trying what failed the last time once more"
	@echo "make clean    remove build products; never results, never .venv"
	@echo
	@echo "variables: BACKEND=torch|jax|mlx DEVICE=cuda:1 SCALE=smoke|small|full ONLY=EXPERIMENT"
	@echo "           LAB=\"--no-browser --allow-root\" (what make lab gives to Jupyter Lab)"
	@echo "           PYTHON=/path/to/python3 (a prepared environment) INSTALL_TEX=1 (install TeX by sudo apt-get)"

setup:
	$(call prepare,report $(if $(PYTHON),,--force))

report:
	$(call prepare,report)
	@$(ZENREPRO) make $(SELECT)

run:
	$(call prepare,report)
	@$(ZENREPRO) make --no-render $(SELECT)

pdf:
	$(call prepare,evidence)
	@$(ZENREPRO) report

audit:
	$(call prepare,evidence)
	@$(ZENREPRO) audit

lab:
	$(call prepare,lab)
	@$(PY) -m jupyterlab --notebook-dir=. $(LAB)

check:
	$(call prepare,check)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -c 'import sys; from importlinter.cli import lint_imports_command as lint; sys.exit(lint())'

test:
	$(call prepare,test)
	@$(MAKE) --no-print-directory check
	@$(PY) -m pytest -n auto $(PYTEST)

clean:
	rm -rf build dist latex/generated *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find zenrepro tests kernels notebooks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
