"""Is one training step faster than the original's? Both phases, all sides in one process, taken in turn.

    python bench/training_step.py [--sizes "32,48,64:.25:4 64,96,128:1:4"] [--sides "as published;library"] [--steps 3] [--precision auto]

A size is shape:width:batch. What is measured is written after each phase of a size, so that a stop loses no more than one; a side
that does not fit in the GPU's memory is left out. On a GPU the paper's batch of 30 is measured too, and the largest batch that fits is sought by doubling. The sides: the original's schedule (bench/as_published.py: float32, PyTorch's own layers, Adam without
fusion) and the library's step; on a GPU also the library with channels-last tensors and compiled. `--precision auto` takes
bf16-mixed where the processor multiplies matrices of it at more than twice the rate of float32. Matrix rate: a product of 4096 x 4096
matrices in that precision. FLOP of a step: counted on PyTorch's meta device. The side `roofline` is no program but a bound: of each
operation of the library's step the longer of two times, its FLOP at the matrix rate of its precision and its bytes at the rate of a
copy of the batch.
"""
import argparse
import resource
import statistics
import time
from functools import partial

import as_published
import torch
from lightning.fabric import Fabric
from record import record
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from integrated_cell.integration import conditional, reference



def sizes(text):
    "For argparse: shape, width and batch of each size"
    try: return [(tuple(int(s) for s in shape.split(",")), float(width), int(n)) for shape, width, n in (size.split(":") for size in text.split())]
    except ValueError: raise argparse.ArgumentTypeError(f"'{text}' is no list of shape:width:batch, e.g. 32,48,64:.25:4") from None


said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
said.add_argument("--sizes", type=sizes, default="32,48,64:.25:4 64,96,128:1:4" + " 64,96,128:1:30"*torch.cuda.is_available())
said.add_argument("--sides", default="as published;library" + ";library, channels last;library, compiled"*torch.cuda.is_available())
said.add_argument("--name", default="training_step", help="of the file of results, for other sizes beside these")
said.add_argument("--no-largest", action="store_true", help="do not seek the largest batch")
said.add_argument("--steps", type=int, default=3, help="at least; of short steps as many as fill a few seconds")
said.add_argument("--precision", default="auto", help="of the library's sides, e.g. 32-true")
a = said.parse_args()
cuda = torch.cuda.is_available()
device = torch.device("cuda" if cuda else "cpu")
CELLS, EPOCHS = 19755, 150  # of the paper, a phase


def seconds(f, n=1):
    "Wall time of n calls"
    if cuda: torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(n): f()
    if cuda: torch.cuda.synchronize()
    return (time.perf_counter() - start)/n


def matrix_rate(dtype, n=4096):
    "FLOP a second of a large matrix product"
    x = torch.randn(n, n, device=device, dtype=dtype)
    seconds(lambda: x @ x)
    return 2*n**3/min(seconds(lambda: x @ x, 10 if cuda else 1) for _ in range(3))


torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 is float32
rates = {torch.float32: matrix_rate(torch.float32), torch.bfloat16: matrix_rate(torch.bfloat16)}
precision = a.precision if a.precision != "auto" else "bf16-mixed" if rates[torch.bfloat16] > 2*rates[torch.float32] else "32-true"
rate = rates[torch.bfloat16 if precision.startswith("bf16") else torch.float32]
PHASES = {"reference": lambda shape, width: reference.Reference(shape, width=width),
          "conditional": lambda shape, width: conditional.Conditional(shape, [f"structure {k}" for k in range(11)], width=width)}


def batch_of(shape, n, at): return dict(x=torch.rand(n, 3, *shape, device=at), y=torch.arange(n, device=at) % 11)


def copy_rate(x, times=10):
    "Bytes a second that are read and written when x is copied"
    y = torch.empty_like(x)
    return 2*x.nbytes/min(seconds(lambda: y.copy_(x)) for _ in range(times))


class Roofline(TorchDispatchMode):
    "Adds up how long each operation takes at least"
    def __init__(self, bytes_a_second): super().__init__(); self.seconds, self.bytes_a_second = 0., bytes_a_second

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns): return out  # a view moves nothing
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        flop = flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out) if func._overloadpacket in flop_registry else 0
        half = any(t.dtype == torch.bfloat16 for t in tensors)
        self.seconds += max(sum(t.nbytes for t in tensors)/self.bytes_a_second, flop/rates[torch.bfloat16 if half else torch.float32])
        return out


def library(model, batch, precision, wrap=lambda net: net):
    "The library's step of a model, as `fit` calls it"
    fabric = Fabric(accelerator="gpu" if batch["x"].is_cuda else "cpu", devices=1, precision=precision)
    opts = reference.optimisers(model) if batch["x"].device.type != "meta" else as_published.adam(dict(model.named_children()))  # fused: not on meta
    step = partial(conditional.step, enc_r=model.enc_r) if isinstance(model, conditional.Conditional) else reference.step
    nets = {n: fabric.setup_module(wrap(getattr(model, n)), move_to_device=False) for n in opts}
    ready = opts if batch["x"].device.type == "meta" else {n: fabric.setup_optimizers(o) for n, o in opts.items()}
    return partial(step, nets, ready, batch, fabric)


