"A run that is killed at any moment ends where the unbroken run ends, bit for bit (both phases, flow matching; CPU)"
import functools
import json
import multiprocessing
import random
import time

import pytest
import torch
from safetensors.torch import load as loads

STEPS, EPOCHS, SHAPE = 9, 5, (8, 12, 16)


class Noise:
    "Nine batches of smooth random cells, the same for the same epoch"

    def __len__(self):
        return STEPS

    def epoch(self, e, start=0):
        gen = torch.Generator().manual_seed(e)
        x, y = torch.rand(STEPS, 6, 3, *SHAPE, generator=gen), torch.randint(3, (STEPS, 6), generator=gen)
        torch.rand(1)  # as a DataLoader does; it must not change the result
        for b in range(start, STEPS): yield {"x": x[b], "y": y[b]}


def train(phase, out, save_every_s):
    "One attempt, in a process of its own"
    torch.set_num_threads(1)
    from integrated_cell.integration import conditional, flow_matching, reference
    from integrated_cell.training.train import fit
    torch.manual_seed(0)
    model, step = reference.Reference(SHAPE, n_latent=4, width=1/16, noise=.1), reference.step
    if phase == "conditional":
        model = conditional.Conditional.after(model, ["a", "b", "c"], n_latent_s=4)
        step = functools.partial(conditional.step, enc_r=model.enc_r)
    if phase == "flow matching":  # its mean weights and what they count go on too
        model = flow_matching.FlowMatching(SHAPE, ["a", "b", "c"], width=4, depth=2)
        step = functools.partial(flow_matching.step, model=model)
        opts = {"net": torch.optim.Adam(model.net.parameters())}
    else: opts = reference.optimisers(model)
    fit(model, step, opts, Noise(), EPOCHS, out, accelerator="cpu", save_every_s=save_every_s, show=False)


def read(path):
    "Tensors and JSON of a file that another process may replace at any moment"
    data = path.read_bytes()
    header = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])
    return loads(data), json.loads(header["__metadata__"]["integrated_cell"])


def n_steps(path):
    "How many steps the checkpoint has seen"
    try: f = path.open("rb")
    except FileNotFoundError: return 0
    with f: header = json.loads(f.read(int.from_bytes(f.read(8), "little")))  # of a file that another one may replace
    place = json.loads(header["__metadata__"]["integrated_cell"])
    return place["epoch"]*STEPS + place["batch"]


@pytest.fixture(scope="module")
def start():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["integrated_cell.training.train", "integrated_cell.integration.conditional", "tensorboard"])

    def start(*args):
        process = context.Process(target=train, args=args)
        process.start()
        return process
    return start


def finish(process):
    process.join(120)
    assert process.exitcode == 0


@pytest.mark.parametrize("phase", ["reference", "conditional", "flow matching"])
def test_killed_run_resumes_to_the_same_bits(phase, start, tmp_path):
    whole, parts = tmp_path/"whole", tmp_path/"parts"
    finish(start(phase, whole, 1e9))
    checkpoint, moment, killed, places = parts/"checkpoint.safetensors", random.Random(phase), 0, []
    for _ in range(3 if phase == "flow matching" else 6):
        until = n_steps(checkpoint) + moment.randint(1, 4)
        process = start(phase, parts, 0)
        while process.is_alive() and n_steps(checkpoint) < until: time.sleep(.005)
        time.sleep(moment.uniform(0, .02))  # within a step, a save or between them
        process.kill()
        process.join()
        killed += process.exitcode == -9
        places.append(n_steps(checkpoint))
    assert killed >= 2 and any(n%STEPS for n in places), f"the run was over before it could be killed: {places}"
    finish(start(phase, parts, .05))
    (a, _), (b, _) = read(whole/"checkpoint.safetensors"), read(parts/"checkpoint.safetensors")
    counted = "n_steps" if phase == "flow matching" else "running_mean"
    assert a.keys() == b.keys() and any(counted in k for k in a) and any("exp_avg" in k for k in a)
    differing = [k for k in a if not a[k].equal(b[k])]
    assert not differing, f"differ after kills at steps {places}: {differing[:5]}"
    assert (whole/"model.safetensors").read_bytes() == (parts/"model.safetensors").read_bytes()
    assert [p for p in parts.iterdir() if p.name.endswith(".part")] == []
