# Every target makes what it needs in .venv from nothing; a second run is quick.
#   make demo    train on nine photographs and look at the segmentation (a few minutes on two cores)
#   make test    everything that shows that the parts are right
#   make gpu-kit        one folder for a machine with a GPU (docs/gpu.md)
#   make gpu-rehearsal  its whole visit here, with the emulator in the GPU's place
#   make lint    formatters, linters, type checker
#   make bench   kernel benchmarks, quick mode
#   make bench-full   all of them (about twelve minutes), kept in RESULTS, and docs/benchmarks.md

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RESULTS ?= benchmarks/results/full
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml

.PHONY: demo test lint bench bench-full gpu-kit gpu-rehearsal clean

demo: $(VENV)/built
	$(BIN)/densesiam demo

test: $(VENV)/built
	$(BIN)/python -m pytest --numprocesses 2

lint: $(VENV)/built
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
	$(BIN)/mypy

bench: $(VENV)/built
	$(BIN)/python -m benchmarks --quick

bench-full: $(VENV)/built
	$(BIN)/python -m benchmarks --full --minutes 11 --output $(RESULTS)
	$(BIN)/python -m benchmarks report $(RESULTS)/results.json --into docs/benchmarks.md

gpu-kit: $(VENV)/built
	$(BIN)/python -m tools.gpu_kit build

gpu-rehearsal: gpu-kit
	$(BIN)/python -m tools.gpu_kit rehearse

# Without build isolation the build uses the torch of $(VENV), so what it needs is installed first.
$(VENV)/built: $(VENV)/requirements $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[bench,demo,test,dev]"
	touch $@

$(VENV)/requirements: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'], sep='\n')" | $(BIN)/python -m pip install --quiet --requirement /dev/stdin
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info densesiam/*.so
