# The whole reproduction: every notebook in order, executed copies in runs/<name>/, figures and tables in its figures/.
# Runs what changed (notebooks, package, weights, parameters); goes on after a kill with the same command.
#   snakemake --cores 2                                   the embedded avatars
#   snakemake --cores 2 --config smoke=true out=/tmp/x    everything shrunk to seconds
#   snakemake --cores 2 --config scale=evidence           hours instead of minutes, into runs/evidence
#   snakemake --cores 2 --config domain=my_pictures       figures and tables in runs/my_pictures/figures
#   snakemake --cores 2 --config out=figures              over the committed ones, to renew them

import csv
import json
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path

from stx.domains import datasets
from stx.files.outputs import lock_output
from stx.files.places import data_dir
from stx.reports.notebooks import parameters
from stx.reports.scales import SCALES

DOMAIN = str(config.get("domain", "avatars"))
WORLD = datasets.load(DOMAIN)
SCALE = config.get("scale", "quick")
if SCALE not in SCALES[1:]:
    sys.exit(f"scale is {SCALE!r}, expected {' or '.join(SCALES[1:])}")
HOME = WORLD.name if SCALE == "quick" else SCALE if WORLD.name == "avatars" else f"{SCALE}/{WORLD.name}"
RUNS = config.get("runs", f"runs/{HOME}")
OUT = config.get("out", f"{RUNS}/figures")
SMOKE = config.get("smoke", False)
DEVICE = config.get("device", "auto")
SEED = config.get("seed", 0)
TIMEOUT = {"quick": 3, "evidence": 24}[SCALE] * 3600  # seconds for a cell
HELD = ExitStack()
if workflow.is_main_process and not workflow.dryrun:  # a second run into the same folder waits for the first
    HELD.enter_context(lock_output(Path(RUNS)))

LABELS = {"05": 1, "06": 1, "07": 1, "08": 2, "09": 1, "11": 1}  # attributes that a notebook needs
NOTEBOOKS = sorted(path.stem for path in Path("notebooks").glob("*.ipynb"))
LEFT_OUT = [name for name in NOTEBOOKS if LABELS.get(name[:2], 0) > len(WORLD.attributes)]
if LEFT_OUT:
    NOTEBOOKS = [name for name in NOTEBOOKS if name not in LEFT_OUT]
    print(f"{WORLD.name} has {len(WORLD.attributes)} attributes: without {', '.join(LEFT_OUT)}", file=sys.stderr)
PICTURES = "00_domain"  # draws the pictures that most others read, with a process per core: they wait for it
BESIDE = "10_photographs"  # reads few of them, and runs while the judges of 00 are measured
# The longest is begun first and short ones end the run, so that no core waits for another
LONGEST, LONG = "04_inversion_table", "01_generator|03_inversion_quality|07_reference_editing|08_attribute_dependency|11_detail"
# Of `make seeds`, where it has been: other trainings are measured beside the encoders in use, which are those of its seed 0
SEEDED = Path("runs/seeds" if WORLD.name == "avatars" else f"runs/seeds/{WORLD.name}") / "trainings.csv"


def checksums(home):
    return {path.parent.name: json.loads(path.read_text())["sha256"] for path in home.glob("compared/*/config.json")}


def trainings():
    """The folders of the seeds beside 0, with commas; none where seed 0 is not what is in use."""
    if SCALE != "evidence" or not SEEDED.is_file():
        return ""
    used, first = checksums(data_dir() / WORLD.name), checksums(SEEDED.parent / "0")
    if any(used.get(name) != checksum for name, checksum in first.items()):
        print(f"{SEEDED.parent}/0 has other encoders than {data_dir() / WORLD.name}: one training each", file=sys.stderr)
        return ""
    seeds = csv.DictReader(SEEDED.read_text().splitlines())
    return ",".join(str(SEEDED.parent / seed) for seed in sorted({row["training seed"] for row in seeds} - {"0"}))


AGAIN = trainings()
TRAININGS = [SEEDED] if AGAIN else []
HAS = {name: parameters(f"notebooks/{name}.ipynb") for name in NOTEBOOKS}


def before(wildcards):
    return [] if wildcards.name in (PICTURES, BESIDE) else f"{RUNS}/done/{PICTURES}"


rule all:
    input:
        RUNS + "/done/index",


rule index:
    input:
        expand(RUNS + "/done/{name}", name=NOTEBOOKS),
    output:
        touch(RUNS + "/done/index"),
    params:
        python=sys.executable,
        out=OUT,
    shell:
        "{params.python:q} -m stx.cli index {params.out:q}"


rule notebook:
    input:
        before,
        lambda wildcards: TRAININGS if wildcards.name == LONGEST else [],
        notebook="notebooks/{name}.ipynb",
        package=sorted(str(p) for p in Path("stx").rglob("*.py")),
        weights=sorted(str(p) for p in data_dir().rglob("*") if p.suffix in (".json", ".safetensors")),
    output:
        touch(RUNS + "/done/{name}"),
    wildcard_constraints:
        name=rf"(?!({LONGEST}|{LONG}))\d\d_\w+",
    log:
        notebook=RUNS + "/{name}.ipynb",
        text=RUNS + "/logs/{name}.txt",
    params:
        given=lambda wildcards: " ".join(
            f"-p {name} {shlex.quote(str(value))}"
            for name, value in {
                "domain": DOMAIN,
                "seed": SEED,
                "scale": SCALE,
                "device": DEVICE,
                "out": OUT,
                "smoke": SMOKE,
                "runs": RUNS,
                "trainings": AGAIN if wildcards.name == LONGEST else "",
            }.items()
            if name in HAS[wildcards.name] and value != ""
        ),
        python=sys.executable,
    shell:
        "started=$(date +%s); {params.python:q} -m stx.cli run {input.notebook} --out {log.notebook:q} --timeout {TIMEOUT}"
        " {params.given} > {log.text:q} 2>&1 || {{ tail -n 20 {log.text:q} >&2; exit 1; }};"
        " echo \"{wildcards.name}: done in $(( $(date +%s) - started )) s\""


use rule notebook as notebook_long with:
    priority: 10
    wildcard_constraints:
        name=LONG,


use rule notebook as notebook_longest with:
    priority: 20
    wildcard_constraints:
        name=LONGEST,