def published(model, batch):
    "The original's step"
    nets = {n: getattr(as_published.plain(model), n) for n in reference.optimisers(model)}
    x, own = batch["x"], as_published.adam(nets)
    z_r, z_s = (torch.randn(len(x), model.settings.get(d, 0), device=device) for d in ("n_latent" if "n_latent" in model.settings else "n_latent_r", "n_latent_s"))
    if isinstance(model, reference.Reference): return partial(as_published.reference_step, nets, own, x, z_r)
    return partial(as_published.conditional_step, nets, own, x, batch["y"], z_r, z_r, z_s, batch["y"].flip(0))


def gflop_a_cell(phase, shape, width):
    "Multiplications and additions of the library's step, counted"
    with torch.device("meta"): model, batch = PHASES[phase](shape, width), batch_of(shape, 4, "meta")
    for net in model.children(): net.noise = 0.
    with FlopCounterMode(display=False) as count: library(model, batch, "32-true")()
    return count.get_total_flops()/4e9


def sides(phase, shape, width, n):
    "Functions without arguments, each a step of its own copy of the model"
    for name in a.sides.split(";"):
        torch.manual_seed(0)
        model, batch = PHASES[phase](shape, width).to(device), batch_of(shape, n, device)
        if name.endswith("last"): model, batch["x"] = model.to(memory_format=torch.channels_last_3d), batch["x"].to(memory_format=torch.channels_last_3d)
        yield name, published(model, batch) if name == "as published" else library(model, batch, precision, torch.compile if name.endswith("compiled") else lambda net: net)


def largest_batch(phase, shape, width, n=1):
    "The last of 1, 2, 4 ... cells whose step fits in the GPU's memory"
    try: seconds(library(PHASES[phase](shape, width).to(device), batch_of(shape, n, device), precision))
    except torch.OutOfMemoryError: return n//2
    finally: torch.cuda.empty_cache()
    return largest_batch(phase, shape, width, 2*n)


def fits(step):
    "Run a step for the first time; False where a GPU's memory does not hold it"
    if cuda: torch.cuda.reset_peak_memory_stats()
    try: seconds(step)
    except torch.OutOfMemoryError: torch.cuda.empty_cache(); return False
    return True


rows, largest, copied = [], {}, {}  # the last: GB a second
for shape, width, n in a.sizes:
    for phase in PHASES:
        steps, peak, gflop = dict(sides(phase, shape, width, n)), {}, gflop_a_cell(phase, shape, width)
        for name, step in [*steps.items()]:  # warm, and the memory that it takes
            if not fits(step): print(f"{phase}, {name}: {n} cells do not fit"); del steps[name]; continue
            peak[name] = (torch.cuda.max_memory_allocated() if cuda else 1024*resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)/2**30
        taken = {name: [] for name in steps}
        for _ in range(max(a.steps, min(15, int(5/max(map(seconds, steps.values())))) if steps else 0)):
            for name, step in steps.items(): taken[name].append(seconds(step))
        median = {name: statistics.median(t) for name, t in taken.items()}
        if "library" in steps:
            with Roofline(copy_rate(torch.rand(n, 3, *shape, device=device))) as bound: steps["library"]()
            copied[f"{phase} {shape} {width}"] = round(bound.bytes_a_second/1e9, 2)
            median["roofline"], peak["roofline"] = bound.seconds, peak["library"]
        for name, s in median.items():
            rows.append(dict(phase=phase, side=name, seconds=round(s, 4), times_as_fast=round(median["as published"]/s, 2) if "as published" in median else None, percent_of_matrix_rate=round(100e9*n*gflop/s/(rates[torch.float32] if name == "as published" else rate), 1),
                             cells_per_s=round(n/s, 3), shape=",".join(map(str, shape)), width=width, batch=n, precision="32-true" if name == "as published" else precision,
                             gflop_a_cell=round(gflop, 2), hours_in_full=round(EPOCHS*CELLS*s/n/3600, 2), peak_gib=round(peak[name], 2)))
        steps.clear()
        step = None  # and with it the last model
        if cuda and not a.no_largest: largest[f"{phase} {shape} {width}"] = largest.get(f"{phase} {shape} {width}") or largest_batch(phase, shape, width)
        record("How fast is a training step beside the original's?", rows, a.name, largest_batch=largest, copy_gb_per_s=copied,
               matrix_gflops={str(k).split(".")[1]: round(v/1e9, 1) for k, v in rates.items()},
               peak="of the device" if cuda else "of the whole process with all sides' models in it")
