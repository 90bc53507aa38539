"""Does training wait for its data, and does memory grow with the store?

    python bench/feeding.py --batches 60 --repeats 5

1. Epochs of phase 1's training step, fed in three ways and in turn: as published (one file a cell, opened in the step; here an
   uncompressed array, the kindest case), streamed from a store, and resident on the device; beside them the same steps on one
   batch that lies ready. `waits_percent`: share of an epoch that is spent asking for the next batch, its first one included; on a
   GPU, which still works while the host asks, the share of an epoch that the steps alone do not take. `slower_percent`: what an
   epoch takes beyond the steps alone; `more_cpu_percent`: the same in processor time, which other jobs disturb less.
   Files are dropped from the system's cache before each epoch.
2. Peak memory of a process that streams from a store of 2,000 to 200,000 cells (64 simulated cells in one file with many names),
   each in a process of its own: what the table takes, and what feeding takes on top of it.
"""
import argparse
import gc
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import psutil
import torch
from lightning.fabric import Fabric
from record import record

from integrated_cell.integration import reference
from integrated_cell.data.cells import Cells, seal
from integrated_cell.results import write_json
from integrated_cell.simulation.stem import simulate_cells

SHAPES = {"quick": ("16,24,32", 30), "laptop": ("32,48,64", 4)}  # voxels, cells a batch
MIB = 2**20


def arguments():
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("--sizes", default="quick,laptop", help="quick, laptop; or shape, batch and width, e.g. 64,96,128:30:1 (; between several)")
    said.add_argument("--batches", type=int, default=12, help="an epoch")
    said.add_argument("--repeats", type=int, default=2, help="epochs of each side, in turn")
    said.add_argument("--cells", default="2000,20000,200000", help="sizes of the store in the second part")
    said.add_argument("--feed", type=int, default=300, help="batches that each process of the second part draws")
    said.add_argument("--precision", default="32-true")
    said.add_argument("--memory-of", metavar="STORE", help=argparse.SUPPRESS)  # the second part's processes
    return said.parse_args()


def forget(folder):
    "Drop files from the system's cache"
    for path in (p for p in Path(folder).rglob("*") if p.is_file()):
        with open(path, "rb") as f: os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make_store(folder, shape, n):
    "A store of n cells of which no more than 64 differ, and the same cells as a file each"
    some = simulate_cells(min(n, 64), shape)
    table = pd.DataFrame(dict(cell_id=[f"cell {i:07d}" for i in range(n)], structure="any"))
    cells = Cells.create(folder/"cells", (some[i % len(some)] for i in range(n)), table, some.voxel_um, some.channels, {})
    (folder/"files").mkdir()
    for i in range(n): np.save(folder/"files"/f"{i}.npy", cells[i])
    os.sync()
    return cells


def one_file_a_cell(folder, batches, device):
    "The original's loader: the images of a batch are opened when the step wants them"
    for at in batches.order(0):
        x = np.stack([np.load(folder/"files"/f"{i}.npy") for i in batches.rows[at]]).astype(np.float32)/255
        yield dict(x=torch.from_numpy(x).to(device), y=torch.as_tensor(batches.y[at]).to(device))


def epoch(step, batches, device):
    "Seconds that an epoch takes, those of them that are spent asking for batches, and seconds of processor time"
    batches, asked, start, worked = iter(batches), 0., time.perf_counter(), time.process_time()
    while True:
        before = time.perf_counter()
        batch = next(batches, None)
        asked += time.perf_counter() - before
        if batch is None: break
        step(batch)
    if device.type == "cuda": torch.cuda.synchronize()
    return time.perf_counter() - start, asked, time.process_time() - worked


def training_step(shape, width, fabric):
    torch.manual_seed(0)
    model = reference.Reference(shape, width=width).to(fabric.device)
    opts = reference.optimisers(model)
    nets = {n: fabric.setup_module(getattr(model, n)) for n in opts}
    ready = {n: fabric.setup_optimizers(o) for n, o in opts.items()}
    return lambda batch: reference.step(nets, ready, batch, fabric)


