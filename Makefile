# Entry point for people and for CI. Every target sets up what it needs in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Compiling is most of what the tests do; LLVM's optimizations would only slow that down.
# Flags that were given stay in force.
FAST_COMPILES := "$(XLA_FLAGS) --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"

.PHONY: demo test lint bench clean

$(VENV)/.cli: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[cli]"
	touch $@

$(VENV)/.dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

# Tunes one penalty per feature of a real classification problem.
demo: $(VENV)/.cli
	$(BIN)/bilevel tune breast_cancer --out out/demo

# Two processes: float64 with every law, float32 as users run it (x64 off).
test: $(VENV)/.dev
	XLA_FLAGS=$(FAST_COMPILES) JAX_ENABLE_X64=1 $(BIN)/python -m pytest -n 2 --dist worksteal
	XLA_FLAGS=$(FAST_COMPILES) JAX_ENABLE_X64=0 $(BIN)/python -m pytest -n 2 --dist worksteal tests -m "not float64"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Against the floor and against other libraries; HYPERTORCH=PATH, a checkout, adds hypertorch.
bench: $(VENV)/.dev
	$(BIN)/python benchmarks/run.py $(if $(HYPERTORCH),--hypertorch $(HYPERTORCH))

clean:
	rm -rf $(VENV) out build dist .pytest_cache .ruff_cache
