"Cells a second of three channels: python bench/simulate.py [--n 400] [--shape 32,48,64]; prints JSON"
import argparse
import json
import os
import time

from integrated_cell.simulate import simulate_cells

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--n", type=int, default=400)
parser.add_argument("--shape", default="32,48,64")
args = parser.parse_args()
shape = tuple(int(s) for s in args.shape.split(","))
simulate_cells(22, shape)
start, cpu = time.perf_counter(), time.process_time()
simulate_cells(args.n, shape, seed=1)
wall, cpu = time.perf_counter() - start, time.process_time() - cpu
print(json.dumps(dict(cells_per_s=round(args.n/wall, 1), cpu_ms_per_cell=round(1000*cpu/args.n, 1), shape=shape, n=args.n, cores=len(os.sched_getaffinity(0)))))
