"""What does Algorithm 4 cost above the decoding that it needs, and how much memory against the published way?

    python bench/variation.py                                                      (a laptop's size; below, the paper's)
    python bench/variation.py --shape 64,96,128 --width 1 --batch 1 --repeats 1 --name variation_paper

Samples of one structure in one cell, three ways in turn: all channels decoded and dropped (plain decodes); the published way, every
decoded image kept in memory, their dense correlation and its determinant (with fewer copies than the original code makes); and the
library's, down to the number. Memory is what each takes above what was taken before, the decoder's own needs included, mapped files
not. On a CPU the library may use a twentieth of what the published way must hold; on a GPU the images stay where they are drawn, and
a row of its own shows what a twentieth costs there.
"""
import argparse
import statistics
import time
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from record import Peak, record

from integrated_cell.integration.conditional import Conditional
from integrated_cell.integration.integrate import STRUCTURE, draws
from integrated_cell.integration.prior import Normal
from integrated_cell.evaluation.variation import sample_variation

said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
said.add_argument("--shape", default="32,48,64")
said.add_argument("--width", type=float, default=.25)
said.add_argument("--n", type=int, default=1000)
said.add_argument("--batch", type=int, default=4, help="images decoded at once")
said.add_argument("--repeats", type=int, default=2)
said.add_argument("--name", default="variation", help="of the file of results, for another size beside this one")
a = said.parse_args()
shape = tuple(int(s) for s in a.shape.split(","))
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
voxels, held = np.prod(shape), 12*a.n*np.prod(shape)  # the published way holds float32 images and their float64 copy
torch.manual_seed(0)
model = Conditional(shape, [f"structure {k}" for k in range(11)], width=a.width).to(device).eval()
z_r, u_s = torch.randn(model.settings["n_latent_r"]), torch.randn(a.n, model.settings["n_latent_s"])
dec_rs = model.dec_rs
dec_rs.convs[-1].weight.data *= 30  # some contrast


@torch.no_grad()
def drawn(u_s):
    "All three channels of each sample, batch by batch"
    y = F.one_hot(torch.zeros(a.batch, dtype=torch.long, device=device), len(model.classes)).float()
    for u in u_s.to(device).split(a.batch): yield torch.sigmoid(dec_rs(z_r.to(device).expand(len(u), -1), y[:len(u)], u))


def plain(u_s):
    for x in drawn(u_s): pass


def published(u_s):
    images = np.empty((len(u_s), voxels), np.float32)
    for k, x in enumerate(drawn(u_s)): images[k*a.batch:k*a.batch + len(x)] = x[:, STRUCTURE].flatten(1).cpu().numpy()
    return -np.linalg.slogdet(np.corrcoef(images))[1]/len(u_s)


def library(u_s, memory=max(2**24, int(held/20))):
    samples = draws(model, Normal(), z_r[None], u_s, a.batch)(0, 0)
    return sample_variation(samples, memory=memory)


def timed(way):
    with Peak() as peak:
        start, cpu = time.perf_counter(), time.process_time()
        value = way(u_s)
        if device.type == "cuda": torch.cuda.synchronize()
        taken = time.perf_counter() - start, time.process_time() - cpu
    return *taken, peak.host_gib + peak.device_gib, peak.device_gib, value


sides = {"plain decodes": plain, "published": published, "library": library}
if device.type == "cuda": sides |= {"library": partial(library, memory=None), "library, a twentieth": library}
for way in sides.values(): way(u_s[:2*a.batch])  # warm
found = {name: [] for name in sides}
for _ in range(a.repeats):
    for name, way in sides.items(): found[name].append(timed(way))
rows = []
for name, runs in found.items():
    wall, cpu, gib, on_gpu = (statistics.median(r[k] for r in runs) for k in range(4))
    rows.append({"side": name, "seconds": wall, "cpu_seconds": cpu, "working_gib": gib, "of_it_gpu_gib": on_gpu, "neg_log_det": runs[0][4]})
for row in rows:
    row |= {"times_the_decodes": row["seconds"]/rows[0]["seconds"], "cpu_times_the_decodes": row["cpu_seconds"]/rows[0]["cpu_seconds"]}
    row["share_of_memory"] = row["working_gib"]/rows[1]["working_gib"]
record("Does Algorithm 4 cost no more than the decoding that it needs?", rows, a.name, n=a.n, shape=list(shape), width=a.width, batch=a.batch,
       difference_of_the_number=abs(rows[1]["neg_log_det"] - rows[2]["neg_log_det"]), hours_for_100_cells_of_11_structures=1100*rows[2]["seconds"]/3600)
