"""How does the cost of a cell in training grow with its volume, the networks' width, the batch, the structures and the number of cells?

    python bench/growth.py [--repeats 5] [--shapes "16,24,32;32,48,64;64,96,128"] [--widths 0.25,0.5,1]

One thing is varied at a time, the others stay at --shape, --width and --batch. All settings of a sweep are measured in turn, a
step at a time; the medians count. An exponent is the slope of log(cost a cell) against log(what is varied); beside it that of the
floating-point operations, which PyTorch counts in the very step, and of the weights, which the optimisers move once a step. On a
CPU the cost is processor time, which other programs do not stretch; on a GPU it is wall time. Small steps are mostly overhead, so
the slope between the last two settings is told as well. Feeding is measured over whole epochs of stores in memory, without steps.
"""
import argparse
import time
from functools import partial
from statistics import median

import numpy as np
import pandas as pd
import torch
from lightning.fabric import Fabric
from record import record
from torch.utils.flop_counter import FlopCounterMode

from integrated_cell.integration import conditional, reference
from integrated_cell.data.batches import Batches

LINEAR = {"volume": 1, "width": 1, "batch": 0, "structures": 0, "cells": 0}  # exponents of a cost a cell that are no more than linear
said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
said.add_argument("--shapes", default="12,18,24;16,24,32;24,36,48;32,48,64", help="volumes to try")
said.add_argument("--widths", default="0.125,0.25,0.5,1")
said.add_argument("--batches", default="2,4,8,16")
said.add_argument("--structures", default="2,11,50,250")
said.add_argument("--cells", default="2000,20000,200000", help="stores that feed; --feed_shape is the shape of their cells")
said.add_argument("--shape", default="16,24,32", help="where it is not varied")
said.add_argument("--feed_shape", default="4,6,8")
said.add_argument("--width", type=float, default=.25)
said.add_argument("--batch", type=int, default=4)
said.add_argument("--repeats", type=int, default=3)
said.add_argument("--precision", default="32-true")
a = said.parse_args()
fabric = Fabric(accelerator="auto", devices=1, precision=a.precision)
device = fabric.device
clock = time.perf_counter if device.type == "cuda" else time.process_time


def sizes(text): return tuple(int(s) for s in text.split(","))


def numbers(text, kind=int): return [kind(s) for s in text.split(",")]


def step_of(phase, shape=sizes(a.shape), width=a.width, batch=a.batch, structures=11):
    "A step of a new model on random cells, as a function without arguments"
    torch.manual_seed(0)
    names = [f"structure {k}" for k in range(structures)]
    model = (reference.Reference(shape, width=width) if phase == "reference" else conditional.Conditional(shape, names, width=width)).to(device)
    opts = reference.optimisers(model)
    nets = {n: fabric.setup_module(getattr(model, n)) for n in opts}
    x, y = torch.rand(batch, 3, *shape, device=device), torch.arange(batch, device=device) % structures
    step = reference.step if phase == "reference" else partial(conditional.step, enc_r=model.enc_r)
    ready = {n: fabric.setup_optimizers(o) for n, o in opts.items()}
    return partial(step, nets, ready, dict(x=x, y=y), fabric), sum(p.numel() for p in model.parameters())


def seconds(do):
    "What a call costs"
    start = clock()
    do()
    if device.type == "cuda": torch.cuda.synchronize()
    return clock() - start


def feed(batches):
    "An epoch that nobody trains on"
    for batch in batches.epoch(0): pass


def swept(phase, against, values):
    "A row a value: what a cell costs in a step, and how many operations"
    steps = [step_of(phase, **{"shape" if against == "volume" else against: v}) for v in values]
    n = values if against == "batch" else [a.batch]*len(values)
    flop = []
    for step, _ in steps:
        with FlopCounterMode(display=False) as counted: step()  # this also warms it
        flop.append(counted.get_total_flops())
    taken = [[seconds(step) for step, _ in steps] for _ in range(a.repeats)]
    return [dict(phase=phase, against=against, value=float(np.prod(v)), seconds_per_cell=median(t)/k, gflop_per_cell=f/k/1e9, parameters=p)
            for v, t, k, f, (_, p) in zip(values, zip(*taken), n, flop, steps)]


def fed(counts):
    "A row a store: what reading a cell costs, over a whole epoch"
    images = np.zeros((max(counts), 3, *sizes(a.feed_shape)), np.uint8)
    stores = [Batches(images[:n], np.zeros(n, int), np.arange(n), 30, device=str(device)) for n in counts]
    for store in stores: feed(store)
    taken = [[seconds(partial(feed, store)) for store in stores] for _ in range(a.repeats)]
    return [dict(phase="feeding", against="cells", value=float(n), seconds_per_cell=median(t)/n, gflop_per_cell=0., parameters=0)
            for n, t in zip(counts, zip(*taken))]


def slope(rows, what):
    "The exponent of a power law through a sweep; none where nothing of the kind is counted"
    if not all(r[what] for r in rows): return None
    x, y = (np.log([r[k] for r in rows]) for k in ("value", what))
    return round(float(np.polyfit(x, y, 1)[0]), 3)


plan = {"volume": [sizes(s) for s in a.shapes.split(";")], "width": numbers(a.widths, float), "batch": numbers(a.batches)}
sweeps = [swept(phase, against, values) for phase in ("reference", "conditional") for against, values in plan.items()]
sweeps += [swept("conditional", "structures", numbers(a.structures)), fed(numbers(a.cells))]
whats = {"seconds": "seconds_per_cell", "operations": "gflop_per_cell", "weights": "parameters"}
exponents = [dict(phase=s[0]["phase"], against=s[0]["against"], linear=LINEAR[s[0]["against"]],
                  **{name + end: slope(part, what) for end, part in (("", s), ("_end", s[-2:])) for name, what in whats.items()}) for s in sweeps]
print("exponents of the cost a cell, over the whole sweep and between its last two settings; linear: what a cost in proportion has")
print(pd.DataFrame(exponents).to_string(index=False, na_rep=""))
record("How does the cost of a cell grow?", [r for s in sweeps for r in s], exponents=exponents, shape=sizes(a.shape), width=a.width, batch=a.batch,
       precision=a.precision, clock="wall time" if device.type == "cuda" else "processor time")
