# Every encoder of stx.baselines.registry trained with one budget: one thread each, two at a time, resumed where they were stopped.
#   snakemake -s train.smk --cores 2                          the embedded avatars, as `make train` does
#   snakemake -s train.smk --cores 2 --config steps=100 methods=psp,e4e runs=/tmp/x out=/tmp/x
#   snakemake -s train.smk --cores 2 --config more=500 runs=runs/more    the shipped ones go on for 500 updates

import shlex
import sys

from stx.domains import datasets
from stx.baselines.registry import METHODS

DOMAIN = str(config.get("domain", "avatars"))
RUNS = config.get("runs", "runs/compared")
OUT = config.get("out")  # default: data/<domain>/compared
STEPS = config.get("steps")  # default: of the table
MORE = config.get("more")
SEED = config.get("seed", 0)
DONE = f"{RUNS}/done/{datasets.short_name(DOMAIN)}"
CHOSEN = str(config.get("methods", ",".join(METHODS))).split(",")


rule all:
    input:
        expand(DONE + "/{method}", method=CHOSEN),


rule train:
    output:
        touch(DONE + "/{method}"),
    threads: 1
    params:
        given=" ".join(
            f"--{name} {shlex.quote(str(value))}"
            for name, value in {"steps": STEPS, "more": MORE, "out": OUT, "seed": SEED}.items()
            if value
        ),
    shell:
        f"OMP_NUM_THREADS=1 {shlex.quote(sys.executable)} -m stx.cli train encoder {{DOMAIN:q}} --compared"
        " --method {wildcards.method} --runs {RUNS:q} {params.given}"
