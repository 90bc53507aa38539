"""What the notebooks profiler and cytogan do not show: training through `fit`, stopping and going on, reading back, bad input"""
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from integrated_cell.profiling import cytogan
from integrated_cell.data.cells import Cells
from integrated_cell.results import BadInput
from integrated_cell.training.train import fit


def squares(n=24, shape=(16, 16)):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 30, (n, 3, *shape), dtype=np.uint8)
    images[:, :, 4:12, 4:12] += rng.integers(100, 200, (n, 3, 1, 1), dtype=np.uint8)
    table = pd.DataFrame({"cell_id": [f"c{i}" for i in range(n)], "structure": ["DMSO", "Actin disruptors"]*(n//2),
                          "compound": ["DMSO", "latrunculin B"]*(n//2), "concentration": [0., 1.]*(n//2)})
    return Cells.create(None, images, table, None, ("dna", "tubulin", "actin"), {"source": "squares"}, test_fraction=.25)


def train(name, out, n_epochs=1, **kwargs):
    cells = squares()
    torch.manual_seed(0)
    model = cytogan.CytoGan(name, cells.shape, .06, 5, doses={"latrunculin B": [1.]})
    told = cytogan.conditions(model.doses, cells.table.compound, cells.table.concentration.clip(lower=1e-9)) if model.doses else None
    step = partial(cytogan.step, name=name, **({"told": told} if model.kind in cytogan.PLAIN else {}))
    fit(model, step, cytogan.optimisers(model, 1e-3, 1e-3), cells.batches(cells.rows("train"), 6), n_epochs, out, show=False, accelerator="cpu", **kwargs)
    return model


@pytest.mark.parametrize("name", [*cytogan.NAMES, "conditional dcgan", "conditional lsgan", "conditional wgan", "conditional wgan-gp"])
def test_every_model_trains_and_is_read_back(name, tmp_path):
    train(name, tmp_path/"cytogan"/name.replace(" ", "-"))
    model = cytogan.open_cytogan(tmp_path, name)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert cytogan.sample(model, 3).shape == (3, 3, 16, 16)
    assert np.isfinite(cytogan.profile_cells(model, squares(), np.arange(4))).all()


@pytest.mark.parametrize("name", ["lsgan", "began", "bigan", "vae", "conditional wgan-gp"])
def test_a_stopped_training_ends_in_the_same_weights(name, tmp_path):
    whole = train(name, tmp_path/"whole", 2)
    train(name, tmp_path/"parts", 1)
    parts = train(name, tmp_path/"parts", 2)
    assert all(torch.equal(v, parts.state_dict()[k]) for k, v in whole.state_dict().items())


def test_a_vae_learns_to_rebuild(tmp_path):
    cells, before = squares(), cytogan.CytoGan("vae", (16, 16), .25, 8)
    model = cytogan.CytoGan("vae", (16, 16), .25, 8)
    model.load_state_dict(before.state_dict())
    fit(model, partial(cytogan.step, name="vae"), cytogan.optimisers(model, 5e-3), cells.batches(cells.rows("train"), 9), 30, tmp_path, show=False, accelerator="cpu")
    x = np.stack([cells[i] for i in range(len(cells))])/255.
    error = [np.abs(cytogan.sample(m, len(cells), z=cytogan.encode_cells(m, cells, np.arange(len(cells))))/255. - x).mean() for m in (before.eval(), model.eval())]
    assert error[1] < error[0]/3


def test_began_follows_its_equilibrium():
    "k rises while drawn images are rebuilt better than gamma asks for, and never leaves [0, 1]"
    model, x = cytogan.CytoGan("began", (16, 16), .06, 5), torch.rand(4, 3, 16, 16)
    from lightning.fabric import Fabric
    fabric, opts = Fabric(accelerator="cpu"), cytogan.optimisers(model, 1e-3, 1e-3)
    nets = {k: fabric.setup_module(net) for k, net in model.named_children()}
    for _ in range(3): losses = cytogan.step(nets, opts, {"x": x}, fabric, "began", gamma=5., rate=10.)
    assert model.critics.k == 1 and 0 <= losses["k"] <= 1


def test_noise_makes_a_profile_another_one():
    model, cells = cytogan.CytoGan("lsgan", (16, 16), .06).eval(), squares()
    rows = np.arange(5)
    plain, noisy, again = (cytogan.profile_cells(model, cells, rows, **k) for k in ({}, {"noise": .1}, {"noise": .1}))
    assert np.array_equal(noisy, again) and not np.allclose(plain, noisy)


@pytest.mark.parametrize("do, says", [
    (lambda: cytogan.CytoGan("ogan"), "unknown model 'ogan'"),
    (lambda: cytogan.CytoGan("conditional vae"), "unknown model 'conditional vae'"),
    (lambda: cytogan.CytoGan("lsgan", (4, 4)), "sides of at least 8"),
    (lambda: cytogan.CytoGan("lsgan", (16, 16), .06).profile(torch.zeros(1, 2, 16, 16)), "prepare them to that shape"),
    (lambda: cytogan.sample(cytogan.CytoGan("lsgan", (16, 16), .06), 2, z=torch.zeros(2, 3)), "give (2, 100)"),
    (lambda: cytogan.sample(cytogan.CytoGan("lsgan", (16, 16), .06), 2, treated=("taxol", 1.)), "knows no compound"),
    (lambda: cytogan.sample(cytogan.CytoGan("lsgan", (16, 16), .06), -1), "at least one"),
    (lambda: cytogan.sample(cytogan.CytoGan("lsgan", (16, 16), .06), 1, z=torch.full((1, 100), torch.nan)), "finite"),
    (lambda: cytogan.sample(cytogan.CytoGan("conditional lsgan", (16, 16), .06, doses={"taxol": [1., 3.]}), 1, treated=("taxol", 100.)), "from 1 to 3, not of 100"),
    (lambda: cytogan.sample(cytogan.CytoGan("conditional lsgan", (16, 16), .06, doses={"taxol": [1., 3.]}), 1, treated=("taxol", 0.)), "not of 0"),
    (lambda: cytogan.profile_cells(cytogan.CytoGan("lsgan", (16, 16), .06), np.full((2, 3, 16, 16), 4000, np.uint16), [0]), "8 bits"),
    (lambda: cytogan.encode_cells(cytogan.CytoGan("lsgan", (16, 16), .06), squares(), [0]), "has no encoder"),
    (lambda: cytogan.open_cytogan("nowhere", "lsgan"), "no trained model"),
])
def test_bad_input_is_one_sentence(do, says):
    with pytest.raises(BadInput, match=".*") as e: do()
    assert says in str(e.value) and "\n" not in str(e.value)
