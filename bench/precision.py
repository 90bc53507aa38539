"""Does training in another precision change what a model can do? Pairs of runs with equal seeds, one in float32 and one not.

    python bench/precision.py --seconds 0 --cells 2000   # to the end; can be stopped, and goes on when called again

A pair trains both phases with the settings of a config (quick) on the same cells, from the same weights, with the same batches
and noise; then both models, evaluated in float32, judge the same held-out cells. By default a call trains for 50 seconds, keeps
its checkpoints under --folder and records the pairs that are complete; --epochs and --cells make a small trial. A relative
difference is (other - float32)/float32 of the mean over the test cells, its interval Student's over the seeds; beside it one
from a bootstrap over the test cells of these very runs, and how much float32 runs differ that only have different seeds.

On a CPU, products of half-precision numbers are summed in float32 and then rounded, which is what a GPU's units do and takes a
CPU without such units less than half of the time of its own half precision.
"""
import argparse
import signal
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from record import ROOT, record
from scipy.stats import t
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from integrated_cell.integration import conditional, reference
from integrated_cell.training import train
from integrated_cell.data.cells import Cells
from integrated_cell.training.losses import entropy_floor
from integrated_cell.evaluation.metrics import image_correlation, in_batches
from integrated_cell.results import whole
from integrated_cell.simulation.stem import simulate_cells
from integrated_cell.parameters import declared
from integrated_cell.workflow import commit, parameters, read_config

AIM = .02
MEASURES = ("accuracy", "correlation", "cross_entropy_nats")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Rounded(TorchDispatchMode):
    "Convolutions and matrix products of half-precision tensors: summed in float32, then rounded"
    heavy = {getattr(torch.ops.aten, n).default for n in ("convolution", "convolution_backward", "addmm", "mm", "bmm")}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        half = args[0].dtype if func in self.heavy else torch.float32
        if half not in (torch.bfloat16, torch.float16): return func(*args, **kwargs or {})
        return tree_map_only(torch.Tensor, lambda x: x.to(half), func(*tree_map_only(torch.Tensor, torch.Tensor.float, args), **kwargs or {}))


def settings(a, chapter):
    "A chapter's parameters in the config, its own defaults included"
    config = read_config(ROOT.parent/"config"/f"{a.config}.yaml")
    every = declared(ROOT.parent/"nbs/experiments"/f"{chapter}.ipynb") | parameters(config, chapter)
    return every | ({"n_epochs": a.epochs} if a.epochs else {}) | ({"n_cells": a.cells} if a.cells else {})


def store(a, folder):
    "The config's simulated cells"
    s = settings(a, "data")
    size = tuple(int(n) for n in (s["shape"] or "16,24,32").split(","))
    return Cells.open(folder) if folder.exists() else simulate_cells(s["n_cells"], size, s["seed"], path=folder, test_fraction=s["test_fraction"])


def trained(s, model, step, cells, seed, precision, out):
    "One phase of training, as its chapter does it"
    opts = reference.optimisers(model, s["lr"], s["lr_enc_d"])
    batches = cells.batches(cells.rows("train"), s["batch_size"], seed=seed, device=DEVICE, flip=s["flip"])
    with Rounded() if DEVICE == "cpu" and precision != "32-true" else nullcontext():
        train.fit(model, partial(step, gamma_enc=s["gamma_enc"], gamma_dec=s["gamma_dec"]), opts, batches, s["n_epochs"], out, seed=seed,
                  precision=precision, anneal=s["anneal"], save_every_s=20)
    return model.to(DEVICE).eval()


def judged(model, cells):
    "Each test cell under the trained model, in float32: is its structure named, how well is it rebuilt, at what loss"
    test, y = cells.rows("test"), cells.table.y.to_numpy()

    def each(x):
        x_hat, _, y_hat, _ = model(x)
        loss = F.binary_cross_entropy(x_hat.clamp(1e-6, 1 - 1e-6), x, reduction="none").flatten(1).mean(1)
        return y_hat.argmax(1), image_correlation(x_hat, x).mean(1), loss, entropy_floor(x).mean(1)
    named, rho, loss, floor = (v.numpy() for v in in_batches(each, cells, test, device=DEVICE))
    return {"accuracy": (named == y[test]).astype(float), "correlation": rho, "cross_entropy_nats": loss, "floor_nats": floor}


