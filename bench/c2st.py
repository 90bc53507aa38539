"""Are the critics of a two-sample test trained faster all at once or one by one, and does the library choose the faster?

    python bench/c2st.py                                      (on a GPU: the paper's critics, 6 classes of 10 splits)
    python bench/c2st.py --sizes 48x80:4:8:6,16x24x32:4:4:6   (shape : filters : batch : critics)

Both ways in turn on the same images, seconds a critic and step, starting and scoring taken off; `times_as_fast` is all at once over one
by one, `chosen_times_as_fast` the way that `c2st_many` takes by itself over the other one.
"""
import argparse
import statistics
import time

import numpy as np
import torch
from record import record

from integrated_cell.evaluation.c2st import at_once, c2st_many

on_gpu = torch.cuda.is_available()
said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
said.add_argument("--sizes", default="48x80:64:64:60,48x80:8:16:60" if on_gpu else "12x16:4:8:6,48x80:4:8:6,48x80:8:16:6,48x80:16:16:4,16x24x32:4:4:4")
said.add_argument("--steps", type=int, default=20 if on_gpu else 4)
said.add_argument("--repeats", type=int, default=3)
said.add_argument("--objective", default="wgan-gp")
a = said.parse_args()
device, rows = torch.device("cuda" if on_gpu else "cpu"), []
for size in a.sizes.split(","):
    shape, n_filters, batch_size, n = (f(v) for f, v in zip((lambda s: tuple(int(k) for k in s.split("x")), int, int, int), size.split(":")))
    real, fake = np.random.default_rng(0).integers(0, 256, (2, 2*batch_size, 2, *shape), dtype=np.uint8)

    def train(batched, n_steps, n_splits=n, **kwargs):
        start = time.perf_counter()
        table = c2st_many({"noise": (real, fake)}, a.objective, n_splits, n_steps, n_filters, batch_size, batched=batched, device=device, **kwargs)
        if on_gpu: torch.cuda.synchronize()
        return time.perf_counter() - start, table

    took = {False: [], True: []}
    for batched in took: train(batched, 2, min(n, 2) if not batched else n)  # warm
    for _ in range(a.repeats):
        for batched, of in took.items(): of.append((train(batched, 2 + a.steps)[0] - train(batched, 2)[0])/a.steps/n)
    one, stacked = (statistics.median(of) for of in took.values())
    alike = [train(batched, 3, 2, lr=1e-3, dtype=torch.float64)[1].score for batched in took]
    together = at_once(device, {shape}, batch_size, n_filters) > 1
    rows.append({"shape": "x".join(map(str, shape)), "filters": n_filters, "batch": batch_size, "critics": n, "ms_one_by_one": 1e3*one,
                 "ms_all_at_once": 1e3*stacked, "times_as_fast": one/stacked, "chosen": "all at once" if together else "one by one",
                 "chosen_times_as_fast": one/stacked if together else stacked/one, "largest_difference_of_scores": float(abs(alike[0] - alike[1]).max())})
record("Are many critics trained faster all at once or one by one?", rows, objective=a.objective, steps=a.steps)
