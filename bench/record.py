"""How every benchmark says what it found: a small table, and bench/results/<device>/<question>.json beside it."""
import os
import platform
import shlex
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from integrated_cell.results import write_json
from integrated_cell.workflow import commit

ROOT = Path(__file__).parent


def device_name():
    "cpu, or the GPU's name as a folder"
    return torch.cuda.get_device_name().lower().replace("nvidia ", "").replace(" ", "-") if torch.cuda.is_available() else "cpu"


def cpu_name():
    "What the processor calls itself"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def record(question, rows, name=None, device=None, **about):
    "Print `rows` (a list of flat dicts) as a table and keep them with what they were measured on, in a file of the script's name; returns the file"
    print(pd.DataFrame(rows).to_string(index=False))
    told = dict(question=question, command=shlex.join(["python", "bench/" + Path(sys.argv[0]).name, *sys.argv[1:]]), **about, rows=rows,
                device=torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {cpu_name()}", cores=len(os.sched_getaffinity(0)),
                threads=torch.get_num_threads(), torch=torch.__version__, commit=commit(ROOT.parent), date=time.strftime("%Y-%m-%d", time.gmtime()))
    path = ROOT/"results"/(device or device_name())/f"{name or Path(sys.argv[0]).stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, told)
    print(path.relative_to(ROOT.parent))
    return path
