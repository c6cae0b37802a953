# The encoders of the inversion table, three times each: a small search for the rate, then a training per seed at the best.
# Resumed where it was stopped. Seed 0 is the one to ship; `make evidence` measures the others beside it, as notebook 04 does
# with `-p trainings runs/seeds/1,runs/seeds/2`.
#   snakemake -s seeds.smk --cores 2                                  the embedded avatars, as `make seeds` does
#   snakemake -s seeds.smk --cores 2 --config steps=20 search=5 rates=5e-4,1e-3 seeds=0 methods=psp runs=/tmp/x

import shlex
import sys
from pathlib import Path

import pandas as pd

from stx.baselines.registry import METHODS as ENCODERS
from stx.checkpoints.weights import read_config
from stx.domains import datasets
from stx.files.places import data_dir
from stx.recipes.encoders import best_rate, ended

DOMAIN = str(config.get("domain", "avatars"))
NAME = datasets.short_name(DOMAIN)
RUNS = config.get("runs", "runs/seeds" if NAME == "avatars" else f"runs/seeds/{NAME}")
STEPS = config.get("steps", 1500)
SEARCH = config.get("search", 200)  # updates of each training of the search
RATES = str(config.get("rates", "1e-3,2e-3,4e-3")).split(",")  # at 8e-3 trainings become unstable after the search
SEEDS = str(config.get("seeds", "0,1,2")).split(",")
METHODS = str(config.get("methods", ",".join(ENCODERS))).split(",")
GENERATOR = read_config(data_dir() / NAME / "generator")["sha256"][:8]  # another one: train anew
TRAIN = (
    f"OMP_NUM_THREADS=1 {shlex.quote(sys.executable)} -m stx.cli train encoder {{DOMAIN:q}} --compared"
    " --method {wildcards.method} --steps {params.steps}"
)


rule all:
    input:
        RUNS + "/trainings.csv",


rule search:
    output:
        log=RUNS + "/search/{rate}/compared/{method}/log.csv",
    threads: 1
    params:
        steps=SEARCH,
        generator=GENERATOR,
    shell:
        TRAIN + " --lr {wildcards.rate} --runs {RUNS:q}/search/{wildcards.rate}/{params.steps}-{params.generator}"
        " --out {RUNS:q}/search/{wildcards.rate}/compared"


rule best:
    input:
        expand(RUNS + "/search/{rate}/compared/{{method}}/log.csv", rate=RATES),
    output:
        rate=RUNS + "/rates/{method}.txt",
    run:
        logs = {rate: pd.read_csv(path) for rate, path in zip(RATES, input, strict=True)}
        Path(output.rate).write_text(best_rate(logs))


rule train:
    input:
        rate=rules.best.output.rate,
    output:
        log=RUNS + "/{seed}/compared/{method}/log.csv",
    wildcard_constraints:
        seed=r"\d+",
    threads: 1
    params:
        steps=STEPS,
        generator=GENERATOR,
    shell:
        "rate=$(cat {input.rate:q}); " + TRAIN + " --lr $rate --seed {wildcards.seed}"
        " --runs {RUNS:q}/{wildcards.seed}/runs/$rate-{params.steps}-{params.generator}"
        " --out {RUNS:q}/{wildcards.seed}/compared"


# What the search found, what each training ended with, and by how much its last tenth still helped: flat is less than 2 %
rule table:
    input:
        logs=expand(RUNS + "/{seed}/compared/{method}/log.csv", seed=SEEDS, method=METHODS),
        rates=expand(RUNS + "/rates/{method}.txt", method=METHODS),
        searches=expand(RUNS + "/search/{rate}/compared/{method}/log.csv", rate=RATES, method=METHODS),
    output:
        table=RUNS + "/trainings.csv",
    run:
        def log(home, method):
            return pd.read_csv(f"{RUNS}/{home}/compared/{method}/log.csv")

        rows = []
        for seed in SEEDS:
            for method in METHODS:
                rate = Path(f"{RUNS}/rates/{method}.txt").read_text()
                searched = [ended(log(f"search/{tried}", method))[0] for tried in RATES]
                rows.append([method, seed, *searched, rate, log(seed, method)["step"].max(), *ended(log(seed, method))])
        found = [f"loss after {SEARCH} at {rate}" for rate in RATES]
        columns = ["method", "training seed", *found, "rate", "updates", "validation loss", "gain of the last tenth"]
        pd.DataFrame(rows, columns=columns).to_csv(output.table, index=False)
