"""Which way of a level's three products is the fastest on a CPU: PyTorch's own, one matrix product, or a half at a time?

    python bench/convolve.py [--batch 4] [--widths .25,1] [--repeats 3]

Every level of the encoder at a laptop's size (32, 48, 64; quarter width) and at the paper's (64, 96, 128; full width). Processor
time in milliseconds, the smallest of the repeats; `chosen` is what integrated_cell.training.convolve takes.
"""
import argparse
import time

import torch
from record import record

from integrated_cell.training import convolve
from integrated_cell.training.networks import CHANNELS, sides

said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
said.add_argument("--batch", type=int, default=4)
said.add_argument("--widths", default=".25,1")
said.add_argument("--repeats", type=int, default=2)
a = said.parse_args()
chosen = convolve._few, convolve._many
no, yes = (lambda *_: False), (lambda *_: True)
WAYS = {"pytorch": (no, no), "one_product": (yes, no), "halves": (no, yes), "chosen": chosen}


def milliseconds(f):
    "Processor time"
    f()
    taken = []
    for _ in range(a.repeats):
        start = time.process_time()
        f()
        taken.append(time.process_time() - start)
    return round(1e3*min(taken), 2)


rows = []
for width, shape in [(float(w), (64, 96, 128) if float(w) >= 1 else (32, 48, 64)) for w in a.widths.split(",")]:
    levels, channels = sides(shape), [2, *[round(width*c) for c in (*CHANNELS, CHANNELS[-1])]]
    for i, o, s, out in zip(channels, channels[1:], levels, levels[1:]):
        x, w, y = torch.randn(a.batch, i, *s), torch.randn(o, i, 4, 4, 4), torch.randn(a.batch, o, *out)
        large = y.numel()//o*i*64*4 > 2**31  # windows of all positions would not fit
        for what, f in dict(down=lambda: convolve._down(x, w), up=lambda: convolve._up(y, w, s), weights=lambda: convolve._weights(x, y)).items():
            row = dict(product=what, channels=f"{i} to {o}", level=",".join(map(str, s)), width=width)
            for name, (convolve._few, convolve._many) in WAYS.items():
                if not (name == "one_product" and large or name == "halves" and what != "up"): row[f"{name}_ms"] = milliseconds(f)
            rows.append(row)
record("Which way of a convolution is the fastest?", rows, batch=a.batch)
