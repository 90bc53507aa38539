# The order of a run. One rule a chapter, made from book/chapters.yaml; `python -m integrated_cell chapter` is the only caller of papermill.
#   snakemake --cores 2 --config run=quick        (make book CONFIG=quick says the same)
#   snakemake --cores 2 --snakefile Snakefile --directory my_study --config file=config.yaml    (integrated-cell run my_study)
# A chapter runs again when its notebook, its block in the run's file, a person's file that this names or a chapter before it changed,
# or when it last ran with other values (integrated-cell chapter ... -p): its second output is named by values and files. An edit of the library alone reruns nothing;
# `integrated-cell again CHAPTER` asks for it. Weights and checkpoints are no declared outputs, so that a training that was stopped
# goes on where it was. Reading this file changes nothing.
import os
import shlex
import sys
from pathlib import Path

from integrated_cell.results import BadInput
from integrated_cell.workflow import gpu, parameters, read_config, sign

CONFIG = config.get("file") or f"config/{config.get('run', 'quick')}.yaml"
try:
    run = read_config(CONFIG)
    SIGNS = {chapter: sign(run, chapter) for chapter in run["chapters"]}
except BadInput as e:
    print(e, file=sys.stderr)
    sys.exit(2)
PYTHON = shlex.quote(sys.executable)  # no console script is needed
OUT, ROOT = run["results"], Path(os.path.relpath(run["root"]))  # a study of its own lies elsewhere
PAGES = [*(ROOT/"book").rglob("*"), *(ROOT/"nbs").glob("*.ipynb"), ROOT/"CITATION.cff"]
PAGES = [str(p) for p in PAGES if p.is_file() and not {"published", "_build"} & {*p.relative_to(ROOT).parts}]


def finished(chapter):  # its numbers, and the sign that it ran with the values and on the files of this run
    return [f"{OUT}/{chapter}/metrics.json", f"{OUT}/{chapter}/{SIGNS[chapter]}"]


def more(amount):  # half as much again with every try
    return lambda wildcards, attempt: amount*(1 + attempt)//2


def share(wildcards):  # of the cores, for a training: two at once go faster than each in turn with all; alone on a GPU, or on its node
    alone = workflow.remote_exec or not workflow.local_exec or gpu()
    return workflow.cores if alone else max(1, workflow.cores//2)


localrules: all


rule all:  # each of them, so that a chapter whose numbers were deleted is made anew
    input:
        f"{OUT}/book/index.html", [finished(c) for c in run["chapters"]]


rule book:
    input:
        [finished(c) for c in run["chapters"]], PAGES
    output:
        f"{OUT}/book/index.html"
    params:
        chapters=run["chapters"]
    shell:
        "{PYTHON} -m integrated_cell book --config {CONFIG}"


for chapter, of in run["table"].items():
    gpus, gb, hours = of["cluster"]
    rule:
        name:
            chapter
        input:
            str(ROOT/f"nbs/experiments/{chapter}.ipynb"), [finished(c) for c in of["follows"]], [str(ROOT/p) for p in of["reads"]]
        output:
            finished(chapter)
        log:
            f"{OUT}/{chapter}/notebook.ipynb"
        params:
            chapter=chapter, values=parameters(run, chapter), source="--from models" if of["trains"] and config.get("from") else ""
        threads:
            share if of["trains"] else 1
        resources:
            gpu=gpus, mem_mb=more(1000*gb), runtime=more(60*hours)
        shell:
            "{PYTHON} -m integrated_cell chapter {params.chapter} --config {CONFIG} {params.source}"
