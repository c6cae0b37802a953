# Every network that the notebooks read, from a folder of pictures alone: generator and encoders, and where it has labels
# classifiers, editors and what keeps detail. One thread each; resumed where it was stopped.
#   snakemake -s networks.smk --cores 2 --config domain=my_pictures                as `make networks DOMAIN=my_pictures`
#   snakemake -s networks.smk --cores 2 --config domain=my_pictures budget=small   fewer updates
#   snakemake -s networks.smk --cores 2 --config domain=avatars seed=1         another generator, with STX_DATA set

import os
import shlex
import sys
import zlib

from stx.baselines.registry import COMPARED, METHODS
from stx.detail.registry import FOLDER, TRAINED
from stx.domains import datasets
from stx.files.places import ROOT, data_dir

BUDGETS = {  # updates; of the notebooks their parameters
    "smoke": {
        "01_generator": {"smoke": True, "decoder_steps": 1},
        "00_domain": {"smoke": True},
        "02_train_inversion": {"smoke": True},
        "05_latent_classifier": {"smoke": True},
        "compared": 1,
        "detail": 1,
    },
    "small": {
        "01_generator": {"steps": 100, "decoder_steps": 2500},
        "00_domain": {"classifier_steps": 500, "judge_steps": 600},
        "02_train_inversion": {"steps": 2000},
        "05_latent_classifier": {"train_count": 4096, "sampled": 2048, "edited": 8000, "picture_steps": 1000},
        "compared": 600,
        "detail": 200,
    },
    "full": {
        "01_generator": {"decoder_steps": 4000},
        "00_domain": {},
        "02_train_inversion": {"steps": 10000},
        "05_latent_classifier": {},
        "compared": 1500,
        "detail": 1500,
    },
}
DOMAIN = str(config["domain"])
WORLD = datasets.load(DOMAIN)
if DOMAIN in datasets.SIZES and data_dir() == ROOT / "data":
    sys.exit(f"{DOMAIN}: its networks in data/ are kept; give a folder of pictures, or set STX_DATA to another place")
SIZE, SEED = config.get("budget", "full"), config.get("seed", 0)
BUDGET = BUDGETS[SIZE]
# What belongs to another budget, seed or place is another run
ANOTHER = [SIZE] * (SIZE != "full") + [f"seed{SEED}"] * (SEED != 0)
ANOTHER += [f"{zlib.crc32(str(data_dir()).encode()):08x}"] * (data_dir() != ROOT / "data")
RUNS = config.get("runs", "-".join([f"runs/networks/{WORLD.name}", *ANOTHER]))
DONE = f"{RUNS}/done"
STX = f"{shlex.quote(sys.executable)} -m stx.cli"
os.environ["OMP_NUM_THREADS"] = "1"

LABELLED = ["00_domain", "05_latent_classifier", *(f"{FOLDER}/{name}" for name in TRAINED)] if WORLD.attributes else []
ALL = ["01_generator", "02_train_inversion", "manifold", *(f"{COMPARED}/{name}" for name in METHODS), *LABELLED]
FIRST = ["01_generator", *LABELLED[:1]]  # what the losses of an encoder have: the generator, and identity where it is made
NEEDS = {  # where a training begins after another's end; the rest begins after `FIRST`
    "01_generator": [],
    "00_domain": [],
    "manifold": ["02_train_inversion"],
    "05_latent_classifier": ["00_domain", "02_train_inversion"],
} | {f"{FOLDER}/{name}": [f"{FOLDER}/{of.begins_with}" if of.begins_with else "05_latent_classifier"] for name, of in TRAINED.items()}


def before(wildcards):
    return [f"{DONE}/{name}" for name in NEEDS.get(wildcards.name, FIRST)]


def work(wildcards):
    """The command that trains what is called `name` and puts it into the domain's folder."""
    kind, _, method = wildcards.name.partition("/")
    if kind[:2].isdigit():
        given = {"domain": DOMAIN, "seed": SEED, "out": f"{RUNS}/figures", "runs": f"{RUNS}/{kind}"}
        given |= {"from_scratch": True, "ship": True} | BUDGET[kind]
        words = " ".join(f"-p {name} {shlex.quote(str(value))}" for name, value in given.items())
        return f"run notebooks/{kind}.ipynb --out {shlex.quote(f'{RUNS}/{kind}.ipynb')} {words}"
    words = {
        "manifold": "manifold",
        COMPARED: f"encoder --compared --method {method}",
        FOLDER: f"detail --method {method}",
    }[kind]
    trained = f"--seed {SEED} --steps {BUDGET[kind]}" if method else ""
    return f"train {words} {shlex.quote(DOMAIN)} --runs {shlex.quote(RUNS)} {trained}"


rule all:
    input:
        [f"{DONE}/{name}" for name in ALL],


rule train:
    input:
        before,
    output:
        touch(DONE + "/{name}"),
    wildcard_constraints:
        name=r"[\w/]+",
    log:
        RUNS + "/logs/{name}.txt",
    threads: 1
    params:
        work=work,
    shell:
        "{STX} {params.work} > {log:q} 2>&1 || {{ tail -n 20 {log:q} >&2; exit 1; }}; echo '{wildcards.name}: done'"
