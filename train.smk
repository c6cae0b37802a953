# Training of every encoder of stx.methods with one budget: one thread each, two at a time, resumed where they were stopped.
#   snakemake -s train.smk --cores 2                          the embedded avatars, as `make train` does
#   snakemake -s train.smk --cores 2 --config steps=100 methods=psp,e4e runs=/tmp/x

import sys

from stx.methods import METHODS

DOMAIN = config.get("domain", "avatars")
RUNS = config.get("runs", "runs/methods")
STEPS = config.get("steps", 4000)
SEED = config.get("seed", 0)
CHOSEN = str(config.get("methods", ",".join(METHODS))).split(",")


rule all:
    input:
        expand(RUNS + "/done/{method}", method=CHOSEN),


rule train:
    output:
        touch(RUNS + "/done/{method}"),
    threads: 1
    params:
        python=sys.executable,
    shell:
        "OMP_NUM_THREADS=1 {params.python} -m stx.cli train encoder {DOMAIN} --method {wildcards.method} --steps {STEPS}"
        " --seed {SEED} --runs {RUNS} --out {RUNS}/weights"
