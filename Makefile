# make demo         run the bundled model on generated scenes
# make demo-coco    run Detectron's R-50-C4 on a photo; downloads its weights
# make notebooks    open the notebooks in Jupyter
# make docs         build the documentation into site/, which can be read without a server
# make test         run the tests
# make test-slow    run the tests that take minutes
# make gpu-check    check and measure everything on a GPU
# make reliability  mutate files, kill runs, fill disks: the table of docs/reliability.md
# make lint         check style, names, types and spelling
# make dist         build and check the archives of a release in dist/
# make coverage     run the tests and report the lines that they do not reach
# All of them create .venv first if it is not up to date.  PYTHON selects the interpreter (3.10 to 3.15), EXTRAS the GPU
# libraries (auto, none, cuda12, cuda13), IMAGE the image of a demo, JOBS the number of test processes.

PYTHON ?= python3
JOBS ?= 2
EXTRAS ?= auto
VENV := .venv
RUN := $(VENV)/bin/python

# Images of containers often set it.  The tests start hundreds of processes, each of which would compile the modules.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup setup-demo setup-develop demo demo-coco notebooks docs test test-slow gpu-check reliability lint dist coverage clean

setup:
	@$(PYTHON) scripts/setup_venv.py --venv $(VENV) --extras $(EXTRAS)

setup-demo:
	@$(PYTHON) scripts/setup_venv.py --venv $(VENV) --extras $(EXTRAS) --purpose run

setup-develop:
	@$(PYTHON) scripts/setup_venv.py --venv $(VENV) --extras $(EXTRAS) --purpose develop

demo: setup-demo
	@$(RUN) scripts/run_demo.py $(if $(IMAGE),--image '$(IMAGE)')

demo-coco: setup-demo
	@$(RUN) scripts/run_demo.py --coco $(if $(IMAGE),--image '$(IMAGE)')

# JupyterLab and its seventy requirements are not installed for the tests.  Root is the usual user of a container, where
# Jupyter refuses to start without the flag; it answers on this machine only, and asks for its token.
notebooks: setup-develop
	@$(RUN) -c 'import jupyterlab' 2> /dev/null || { echo 'Installing Jupyter.'; \
	$(RUN) -m pip --disable-pip-version-check install -q -c constraints.txt -e '.[notebooks]'; }
	$(RUN) -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) --LabApp.default_url=/lab/tree/notebooks/demo.ipynb

# A broken link, anchor or reference ends the build.  MkDocs and its requirements are not installed for the tests.
docs: setup-develop
	@$(RUN) -c 'import material, mkdocstrings_handlers.python' 2> /dev/null || { echo 'Installing MkDocs.'; \
	$(RUN) -m pip --disable-pip-version-check install -q -c constraints.txt -e '.[docs]' || \
	{ echo 'make docs: MkDocs is missing, and pip could not install the extra docs (see above)' >&2; exit 1; }; }
	@$(RUN) scripts/docs/write_pages.py
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict
	@echo 'Open site/index.html.'

# One BLAS thread per process: two processes with two threads each would wait for each other.
test: setup
	OPENBLAS_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist loadfile -m "not slow"

# In the order of the files: those with few but long tests are among the first.
test-slow: setup
	OPENBLAS_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m slow

gpu-check: setup
	$(RUN) scripts/gpu_check.py --jobs $(JOBS)

reliability: setup
	$(RUN) scripts/reliability/run_all.py --jobs $(JOBS) --page docs/reliability.md

lint: setup-develop
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m nbqa mypy notebooks
	$(RUN) -m codespell_lib

# The tools and their requirements are not installed for the tests.
dist: setup-develop
	@$(RUN) -c 'import build, twine' 2> /dev/null || \
	$(RUN) -m pip --disable-pip-version-check install -q -c constraints.txt 'pip>=25.3' -e '.[dist]'
	$(RUN) scripts/make_dist.py

coverage: setup
	OPENBLAS_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist loadfile -m "not slow" --cov --cov-report=term

clean:
	rm -rf $(VENV) build dist site *.egg-info
