"""How many three-channel cells does the simulator make a second?

    python bench/simulate.py [--n 200] [--shapes "16,24,32 32,48,64"]
"""
import argparse
import time

from record import record

from integrated_cell.simulation.stem import simulate_cells

said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
said.add_argument("--n", type=int, default=200)
said.add_argument("--shapes", default="16,24,32 32,48,64")
a = said.parse_args()
rows = []
for shape in a.shapes.split():
    size = tuple(int(s) for s in shape.split(","))
    simulate_cells(22, size)
    start, cpu = time.perf_counter(), time.process_time()
    simulate_cells(a.n, size, seed=1)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    rows.append(dict(shape=shape, cells_per_s=round(a.n/wall, 1), cpu_ms_per_cell=round(1000*cpu/a.n, 1), n=a.n))
record("How fast are cells simulated?", rows)