def run(a, cells, seed, precision, out):
    "Both phases and their judgement; what is finished is only read"
    if not (out/"judged.npz").exists():
        print(f"{out}: training", flush=True)
        r, c = settings(a, "reference"), settings(a, "conditional")
        torch.manual_seed(seed)
        first = reference.Reference(cells.shape, r["n_latent_r"], r["width"], r["noise"], cells.voxel_um)
        first = trained(r, first, reference.step, cells, seed, precision, out/"reference")
        torch.manual_seed(seed)
        second = conditional.Conditional.after(first.cpu(), cells.classes, c["n_latent_s"])
        second = trained(c, second, partial(conditional.step, enc_r=second.enc_r), cells, seed, precision, out/"conditional")
        with whole(out/"judged.npz") as part, open(part, "wb") as f: np.savez(f, commit=commit(ROOT.parent), **judged(second, cells))
    return dict(np.load(out/"judged.npz"))


def compared(name, pairs):
    "The relative difference of one measure over the seeds and its intervals; float32 comes first in each pair"
    full, other = (np.stack([pair[side][name] for pair in pairs]) for side in (0, 1))  # (seeds, test cells)
    apart, n, rng = other.mean(1)/full.mean(1) - 1, len(pairs), np.random.default_rng(0)
    half = t.ppf(.975, n - 1)*apart.std(ddof=1)/n**.5 if n > 1 else np.nan
    chosen = rng.integers(full.shape[1], size=(2000, full.shape[1]))
    low, high = np.quantile([other[:, c].mean()/full[:, c].mean() - 1 for c in chosen], [.025, .975])
    found = dict(float32=full.mean(), other=other.mean(), relative_difference=apart.mean(), low=apart.mean() - half, high=apart.mean() + half,
                 furthest=abs(apart.mean()) + half, low_over_cells=low, high_over_cells=high,
                 sd_between_float32_seeds=full.mean(1).std(ddof=1)/full.mean() if n > 1 else np.nan)
    return dict(measure=name, **{k: float(v) if np.isfinite(v) else None for k, v in found.items()}, seeds=n, test_cells=full.shape[1], aim=AIM)


def main():
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("--config", default="quick", help="whose settings")
    said.add_argument("--precision", default="bf16-mixed", help="against 32-true")
    said.add_argument("--seeds", type=int, default=3)
    said.add_argument("--first", type=int, default=0, help="seed to begin with, for a call on another core; one without this tells of all")
    said.add_argument("--cells", type=int, default=0, help="0: as the config says")
    said.add_argument("--epochs", type=int, default=0, help="of each phase; 0: as the config says")
    said.add_argument("--seconds", type=int, default=50, help="how long a call may train; 0: to the end")
    said.add_argument("--folder", default="results/precision", help="keeps the runs")
    a = said.parse_args()
    folder, pairs = Path(a.folder)/f"{a.config}-{a.cells}-{a.epochs}", []
    cells = store(a, folder/"cells")
    about = dict(config=a.config, precision=a.precision, cells=len(cells), shape=list(cells.shape),
                 epochs=[settings(a, c)["n_epochs"] for c in ("reference", "conditional")])
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.alarm(a.seconds)
    try:
        for seed in range(a.first, a.seeds):
            pairs.append([run(a, cells, seed, precision, folder/f"{precision}-{seed}") for precision in ("32-true", a.precision)])
            record(f"Does {a.precision} change what a model can do?", [compared(name, pairs) for name in MEASURES],
                   commits=sorted({str(r["commit"]) for pair in pairs for r in pair}), **about)
    except KeyboardInterrupt: print(f"{len(pairs)} of {a.seeds - a.first} pairs are complete; call again to go on, with --seconds 0 to the end")


if __name__ == "__main__": main()
