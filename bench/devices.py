"""Do several processes do what one does, and how much faster? Training of both phases at one global batch: on one device, and shared by all of them.

    python bench/devices.py                                                   # two processes on a CPU, or all GPUs where there are several
    python bench/devices.py --shape 64,96,128 --width 1 --batch 30 --precision bf16-mixed

Equality is asked at a small size in double and in single precision, beside one process whose images differ in their last bit.
"""
import argparse
import functools
import logging
import multiprocessing
import os
import tempfile

import numpy as np
import torch
from record import record

from integrated_cell.integration import conditional, reference
from integrated_cell.data.batches import Batches
from integrated_cell.training.train import fit

REBUILT = ["loss_x_r", "loss_x_rs", "loss_z_r", "loss_y"]  # no adversary's
FORK = multiprocessing.get_context("fork")


class Cells(Batches):
    "Random cells, as they are in a store, in double precision or off by a bit if that is asked for"
    def __init__(self, shape, batch, steps, dtype=torch.float32, nudge=1.):
        draw = np.random.default_rng(0)
        super().__init__(draw.integers(0, 256, (batch*steps, 3, *shape), np.uint8), draw.integers(0, 3, batch*steps), np.arange(batch*steps), batch,
                         device="cuda" if torch.cuda.device_count() > 1 else "cpu", resident=True)
        self.dtype, self.nudge = dtype, nudge

    def epoch(self, *args, **kwargs):
        for batch in super().epoch(*args, **kwargs): yield batch | {"x": batch["x"].to(self.dtype)*self.nudge}


def train(queue, phase, shape, width, cells, threads, devices, epochs, precision="32-true"):
    torch.set_num_threads(threads)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    torch.manual_seed(0)
    model, step = reference.Reference(shape, 16, width), reference.step
    if phase == "conditional":
        model = conditional.Conditional.after(model, ["a", "b", "c"], 16)
        step = functools.partial(conditional.step, enc_r=model.enc_r)
    model.to(cells.dtype)
    with tempfile.TemporaryDirectory() as folder:
        queue.put(fit(model, step, reference.optimisers(model), cells, epochs, folder, devices=devices, precision=precision, show=False,
                      accelerator="auto" if torch.cuda.device_count() > 1 else "cpu"))


def trained(*args, **kwargs):
    "History of a training in a process of its own, which leaves GPUs and threads of this one untouched"
    queue = FORK.SimpleQueue()
    process = FORK.Process(target=train, args=(queue, *args), kwargs=kwargs)
    process.start()
    history = queue.get()
    process.join()
    return history


def differ(one, two, only=None):
    "Largest relative difference of a loss over all epochs"
    losses = [c for c in one if c.startswith("loss") and (only is None or c in only)]
    return ((two[losses] - one[losses]).abs()/one[losses].abs()).max(axis=None)


def equality(phase, n, batch, steps, epochs):
    "How far `n` processes are from one, at a small size"
    shape, row = (8, 12, 16), {"steps": steps*epochs, "cells": batch}
    for name, dtype in ("double", torch.float64), ("single", torch.float32):
        one, many = (trained(phase, shape, 1/16, Cells(shape, batch, steps, dtype), 1, devices, epochs) for devices in (1, n))
        row[f"largest_relative_difference_{name}"] = differ(one, many)
        if name == "single":
            nudged = trained(phase, shape, 1/16, Cells(shape, batch, steps, dtype, 1 + 2**-23), 1, 1, epochs)
            row |= {"rebuilt_relative_difference_single": differ(one, many, REBUILT), "largest_relative_difference_of_one_nudged": differ(one, nudged)}
    return row


def main():
    if torch.cuda.device_count() == 1: os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "BENCH_CARD": "cpu"}  # one GPU shares nothing
    gpus = torch.cuda.device_count()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=gpus if gpus > 1 else 2, help="processes that share a batch")
    parser.add_argument("--shape", default="16,24,32", help="of the timed cells")
    parser.add_argument("--width", type=float, default=.25, help="of the timed networks")
    parser.add_argument("--batch", type=int, default=16, help="cells of the timed global batch")
    parser.add_argument("--steps", type=int, default=4, help="timed steps a turn, after as many that are not")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8, help="epochs of four steps that equality is asked of")
    parser.add_argument("--precision", default="32-true", help="of the timed trainings")
    a = parser.parse_args()
    n, shape = a.devices, tuple(int(s) for s in a.shape.split(","))
    sides = {f"1 of {n}": (1, 1), "1, all threads": (n, 1), f"{n} together": (1, n)} if gpus < 2 else {"1 GPU": (1, 1), f"{n} GPUs": (1, n)}
    rows = []
    for phase in "reference", "conditional":
        speed = {side: [] for side in sides}
        for _ in range(a.turns):
            for side, (threads, devices) in sides.items():
                history = trained(phase, shape, a.width, Cells(shape, a.batch, a.steps), threads, devices, 2, a.precision)
                speed[side].append(history.cells_per_s.iloc[-1])
        rates = {side: float(np.median(s)) for side, s in speed.items()}
        for side, (threads, devices) in sides.items():
            times = rates[side]/rates[next(iter(sides))]
            rows.append(dict(phase=phase, side=side, devices=devices, threads=threads, cells_per_s=rates[side], times_as_fast=times, share_of_linear=times/n))
        rows[-1] |= equality(phase, n, 5, 4, a.epochs)
    record("Do several processes do what one does, and how much faster?", rows,
           shape=shape, width=a.width, batch=a.batch, precision=a.precision)


if __name__ == "__main__": main()
