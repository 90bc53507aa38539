"""How every benchmark says what it found: a small table, and bench/results/<device>/<question>.json beside it."""
import argparse
import ctypes
import json
import os
import platform
import re
import shlex
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import torch

from integrated_cell.results import write_json
from integrated_cell.workflow import commit

ROOT = Path(__file__).parent


def device_name():
    "The folder of this device's results: BENCH_CARD, cpu, or the GPU's name"
    if os.environ.get("BENCH_CARD"): return os.environ["BENCH_CARD"]
    return torch.cuda.get_device_name().lower().replace("nvidia ", "").replace(" ", "-") if torch.cuda.is_available() else "cpu"


def cpu_name():
    "What the processor calls itself"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def device():
    "What was measured on, in words"
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {cpu_name()}"


def machine():
    "The device and how many cores may be used, in words: what was measured on another is no measurement of this one"
    return f"{device()}, {len(os.sched_getaffinity(0))} cores"


def kept(name, column, anew):
    "Rows of a file of this machine's results whose `column` names none of what is measured `anew`, each with its commit and day"
    path = ROOT/"results"/device_name()/f"{name}.json"
    said = json.loads(path.read_text()) if path.exists() else {}
    if said.get("device") != device() or said.get("cores") != len(os.sched_getaffinity(0)): return []
    return [dict(commit=said["commit"], date=said["date"]) | r for r in said["rows"] if r[column] not in anew]


def parts(*names):
    "For argparse: a choice of these, with commas"
    def chosen(text):
        asked = [part.strip() for part in text.split(",")]
        if unknown := [part for part in asked if part not in names]:
            raise argparse.ArgumentTypeError(f"there is no part '{unknown[0]}'; choose from {', '.join(names)}")
        return asked
    return chosen


def whole_number(text):
    "For argparse: a number of things, at least one"
    if not text.isdigit() or int(text) < 1: raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
    return int(text)


def record(question, rows, name=None, folder=None, **about):
    "Print `rows` (a list of flat dicts) as a table and keep them with what they were measured on, in a file of the script's name; returns the file"
    print(pd.DataFrame(rows).to_string(index=False))
    told = dict(question=question, command=shlex.join(["python", "bench/" + Path(sys.argv[0]).name, *sys.argv[1:]])) | about
    told |= dict(rows=rows, device=device(), cores=len(os.sched_getaffinity(0)), threads=torch.get_num_threads(),
                 torch=torch.__version__, commit=commit(ROOT.parent), date=time.strftime("%Y-%m-%d", time.gmtime()))
    path = ROOT/"results"/(folder or device_name())/f"{name or Path(sys.argv[0]).stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, told)
    print(path.relative_to(ROOT.parent))
    return path


class Peak:
    "The most memory that a block of code takes, in GiB above what was taken before: `host_gib` without mapped files (Linux), `device_gib` on a GPU"
    def _taken(self): return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])*1024

    def _watch(self):
        while not self.stop.wait(.002): self.most = max(self.most, self._taken())

    def __enter__(self):
        ctypes.CDLL(None).malloc_trim(0)  # or what was freed before would be taken again unseen
        self.before = self.most = self._taken()
        self.stop = threading.Event()
        if torch.cuda.is_available(): torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats(); self.on_device = torch.cuda.memory_allocated()
        self.watch = threading.Thread(target=self._watch)
        self.watch.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.watch.join()
        self.host_gib = (max(self.most, self._taken()) - self.before)/2**30
        self.device_gib = (torch.cuda.max_memory_allocated() - self.on_device)/2**30 if torch.cuda.is_available() else 0.
