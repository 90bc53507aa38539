"""A plate, a screen and a store of full size: python bench/scale.py [--parts plate,store,hand,network] [--sites 240] [--cells 100000] [--rows 216062]; parts that are not named stay as they were measured

`plate`: `plate_cells` on a simulated plate of BBBC021's size (16 bit, 1024 x 1280, three stains). `store`: a store with as many cells as
hiPSC v1 is opened and its table filtered; its images are as small as images can be, for none is read. `hand`, `network`: profiles of crops
of 96 x 96, kept as they come. Each part is a process of its own; memory is what it and its workers hold for themselves (Linux)."""
import argparse
import multiprocessing
import re
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import psutil
import tifffile
from record import ROOT, commit, kept, parts, record, whole_number

FIELD, CELLS_A_FIELD, STAINS = (1024, 1280), 90, (("DAPI", 1), ("Tubulin", 2), ("Actin", 4))


def write_plate(folder, n_sites):
    "A plate's tables and images: a few simulated fields, each seen many times under new noise"
    from integrated_cell.simulation.screen import simulate_field
    fields = [simulate_field(CELLS_A_FIELD, FIELD, seed=seed)[0] for seed in range(3)]
    rng, rows = np.random.default_rng(0), []
    (folder/"Week1_1").mkdir(parents=True)
    for i in range(n_sites):
        well, site = f"{'BCDEFG'[i//4 % 6]}{2 + i//24 % 10:02}", 1 + i % 4
        x = fields[i % len(fields)] + rng.integers(0, 8, FIELD, dtype=np.uint16)
        row = dict(Image_Metadata_Well_DAPI=well, Image_Metadata_Plate_DAPI="Week1_1", Replicate=1, Image_Metadata_Compound="DMSO",
                   Image_Metadata_Concentration=0.)
        for (stain, w), channel in zip(STAINS, x):
            row |= {f"Image_FileName_{stain}": f"Week1_{well}_s{site}_w{w}.tif", f"Image_PathName_{stain}": "Week1/Week1_1"}
            tifffile.imwrite(folder/"Week1_1"/row[f"Image_FileName_{stain}"], channel)
        rows.append(row)
    pd.DataFrame(rows).to_csv(folder/"BBBC021_v1_image.csv", index=False)
    pd.DataFrame([dict(compound="DMSO", concentration=0., moa="DMSO")]).to_csv(folder/"BBBC021_v1_moa.csv", index=False)


def plate(a, folder):
    from integrated_cell.data.plates import plate_cells
    began = time.perf_counter()
    cells = plate_cells(folder/"plate", folder/"store", workers=a.workers)
    return dict(n=a.sites, unit="sites", cells=len(cells), seconds=time.perf_counter() - began)


def write_store(folder, n):
    "A store whose images are as small as images can be"
    from integrated_cell.data.cells import Cells
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"cell_id": [f"c{i}" for i in range(n)], "structure": rng.choice([f"S{k:02}" for k in range(25)], n)})
    images = (np.full((3, 2, 2, 2), i % 256, np.uint8) for i in range(n))
    Cells.create(folder/"big", images, table.assign(plate=rng.integers(0, 500, n).astype(str)), (1., 1., 1.), ["membrane", "structure", "dna"], {})


def store(a, folder):
    from integrated_cell.data.cells import Cells
    began = time.perf_counter()
    cells = Cells.open(folder/"big")
    opened = time.perf_counter() - began
    few = cells.rows("test", "S03"), cells.table[cells.table.plate == "3"]
    return dict(n=len(cells), unit="cells", cells=sum(map(len, few)), seconds=opened, filter_seconds=time.perf_counter() - began - opened)


class Crops:
    "Many crops that are a few, over and over: what a store gives, without one of gigabytes"
    def __init__(self, n):
        from integrated_cell.simulation.screen import simulate_screen
        self.few, self.n = simulate_screen(64, (96, 96), test_fraction=0).images[:], n
        self.shape, self.dtype = (n, *self.few.shape[1:]), self.few.dtype
    def __len__(self): return self.n
    def __getitem__(self, i): return self.few[np.arange(self.n)[i] % len(self.few)]


def hand(a, folder):
    from integrated_cell.profiling.features import measure
    crops, began = Crops(a.cells), time.perf_counter()
    found = measure(crops, 1/3, out=folder/"hand", workers=a.workers, show=True)
    return dict(n=len(found), unit="cells", cells=len(found), seconds=time.perf_counter() - began)


def network(a, folder):
    import torch
    from integrated_cell.profiling.cytogan import CytoGan, profile_cells
    torch.manual_seed(0)
    model, crops, began = CytoGan("lsgan", (96, 96), .25), Crops(a.cells), time.perf_counter()
    found = profile_cells(model, crops, np.arange(a.cells), out=folder/"network", show=True)
    return dict(n=len(found), unit="cells", cells=len(found), seconds=time.perf_counter() - began)


def _own(process):
    try: return int(re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1])/2**20
    except (OSError, TypeError): return 0.


def _child(part, a, folder, pipe): pipe.send(globals()[part](a, folder))


def measured(part, a, folder):
    "What a part says, and the most that its processes held together, GiB"
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_child, args=(part, a, folder, theirs))
    process.start()
    most, stop = [0.], threading.Event()
    def watch():
        while not stop.wait(.05):
            try: tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            except psutil.NoSuchProcess: return
            most[0] = max(most[0], sum(map(_own, tree)))
    looking = threading.Thread(target=watch)
    looking.start()
    while not ours.poll(.2):
        if not process.is_alive(): raise SystemExit(f"{part} failed")
    said = ours.recv()
    process.join(); stop.set(); looking.join()
    return dict(part=part, **said, gib=round(most[0], 3))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=parts("plate", "store", "hand", "network"), default="plate,store,hand,network")
    parser.add_argument("--sites", type=whole_number, default=240, help="of the plate (BBBC021: 240)")
    parser.add_argument("--cells", type=whole_number, default=100_000, help="that are profiled")
    parser.add_argument("--rows", type=whole_number, default=216_062, help="cells of the store (hiPSC v1: 216,062)")
    parser.add_argument("--workers", type=whole_number, default=2)
    a = parser.parse_args()
    rows, make = kept("scale", "part", a.parts), dict(plate=lambda d: write_plate(d/"plate", a.sites), store=lambda d: write_store(d, a.rows))
    for part in a.parts:
        with TemporaryDirectory() as folder:
            if part in make: make[part](Path(folder))
            said = measured(part, a, Path(folder))
        at = dict(command=f"python bench/scale.py --parts {part}", commit=commit(ROOT.parent), date=time.strftime("%Y-%m-%d", time.gmtime()))
        rows.append(said | dict(minutes=round(said["seconds"]/60, 2), a_second=round(said["n"]/said["seconds"], 1), workers=a.workers) | at)
        record("A plate, a store and a screen of full size: how long, and how much memory?", rows,
               command="python bench/scale.py", aim="240 sites in 6 minutes and 1 GiB; 100,000 profiles in 1 GiB; 216,062 cells opened in a second")


if __name__ == "__main__": main()
