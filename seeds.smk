# The encoders that claims rest on, three times each: a small search for the rate, then a training per seed at the best.
# Resumed where it was stopped. Seed 0 is the one to ship; `make evidence` measures the others beside it, as notebook 04 does
# with `-p trainings runs/seeds/1,runs/seeds/2`.
#   snakemake -s seeds.smk --cores 2                                  the embedded avatars, as `make seeds` does
#   snakemake -s seeds.smk --cores 2 --config steps=20 search=5 rates=5e-4,1e-3 seeds=0 methods=psp runs=/tmp/x

import sys
from pathlib import Path

import pandas as pd

from stx.domains import datasets
from stx.recipes.encoders import best_rate, last_tenth

DOMAIN = str(config.get("domain", "avatars"))
NAME = datasets.short_name(DOMAIN)
RUNS = config.get("runs", "runs/seeds" if NAME == "avatars" else f"runs/seeds/{NAME}")
STEPS = config.get("steps", 1500)
SEARCH = config.get("search", 200)  # updates of each training of the search
RATES = str(config.get("rates", "5e-4,1e-3,2e-3")).split(",")
SEEDS = str(config.get("seeds", "0,1,2")).split(",")
CHOSEN = "style_transformer,psp,e4e,restyle_psp,no_self_attention,free_tokens,one_stage"
METHODS = str(config.get("methods", CHOSEN)).split(",")
TRAIN = (
    f"OMP_NUM_THREADS=1 {sys.executable} -m stx.cli train encoder {{DOMAIN:q}} --compared --method {{wildcards.method}}"
)


rule all:
    input:
        RUNS + "/trainings.csv",


rule search:
    output:
        log=RUNS + "/search/{rate}/compared/{method}/log.csv",
    threads: 1
    shell:
        TRAIN + " --lr {wildcards.rate} --steps {SEARCH} --runs {RUNS:q}/search/{wildcards.rate}/runs"
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
    shell:
        TRAIN + " --lr $(cat {input.rate:q}) --steps {STEPS} --seed {wildcards.seed}"
        " --runs {RUNS:q}/{wildcards.seed}/runs --out {RUNS:q}/{wildcards.seed}/compared"


# What each training ended with, and by how much its last tenth still helped: flat is less than 2 %
rule table:
    input:
        logs=expand(RUNS + "/{seed}/compared/{method}/log.csv", seed=SEEDS, method=METHODS),
        rates=expand(RUNS + "/rates/{method}.txt", method=METHODS),
    output:
        table=RUNS + "/trainings.csv",
    run:
        rows = []
        for seed in SEEDS:
            for method in METHODS:
                log = pd.read_csv(f"{RUNS}/{seed}/compared/{method}/log.csv")
                rate = Path(f"{RUNS}/rates/{method}.txt").read_text()
                loss = log["val_loss"].dropna().iloc[-1]
                rows.append([method, seed, rate, log["step"].max(), loss, last_tenth(log)])
        columns = ["method", "training seed", "rate", "updates", "validation loss", "gain of the last tenth"]
        pd.DataFrame(rows, columns=columns).to_csv(output.table, index=False)
