"""The yardstick of bench/ makes the updates that the library makes: one step of each phase, the same noise, double precision."""
import copy
import importlib.util
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric

from integrated_cell.integration import conditional, reference

SHAPE, N, GAMMAS = (4, 6, 8), 5, dict(gamma_enc=.3, gamma_dec=.2)  # weights that let every term count
spec = importlib.util.spec_from_file_location("as_published", Path(__file__).parent.parent/"bench"/"as_published.py")
published = importlib.util.module_from_spec(spec)
spec.loader.exec_module(published)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def ours(model, step, batch):
    "The model after one step of the library, with the optimisers of the yardstick, and its networks' names"
    model, fabric = copy.deepcopy(model), Fabric(accelerator="cpu", precision="64-true")
    names = [n for n, net in model.named_children() if any(p.requires_grad for p in net.parameters())]
    opts = published.adam({n: getattr(model, n) for n in names}, .01, .02)
    nets = {n: fabric.setup_module(getattr(model, n)) for n in names}
    if isinstance(model, conditional.Conditional): step = partial(step, enc_r=model.enc_r)
    torch.manual_seed(1)
    step(nets, {n: fabric.setup_optimizers(o) for n, o in opts.items()}, batch, fabric, **GAMMAS)
    return model, names


def same(a, b, names):
    before_and_after = [(p, q) for n in names for p, q in zip(getattr(a, n).parameters(), getattr(b, n).parameters(), strict=True)]
    return all(torch.allclose(p, q, rtol=0, atol=1e-9) for p, q in before_and_after)


def test_phase_1():
    torch.manual_seed(0)
    model, x = reference.Reference(SHAPE, n_latent=4, width=1/64, noise=0.), torch.rand(N, 3, *SHAPE)
    a, names = ours(model, reference.step, dict(x=x))
    b = copy.deepcopy(model)
    nets = {n: getattr(b, n) for n in names}
    torch.manual_seed(1)
    published.reference_step(nets, published.adam(nets, .01, .02), x, torch.randn(N, 4), **GAMMAS)
    assert same(a, b, names) and not same(a, model, names[:1])


def test_phase_2():
    torch.manual_seed(0)
    phase_1 = reference.Reference(SHAPE, n_latent=4, width=1/64, noise=0.)
    model, x, y = conditional.Conditional.after(phase_1, ["a", "b", "c"], 3), torch.rand(N, 3, *SHAPE), torch.tensor([0, 1, 2, 1, 0])
    a, names = ours(model, conditional.step, dict(x=x, y=y))
    b = copy.deepcopy(model)
    nets = {n: getattr(b, n) for n in names}
    with torch.no_grad(): z_r = b.enc_r(x[:, reference.CHANNELS_R])
    torch.manual_seed(1)
    z_r_gen, z_s_gen, y_gen = torch.randn(N, 4), torch.randn(N, 3), y[torch.randperm(N)]
    published.conditional_step(nets, published.adam(nets, .01, .02), x, y, z_r, z_r_gen, z_s_gen, y_gen, **GAMMAS)
    assert same(a, b, names) and not same(a, model, names[:1])


def test_the_yardstick_does_the_published_work():
    "Two encoder, four decoder and five DecD evaluations a step"
    torch.manual_seed(0)
    model, calls = reference.Reference(SHAPE, n_latent=4, width=1/64), {}
    for n, net in model.named_children(): net.register_forward_hook(lambda *_, n=n: calls.update({n: calls.get(n, 0) + 1}))
    nets = dict(model.named_children())
    published.reference_step(nets, published.adam(nets), torch.rand(N, 3, *SHAPE), torch.randn(N, 4))
    assert calls == {"enc_r": 2, "dec_r": 4, "enc_d_r": 2, "dec_d_r": 5}
