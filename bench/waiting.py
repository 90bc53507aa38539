"""What do threads cost that wait by spinning, as OpenMP's do where nobody says otherwise?

    python bench/waiting.py --steps 3 --repeats 2

A training step of phase 1, on all cores, in turn with what `wait_briefly` sets (as the command line, chapters and tests do), with
threads that sleep at once, and with neither, each in a process of its own: alone, and beside as many other busy programs as there are
cores. `seconds` is the median over the steps of all repeats, `slower_percent` what it is above the best side's in the same place. The machine's load
before each process stands beside it: numbers of 'alone' mean what they say only where it is small.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from record import record, whole_number

from integrated_cell.results import wait_briefly

SIDES = {"brief": {}, "asleep": {"OMP_WAIT_POLICY": "PASSIVE"}, "default": {}}
wait_briefly(SIDES["brief"])
BUSY = "while True: pass"


def arguments():
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("--shape", default="20,30,40")
    said.add_argument("--width", type=float, default=.25)
    said.add_argument("--batch-size", type=int, default=30)
    said.add_argument("--steps", type=whole_number, default=3, help="that are timed, after one that is not")
    said.add_argument("--repeats", type=whole_number, default=2, help="processes of each side, in turn")
    said.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return said.parse_args()


def steps(a):
    "Seconds of each training step of this process"
    import torch
    from lightning.fabric import Fabric

    from integrated_cell.integration import reference
    fabric, shape = Fabric(accelerator="cpu", devices=1), tuple(int(s) for s in a.shape.split(","))
    torch.manual_seed(0)
    model = reference.Reference(shape, width=a.width)
    opts = reference.optimisers(model)
    nets = {name: fabric.setup_module(getattr(model, name)) for name in opts}
    ready = {name: fabric.setup_optimizers(opt) for name, opt in opts.items()}
    batch, seconds = {"x": torch.rand(a.batch_size, 3, *shape)}, []
    for _ in range(a.steps + 1):
        start = time.perf_counter()
        reference.step(nets, ready, batch, fabric)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def one_process(more):
    "What a process of one side measures"
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")} | more
    said = subprocess.run([sys.executable, *sys.argv, "--child"], env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(said.stdout.splitlines()[-1])


def in_place(a, place, n_busy):
    "Rows of all sides beside n_busy other programs"
    busy, taken, load = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(n_busy)], {s: [] for s in SIDES}, []
    try:
        for _ in range(a.repeats):
            for side, more in SIDES.items():
                load.append(os.getloadavg()[0])
                taken[side] += one_process(more)
    finally:
        for other in busy: other.kill()
    median = {side: statistics.median(t) for side, t in taken.items()}
    return [dict(place=place, side=side, seconds=round(s, 3), least=round(min(taken[side]), 3), most=round(max(taken[side]), 3),
                 slower_percent=round(100*(s/min(median.values()) - 1), 1), steps=len(taken[side]), load=round(max(load), 1))
            for side, s in median.items()]


if __name__ == "__main__":
    a = arguments()
    if a.child: print(json.dumps(steps(a))); sys.exit()
    rows = in_place(a, "alone", 0) + in_place(a, "beside busy programs", len(os.sched_getaffinity(0)))
    record("What do threads cost that wait by spinning?", rows, shape=a.shape, width=a.width, batch=a.batch_size,
           aim=dict(brief_alone_slower_percent=3), unit="seconds a training step")