def waiting(a, fabric, shape, batch_size, width):
    "Rows of the first part"
    device = fabric.device
    with TemporaryDirectory() as folder:
        cells = make_store(Path(folder), shape, a.batches*batch_size)
        step, every = training_step(shape, width, fabric), np.arange(len(cells))
        streamed, resident = (cells.batches(every, batch_size, device=device, resident=r) for r in (False, True))
        start = time.perf_counter()
        hand = next(resident.epoch(0))
        loading = time.perf_counter() - start
        sides = {"nothing to fetch": lambda: [hand]*a.batches, "as published": lambda: one_file_a_cell(Path(folder), streamed, device),
                 "streamed": lambda: streamed.epoch(0), "resident": lambda: resident.epoch(0)}
        step(hand)  # warm
        taken = {side: [] for side in sides}
        for _ in range(a.repeats):
            for side, feed in sides.items():
                forget(folder)
                gc.collect()
                taken[side].append(epoch(step, feed(), device))
    median = {side: [statistics.median(t) for t in zip(*times)] for side, times in taken.items()}
    alone, _, cpu_alone = median["nothing to fetch"]
    waits = lambda s, asked: asked/s if device.type == "cpu" else max(0, 1 - alone/s)
    common = dict(shape="×".join(map(str, shape)), width=width, batch=batch_size, cells=len(cells))
    return [dict(**common, side=side, seconds=round(s, 3), cells_per_s=round(len(cells)/s, 1), waits_percent=round(100*waits(s, asked), 2),
                 slower_percent=round(100*(s/alone - 1), 2), cpu_seconds=round(cpu, 3), more_cpu_percent=round(100*(cpu/cpu_alone - 1), 2),
                 loading_seconds=round(loading, 3) if side == "resident" else 0.)
            for side, (s, asked, cpu) in median.items()]


def peak():
    "Most memory that this process has held, in bytes, and begin to count anew"
    held = int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1])*1024
    Path("/proc/self/clear_refs").write_text("5")
    return held


def memory_of(a):
    "What one process of the second part tells"
    fabric, me = Fabric(accelerator="auto", devices=1), psutil.Process()
    torch.zeros(1, device=fabric.device)
    warm = Cells.open(Path(a.memory_of).parent/"warm")  # what the libraries take on first use is not the store's
    for b in warm.batches(np.arange(len(warm)), 30, device=fabric.device, resident=False).epoch(0): pass
    gc.collect(); peak(); before = me.memory_info().rss
    cells = Cells.open(a.memory_of)
    opened = me.memory_info().rss
    batches, e, n = cells.batches(cells.rows("train"), 30, device=fabric.device, resident=False), 0, 0
    while n < a.feed:
        for b, _ in zip(batches.epoch(e), range(a.feed - n)): n += 1
        e += 1
    top = peak()
    mib = dict(images=math.prod(cells.images.shape), libraries=before, table=opened - before, feeding=top - opened, peak=top,
               gpu=torch.cuda.max_memory_allocated() if fabric.device.type == "cuda" else 0)
    print(json.dumps(dict(cells=len(cells), **{f"{k}_mib": round(v/MIB, 1) for k, v in mib.items()}, batches=n)))


def repeated(store, small, table, n):
    "A store of n cells whose files are one file with many names"
    shutil.copytree(small, store)
    about = json.loads((store/"images.zarr/zarr.json").read_text())
    about["shape"][0] = n
    (store/"images.zarr/zarr.json").write_text(json.dumps(about))
    file = next(p for p in (store/"images.zarr/c/0").rglob("*") if p.is_file())
    for k in range(1, -(-n//64)):
        other = store/"images.zarr/c"/str(k)/file.parent.relative_to(store/"images.zarr/c/0")
        other.mkdir(parents=True)
        os.link(file, other/file.name)
    table = table.iloc[np.arange(n) % len(table)].assign(cell_id=[f"cell {i:07d}" for i in range(n)]).reset_index(drop=True)
    table.to_parquet(store/"cells.parquet")
    write_json(store/"store.json", seal(json.loads((store/"store.json").read_text()), store))


def memory(a):
    "Rows of the second part"
    with TemporaryDirectory() as folder:
        folder, some = Path(folder), simulate_cells(64, (16, 24, 32))
        Cells.create(folder/"warm", some, some.table.assign(structure="any").drop(columns="split"), some.voxel_um, some.channels, {})
        for n in (int(n) for n in a.cells.split(",")):
            repeated(folder/"cells", folder/"warm", some.table, n)
            child = [sys.executable, __file__, "--memory-of", folder/"cells", "--feed", str(a.feed)]
            said = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True)
            yield json.loads(said.stdout.splitlines()[-1])
            shutil.rmtree(folder/"cells")


if __name__ == "__main__":
    a = arguments()
    if a.memory_of: memory_of(a); sys.exit()
    fabric, rows = Fabric(accelerator="auto", devices=1, precision=a.precision), []
    for size in a.sizes.split(";") if ":" in a.sizes else a.sizes.split(","):
        shape, batch_size, width = size.split(":") if ":" in size else (*SHAPES[size], .25)
        rows += waiting(a, fabric, tuple(int(s) for s in shape.split(",")), int(batch_size), float(width))
    record("How much of training is spent waiting for data?", rows, batches=a.batches, repeats=a.repeats, precision=a.precision,
           aim=dict(resident=2, streamed=5), unit="percent of an epoch")
    record("Does the memory of feeding grow with the store?", list(memory(a)), name="feeding_memory", feed=a.feed)
