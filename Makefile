# make demo         the small model that comes along, on scenes drawn on the spot
# make demo-coco    Detectron's R-50-C4 on a photo; fetches its weights
# make test         the tests
# All set up .venv first, if it is not current.  PYTHON picks the interpreter (3.10 to 3.13), EXTRAS the GPU
# libraries (auto, none, cuda12, cuda13), IMAGE the picture of a demo, JOBS the processes that test side by side.

PYTHON ?= python3
JOBS ?= 2
EXTRAS ?= auto
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: setup demo demo-coco test test-slow clean

setup:
	@$(PYTHON) scripts/setup_venv.py --venv $(VENV) --extras $(EXTRAS)

demo: setup
	@$(RUN) scripts/run_demo.py $(if $(IMAGE),--image '$(IMAGE)')

demo-coco: setup
	@$(RUN) scripts/run_demo.py --coco $(if $(IMAGE),--image '$(IMAGE)')

# One thread of the matrix product for each process: two processes with two threads wait for each other.
test: setup
	OPENBLAS_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist loadfile -m "not slow"

test-slow: setup
	$(RUN) -m pytest -m slow

clean:
	rm -rf $(VENV) build *.egg-info
