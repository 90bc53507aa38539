"""One training step of each phase at the paper's shape and width, batch 2: seconds and peak memory of the process, as JSON."""
import json
import resource
import time
from functools import partial

import torch
from lightning.fabric import Fabric

from integrated_cell import conditional, reference

SHAPE, BATCH = (64, 96, 128), 2
fabric, out = Fabric(accelerator="auto", devices=1), {}
x, y = torch.rand(BATCH, 3, *SHAPE, device=fabric.device), torch.arange(BATCH, device=fabric.device)
phase_1 = reference.Reference(SHAPE)
phase_2 = conditional.Conditional.after(phase_1, [f"structure {k}" for k in range(11)])
for name, model, step in [("reference", phase_1, reference.step), ("conditional", phase_2, partial(conditional.step, enc_r=phase_2.enc_r))]:
    model.to(fabric.device)
    opts = reference.optimisers(model)
    nets = {n: fabric.setup_module(getattr(model, n)) for n in opts}
    start = time.time()
    losses = step(nets, {n: fabric.setup_optimizers(o) for n, o in opts.items()}, dict(x=x, y=y), fabric)
    out[name] = dict(seconds=round(time.time() - start, 2), parameters=sum(p.numel() for p in model.parameters()), losses={k: float(v) for k, v in losses.items()},
                     peak_gib=round((torch.cuda.max_memory_allocated() if fabric.device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024)/2**30, 2))
    model.to("cpu"); del model, nets, opts, step
    if name == "reference": phase_1 = phase_1.cpu()
print(json.dumps(dict(device=str(fabric.device), shape=SHAPE, batch=BATCH, **out), indent=1))
