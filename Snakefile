# The order of a run. One rule a chapter, made from book/chapters.yaml; `integrated-cell chapter` is the only caller of papermill.
#   snakemake --cores 2 --config run=quick        (make book CONFIG=quick says the same)
# A chapter runs again when its notebook, its block in config/<run>.yaml or a chapter before it changed, or when it last ran with
# other values (integrated-cell chapter ... -p): its second output is named by them. An edit of the library alone reruns nothing;
# `integrated-cell again CHAPTER` asks for it. Weights and checkpoints are no declared outputs, so that a training that was stopped
# goes on where it was. Reading this file changes nothing.
import sys
from pathlib import Path

from integrated_cell.results import BadInput
from integrated_cell.workflow import mark, parameters, read_config

CONFIG = f"config/{config.get('run', 'quick')}.yaml"
try:
    run = read_config(CONFIG)
except BadInput as e:
    print(e, file=sys.stderr)
    sys.exit(2)
OUT = f"results/{run['name']}"
PAGES = [*Path("book").rglob("*"), *Path("nbs").glob("*.ipynb"), Path("CITATION.cff")]
PAGES = [str(p) for p in PAGES if p.is_file() and not {"published", "_build"} & {*p.parts}]


def finished(chapter):  # its numbers, and the sign that it ran with the values of this run
    return [f"{OUT}/{chapter}/metrics.json", f"{OUT}/{chapter}/{mark(parameters(run, chapter))}"]


def more(amount):  # half as much again with every try
    return lambda wildcards, attempt: amount*(1 + attempt)//2


rule book:
    input:
        [finished(c) for c in run["chapters"]], PAGES
    output:
        f"{OUT}/book/index.html"
    params:
        chapters=run["chapters"]
    shell:
        "integrated-cell book --config {CONFIG}"


for chapter, of in run["table"].items():
    gpus, gb, hours = of["cluster"]
    rule:
        name:
            chapter
        input:
            f"nbs/experiments/{chapter}.ipynb", [finished(c) for c in of["follows"]], of["reads"]
        output:
            finished(chapter)[0], touch(finished(chapter)[1])
        log:
            f"{OUT}/{chapter}/notebook.ipynb"
        params:
            chapter=chapter, values=parameters(run, chapter), source="--from models" if of["trains"] and config.get("from") else ""
        threads:
            workflow.cores if of["trains"] else 1
        resources:
            gpu=gpus, mem_mb=more(1000*gb), runtime=more(60*hours)
        shell:
            "integrated-cell chapter {params.chapter} --config {CONFIG} {params.source}"
