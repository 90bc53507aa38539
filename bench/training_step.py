"""Is one training step faster than the original's? Both sides in one process, same shape, width and batch, taken in turn.

    python bench/training_step.py --shape 32,48,64 --width 0.25 --batch 4 --steps 3

Prints a row a phase and a side, then JSON: median seconds a step and their ratio to the original's schedule. The sides: the
original's schedule (bench/as_published.py), the library's step, and the same with channels-last tensors.
"""
import argparse
import json
import statistics
import time
from functools import partial

import as_published
import torch
from lightning.fabric import Fabric

from integrated_cell import conditional, reference

said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
said.add_argument("--shape", default="32,48,64")
said.add_argument("--width", type=float, default=.25)
said.add_argument("--batch", type=int, default=4)
said.add_argument("--steps", type=int, default=3)
said.add_argument("--precision", default="32-true", help="of the library's sides, e.g. bf16-mixed")
a = said.parse_args()
SHAPE = tuple(int(s) for s in a.shape.split(","))
fabric = Fabric(accelerator="auto", devices=1, precision=a.precision)
device = fabric.device
x, y = torch.rand(a.batch, 3, *SHAPE, device=device), torch.arange(a.batch, device=device) % 11


def sides(make, phase):
    "Functions without arguments, each a step of its own copy of the model"
    for name in ("as published", "library", "library, channels last"):
        torch.manual_seed(0)
        model = make().to(device)
        if name.endswith("last"): model = model.to(memory_format=torch.channels_last_3d)
        opts = reference.optimisers(model)
        if name == "as published":
            nets = {n: getattr(model, n) for n in opts}
            d_r, d_s = model.settings.get("n_latent", model.settings.get("n_latent_r")), model.settings.get("n_latent_s", 0)
            noise = [torch.randn(a.batch, d, device=device) for d in (d_r, d_s)]
            own = as_published.adam(nets)
            if phase == "reference": yield name, partial(as_published.reference_step, nets, own, x, noise[0])
            else: yield name, partial(as_published.conditional_step, nets, own, x, y, noise[0], *noise, y.flip(0))
        else:
            step = reference.step if phase == "reference" else partial(conditional.step, enc_r=model.enc_r)
            nets = {n: fabric.setup_module(getattr(model, n)) for n in opts}
            yield name, partial(step, nets, {n: fabric.setup_optimizers(o) for n, o in opts.items()}, dict(x=x, y=y), fabric)


def seconds(step):
    start = time.perf_counter()
    step()
    if device.type == "cuda": torch.cuda.synchronize()
    return time.perf_counter() - start


phases = {"reference": lambda: reference.Reference(SHAPE, width=a.width),
          "conditional": lambda: conditional.Conditional(SHAPE, [f"structure {k}" for k in range(11)], width=a.width)}
found = {}
for phase, make in phases.items():
    steps = dict(sides(make, phase))
    for step in steps.values(): seconds(step)  # warm
    taken = {name: [] for name in steps}
    for _ in range(a.steps):
        for name, step in steps.items(): taken[name].append(seconds(step))
    median = {name: statistics.median(t) for name, t in taken.items()}
    found[phase] = {name: dict(seconds=round(s, 3), times_as_fast=round(median["as published"]/s, 2)) for name, s in median.items()}
    for name, row in found[phase].items(): print(f"{phase:12} {name:24} {row['seconds']:9.3f} s {row['times_as_fast']:6.2f} ×")
print(json.dumps(dict(device=str(device), threads=torch.get_num_threads(), torch=torch.__version__, shape=SHAPE, width=a.width, batch=a.batch, precision=a.precision, **found)))
