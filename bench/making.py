"""How long do `make book` of quick and `make test` take, alone and beside busy programs, and what in them longest?

    python bench/making.py [--parts "book,test,busy book,busy test"]

Both run in a fresh clone of what is committed, which `make env` has set up before (that is not counted), with no settings but those
of the Makefile. Busy programs are as many as there are cores. Of the book the ten longest chapters are named, of the tests the ten
longest; parts that are not asked for stay as they were measured on this machine.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import ROOT, commit, kept, parts, record
from waiting import BUSY

LONGEST = 10


def chapters(clone):
    "Seconds of each chapter of the book that was made"
    numbers = {p.parent.name: json.loads(p.read_text()) for p in clone.glob("results/quick/*/metrics.json")}
    return {name: said["seconds"] for name, said in numbers.items() if "seconds" in said}


def tests(said):
    "Seconds of the longest tests, of what pytest says of them"
    found = re.findall(r"^([\d.]+)s (call|setup|teardown) +(\S+)", said, re.M)
    return {test if stage == "call" else f"{test} ({stage})": float(seconds) for seconds, stage, test in found}


def made(part, clone):
    "Rows of a part: the whole, then the longest in it"
    what, busy = part.split()[-1], []
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "BENCH_", "PYTHON", "MAKE", "MFLAGS"))}
    shutil.rmtree(clone/"results", ignore_errors=True)
    load = os.getloadavg()[0]
    try:
        if part.startswith("busy"): busy += [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in os.sched_getaffinity(0)]
        began = time.perf_counter()
        done = subprocess.run(["make", what], cwd=clone, env=env | {"PYTEST_ADDOPTS": f"--durations={LONGEST}"}, capture_output=True, text=True)
        seconds = time.perf_counter() - began
    finally:
        for other in busy: other.kill()
    if done.returncode: raise SystemExit(f"make {what} failed\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    longest = chapters(clone) if what == "book" else tests(done.stdout)
    first = sorted(longest, key=longest.get, reverse=True)[:LONGEST]
    at = dict(part=part, command=f"python bench/making.py --parts '{part}'", commit=commit(clone), date=time.strftime("%Y-%m-%d", time.gmtime()))
    rows = [(f"make {what}", seconds), *((name, longest[name]) for name in first)]
    return [at | dict(what=name, minutes=round(s/60, 2), load=round(load, 1)) for name, s in rows]


def main():
    names = "book", "test", "busy book", "busy test"
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("--parts", type=parts(*names), default=",".join(names))
    a = said.parse_args()
    rows = kept("making", "part", a.parts)
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder)/"clone"
        subprocess.run(["git", "clone", "-q", ROOT.parent, clone], check=True)
        subprocess.run(["make", "env"], cwd=clone, check=True, stdout=subprocess.DEVNULL)
        for part in a.parts:
            rows += made(part, clone)
            record("How long do make book and make test take?", rows, command="python bench/making.py", aim="10 and 6 minutes, twice that beside busy programs")


if __name__ == "__main__": main()
