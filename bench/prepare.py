"""Cells a second from files to a store, over processes: python bench/prepare.py [--n 6,16] [--shape 64,96,128] [--workers 1,2] [--repeats 1]

Tables of two lengths are prepared by `prepare_table`, all numbers of processes in turn; the rate is the slope between the lengths, so that
what it takes to start is told apart. The images are simulated cells as a microscope gives them: turned, with background and shot noise."""
import argparse
import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from record import record
from scipy import ndimage

from integrated_cell.integration.frame import write_ome
from integrated_cell.data.own import prepare_table
from integrated_cell.simulation.stem import simulate_cells

N_PAPERS_CELLS = 216_062  # of the data set hiPSC v1


def numbers(said, kind=int): return tuple(kind(s) for s in said.split(","))


def stack(x, angle, zoom, rng):
    "What a microscope makes of a simulated cell (3, Z, Y, X)"
    fine = ndimage.zoom(x.astype(np.float32), (1, *zoom), order=1)
    turned = np.clip(ndimage.rotate(fine, angle, axes=(2, 3), order=1), 0, None)
    return rng.poisson(100 + 200*turned/255).astype(np.uint16)


def write_images(folder, n, shape, voxel_um):
    "n OME-TIFFs of simulated cells"
    cells, rng = simulate_cells(n, shape, seed=1, test_fraction=0), np.random.default_rng(0)
    zoom = np.array(cells.voxel_um)/voxel_um
    return [write_ome(folder/f"{i}.ome.tif", stack(cells[i], 180*i/n, zoom, rng), ["membrane", "structure", "dna"], voxel_um) for i in range(n)]


def spent(files, n, workers, shape, to_um, folder):
    "Wall and processor seconds for a store of the first n cells"
    table = pd.DataFrame(dict(path=list(map(str, files[:n])), structure="all"))
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    cells = prepare_table(table, folder/"cells", to_um, shape, test_fraction=0, workers=workers)
    assert len(cells) == n
    return np.array([time.perf_counter() - wall, sum(os.times()[:4]) - cpu])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", default="6,16", help="cells of the short and of the long table; the short one keeps every process busy")
    parser.add_argument("--shape", default="64,96,128", help="of the prepared cells (the paper's)")
    parser.add_argument("--to-um", type=float, default=.317, help="their voxel size, µm (the paper's)")
    parser.add_argument("--voxel-um", default=".29,.108,.108", help="voxel size of the images, µm (hiPSC v1)")
    parser.add_argument("--workers", default="1,2", help="numbers of processes; the first is 1")
    parser.add_argument("--repeats", type=int, default=1)
    a = parser.parse_args()
    (short, long), shape, workers = numbers(a.n), numbers(a.shape), numbers(a.workers)
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        files = write_images(folder, max(short, long), shape, numbers(a.voxel_um, float))
        spent(files, 1, 1, shape, a.to_um, folder)  # imports, files into memory
        runs = {w: [] for w in workers}
        for _ in range(a.repeats):
            for w in workers: runs[w].append([spent(files, n, w, shape, a.to_um, folder) for n in (short, long)])
        megabytes = sum(f.stat().st_size for f in files)/len(files)/1e6
    rows = []
    for w in workers:
        wall, cpu = (statistics.median((b - s)[k]/(long - short) for s, b in runs[w]) for k in (0, 1))
        start = statistics.median(s[0] - short*wall for s, _ in runs[w])
        alone = rows[0]["cells_per_s"] if rows else 1/wall
        rows.append(dict(processes=w, cells_per_s=round(1/wall, 3), share_of_linear=round(1/wall/alone/w, 3), cpu_s_per_cell=round(cpu, 3),
                         start_s=round(max(start, 0), 1), hours_for_216062=round(N_PAPERS_CELLS*wall/3600, 1)))
    record("Preparation: how many cells a second, and how does it grow with processes?", rows, aim="at least 0.8 of linear to two cores",
           shape=shape, to_um=a.to_um, file_megabytes=round(megabytes, 1), n_cells_projected=N_PAPERS_CELLS)


if __name__ == "__main__": main()
