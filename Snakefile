# The order of a run. One rule a chapter, made from the table below; `integrated-cell chapter` is the only caller of papermill.
#   snakemake --cores 2 --config run=quick        (make book CONFIG=quick says the same)
# A chapter runs again when its notebook, its block in config/<run>.yaml or a chapter before it changed; an edit of the library
# alone reruns nothing (delete results/<run>/<chapter>/metrics.json to ask for it). Weights and checkpoints are no declared
# outputs, so that a training chapter that was stopped goes on where it was.
import json
import sys
from pathlib import Path

from integrated_cell.results import BadInput
from integrated_cell.workflow import parameters, read_config

BEFORE = {  # with a question mark: where the run has it
    "data": [],
    "gallery": ["data"],
    "preparation": ["data"],
    "judge": ["data"],
    "reference": ["data"],
    "conditional": ["data", "reference"],
    "prior": ["conditional"],
    "classification": ["conditional"],
    "reconstruction": ["conditional", "reference"],
    "integration": ["conditional", "reference", "prior"],
    "latent": ["conditional", "prior", "reference"],
    "distribution": ["conditional", "judge", "prior"],
    "calibration": ["data"],
    "variation": ["conditional", "prior", "calibration?"],
    "against_truth": ["calibration", "conditional", "prior"],
    "traversal": ["conditional", "prior"],
    "identifiability": ["calibration", "reference"],
    "comparison": ["calibration", "classification", "prior", "integration", "latent", "distribution", "variation", "against_truth"],
    "errata": ["conditional"],
    "cross_validation": ["data"],
    "yeast": [],
    "gans": ["yeast"],
    "gan_samples": ["gans"],
    "two_sample_real": ["yeast"],
    "two_sample": ["gans", "two_sample_real"],
    "two_sample_training": ["gans", "two_sample_real"],
    "inversion": ["gans"],
    "cell_cycle": ["gans"],
    "one_scale": ["gans", "conditional", "prior"],
    "screen": [],
    "cytogan": ["screen"],
    "phenotypes": ["cytogan"],
    "interpolation": ["cytogan"],
    "algebra": ["cytogan"],
    "mechanism": ["cytogan"],
    "treated": ["cytogan"],
    "cellprofiler": [],
    "jury": ["cytogan"],
    "costs": [],
    "plan": [],
}
TRAINS = {"data", "judge", "reference", "conditional", "prior", "calibration", "against_truth", "identifiability", "cross_validation", "gans", "cytogan", "phenotypes"}  # these use every core they get

NEEDS = {  # GPUs, GB of memory and hours at the paper's size, for a cluster (profiles/slurm): what wants more than no GPU, 16 GB and four hours
    "data": (0, 32, 12),
    "preparation": (0, 16, 24),
    "judge": (1, 96, 12),
    "reference": (1, 128, 24),
    "conditional": (1, 128, 24),
    "prior": (1, 32, 4),
    "classification": (1, 64, 4),
    "reconstruction": (1, 64, 4),
    "integration": (1, 64, 8),
    "distribution": (1, 128, 8),
    "calibration": (0, 64, 24),
    "variation": (1, 64, 24),
    "against_truth": (1, 128, 48),
    "identifiability": (1, 128, 48),
    "errata": (1, 64, 4),
    "cross_validation": (1, 128, 48),
    "gans": (1, 32, 120),
    "two_sample_real": (1, 32, 24),
    "two_sample": (1, 32, 48),
    "two_sample_training": (1, 32, 48),
    "inversion": (1, 32, 24),
    "one_scale": (1, 64, 24),
    "screen": (0, 32, 12),
    "cytogan": (1, 64, 120),
    "phenotypes": (1, 64, 24),
    "mechanism": (1, 64, 12),
    "treated": (1, 32, 4),
}

CONFIG = f"config/{config.get('run', 'quick')}.yaml"
try:
    run = read_config(CONFIG)
    for c in run["chapters"]:
        BEFORE[c] = [b.strip("?") for b in BEFORE.get(c, ["data"]) if b.strip("?") in run["chapters"] or "?" not in b]
        for b in BEFORE[c]:
            if b not in run["chapters"]: raise BadInput(f"{CONFIG}: chapter '{c}' follows from '{b}'; name both under chapters")
except BadInput as e:
    print(e, file=sys.stderr)
    sys.exit(2)
OUT = f"results/{run['name']}"
again = set()  # chapters that last ran with other values than the file's (integrated-cell chapter ... -p), and what follows from them
for c in run["chapters"]:
    ran = Path(OUT)/c/"run.json"
    if (ran.exists() and json.loads(ran.read_text())["parameters"] != parameters(run, c)) or again & set(BEFORE[c]): again.add(c)
for done in [Path(OUT)/c/"metrics.json" for c in again] + ([Path(OUT)/"book/index.html"] if again else []): done.unlink(missing_ok=True)
MEASURED = sorted(map(str, Path("bench/results").glob("*/*.json")))
BOOK = [str(p) for p in Path("book").rglob("*") if p.is_file() and "published" not in p.parts and "_build" not in p.parts]


def more(amount): return lambda wildcards, attempt: amount*(1 + attempt)//2  # half as much again with every try


rule book:
    input:
        [f"{OUT}/{c}/metrics.json" for c in run["chapters"]], BOOK, "nbs/index.ipynb", "CITATION.cff"
    output:
        f"{OUT}/book/index.html"
    params:
        chapters=run["chapters"]
    shell:
        "integrated-cell book --config {CONFIG}"


for chapter in run["chapters"]:
    gpu, gb, hours = NEEDS.get(chapter, (0, 16, 4))
    rule:
        name:
            chapter
        input:
            f"nbs/experiments/{chapter}.ipynb", [f"{OUT}/{b}/metrics.json" for b in BEFORE[chapter]], MEASURED if chapter in ("costs", "plan") else []
        output:
            f"{OUT}/{chapter}/metrics.json"
        log:
            f"{OUT}/{chapter}/notebook.ipynb"
        params:
            values=parameters(run, chapter), chapter=chapter
        threads:
            workflow.cores if chapter in TRAINS else 1
        resources:
            gpu=gpu, mem_mb=more(1000*gb), runtime=more(60*hours)
        shell:
            "integrated-cell chapter {params.chapter} --config {CONFIG}"
