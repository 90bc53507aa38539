"All critics of a two-sample test at once against one by one: python bench/c2st.py [--n_critics 6] [--n_steps 10] [--n_filters 8] [--batch_size 16] [--shape 48,80] [--out FILE]; prints a table and JSON"
import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from integrated_cell.c2st import c2st_many

parser = argparse.ArgumentParser(description=__doc__)
for name, value in dict(n_critics=6, n_steps=10, n_filters=8, batch_size=16, repeats=3, seed=0).items(): parser.add_argument(f"--{name}", type=int, default=value)
parser.add_argument("--shape", default="48,80")
parser.add_argument("--objective", default="wgan-gp")
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
parser.add_argument("--out", default="")
args = parser.parse_args()
shape = tuple(int(s) for s in args.shape.split(","))
rng = np.random.default_rng(args.seed)
real, fake = rng.integers(0, 256, (2, 2*args.batch_size, 2, *shape), dtype=np.uint8)

def seconds(batched, n_steps):
    start = time.perf_counter()
    c2st_many({"noise": (real, fake)}, args.objective, args.n_critics, n_steps, args.n_filters, args.batch_size, args.seed, batched=batched, device=args.device)
    if args.device == "cuda": torch.cuda.synchronize()
    return time.perf_counter() - start

took = {False: [], True: []}
for batched in took: seconds(batched, 2)  # warm
for _ in range(args.repeats):  # in turn, so that what else the machine does meets both; start and scoring are taken off
    for batched, of in took.items(): of.append((seconds(batched, 2 + args.n_steps) - seconds(batched, 2))/args.n_steps/args.n_critics)
one, stacked = (np.median(of) for of in took.values())
scores = [c2st_many({"noise": (real, fake)}, args.objective, 2, 5, args.n_filters, args.batch_size, args.seed, batched=b, lr=1e-3, device=args.device, dtype=torch.float64).score for b in took]
print(pd.DataFrame({"one by one": [1e3*one, 1.], "all at once": [1e3*stacked, one/stacked]}, index=["ms a critic and step", "times as fast"]).round(2).to_string())
found = dict(ratio=round(one/stacked, 2), ms_one_by_one=round(1e3*one, 2), ms_all_at_once=round(1e3*stacked, 2), largest_difference_of_scores=float(abs(scores[0] - scores[1]).max()),
             device=torch.cuda.get_device_name() if args.device == "cuda" else f"cpu, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads", **{k: v for k, v in vars(args).items() if k not in ("device", "out")})
print(json.dumps(found))
if args.out: Path(args.out).write_text(json.dumps(found, indent=1))
