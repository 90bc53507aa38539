"""How long it takes before anything begins: python bench/start.py [--config quick] [--repeats 3]

Fresh processes, with the start of Python itself: imports, the command line's help, and `make book` in a copy of the project whose chapters all stand."""
import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from record import ROOT, record

from integrated_cell.workflow import read_config, sign

MODULES = ("results", "data.manifest", "data.cells", "plot", "simulation.stem", "data.prepare", "profiling.features",
           "profiling.profiles", "workflow", "book", "app", "training.train")
ENV = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def spent(command, repeats, cwd=None):
    "Median wall and processor seconds of a command, after once for the disk, and what it said last"
    taken = []
    for _ in range(repeats + 1):
        wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        said = subprocess.run(command, cwd=cwd, env=ENV, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append((time.perf_counter() - wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    return *(round(statistics.median(t), 2) for t in zip(*taken[1:])), said.stdout.strip()


def finished(folder, config):
    "A copy of the project in which every chapter of a run stands"
    shutil.copytree(ROOT.parent, folder, ignore=shutil.ignore_patterns(".*", "results", "published", "_build", "__pycache__", "*.egg-info"))
    run, said = folder/"results"/config, read_config(folder/"config"/f"{config}.yaml")
    for c in said["chapters"]:
        (run/c).mkdir(parents=True)
        for name in ("metrics.json", "notebook.ipynb", sign(said, c)): (run/c/name).write_text("{}")
    (run/"book").mkdir()
    (run/"book/index.html").write_text("stands")
    touch = ["snakemake", "--quiet", "all", "--cores", "1", "--touch", "--config", f"run={config}"]
    subprocess.run(touch, cwd=folder, env=ENV, check=True, capture_output=True)
    return run/"book/index.html"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="quick", help="the run whose book is asked for")
    parser.add_argument("--repeats", type=int, default=3)
    a = parser.parse_args()
    rows, empty = [], spent([sys.executable, "-c", ""], a.repeats)[:2]
    for name in ("integrated_cell", *(f"integrated_cell.{m}" for m in MODULES)):
        wall, cpu, said = spent([sys.executable, "-c", f"import sys, {name}; print('torch' in sys.modules)"], a.repeats)
        aim = .3 if name == "integrated_cell" else None
        rows.append(dict(what=f"import {name}", seconds=wall, cpu_s=cpu, aim_s=aim, torch=said == "True"))
    wall, cpu, _ = spent(["integrated-cell", "--help"], a.repeats)
    rows.append(dict(what="integrated-cell --help", seconds=wall, cpu_s=cpu, aim_s=1.))
    with TemporaryDirectory() as folder:
        page = finished(Path(folder)/"project", a.config)
        wall, cpu, _ = spent(["make", "-o", ".venv/ready", "book", f"CONFIG={a.config}"], a.repeats, Path(folder)/"project")
        assert page.read_text() == "stands", "nothing was to be done"
    rows.append(dict(what="make book with nothing to do", seconds=wall, cpu_s=cpu, aim_s=20.))
    record("Starting up: how long before anything begins?", rows, config=a.config, empty_python_s=empty[0])


if __name__ == "__main__": main()
