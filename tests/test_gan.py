"The GAN family: what no single lesson shows"
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from integrated_cell.synthesis import families, gan
from integrated_cell.data.cells import Cells
from integrated_cell.results import BadInput
from integrated_cell.synthesis.towers import Critics
from integrated_cell.training.train import fit

SMALL = dict(n_filters=2, n_filters_critic=4, n_latent=3)


def blobs(shape=(12, 16), n=24, proteins=("a", "b"), seed=0):
    "Cells whose red is a bar at a random place and whose green lies left (a) or right (b) of it"
    rng = np.random.default_rng(seed)
    images, names = np.zeros((n, 2, *shape), np.uint8), [proteins[i % len(proteins)] for i in range(n)]
    for x, name in zip(images, names):
        at = rng.integers(4, shape[-1] - 5)
        x[0, ..., at:at + 2] = 200
        x[1, ..., slice(at - 2, at) if name == proteins[0] else slice(at + 2, at + 4)] = 150
    table = pd.DataFrame({"cell_id": [f"c{i}" for i in range(n)], "structure": names})
    return Cells.create(None, images, table, (.2,)*len(shape), ("red", "green"), {"source": "blobs", "seed": seed}, test_fraction=.25)


def train(cells, name, out, n_epochs=1, lr=1e-3, **kwargs):
    torch.manual_seed(0)
    model = gan.Gan(cells.shape, **families.designs(name, cells.classes)[0], **SMALL)
    real = families.streams(model, cells, 4, n_nearest=2, n_critic=2, n_steps=3)
    fit(model, partial(gan.step, objective=model.objective, pairs=model.pairs), gan.optimisers(model, lr), real, n_epochs, out, show=False, accelerator="cpu", **kwargs)
    return model


@pytest.mark.parametrize("family, objective", [*zip(families.FAMILIES, gan.OBJECTIVES*3), ("star", "wgan"), ("star", "wgan-gp")])
def test_every_family_trains_and_draws(family, objective, tmp_path):
    cells = blobs()
    train(cells, f"{family} {objective}", families.folder(tmp_path, f"{family} {objective}"))
    trained = families.open_gan(tmp_path, f"{family} {objective}")
    assert families.draw(trained.pair("a"), 3).shape == (3, 2, 12, 16)
    assert (trained.joint is not None) == (family in ("star", "multi-channel", "multi-channel separable"))
    if trained.joint is not None: assert families.draw(trained.joint, 2).shape == (2, 3, 12, 16)


def test_three_dimensions(tmp_path):
    cells = blobs((8, 12, 16))
    assert families.draw(families.Trained([train(cells, "star wgan-gp", tmp_path)]).joint, 2).shape == (2, 3, 8, 12, 16)


@pytest.mark.parametrize("name", ["star wgan-gp", "multi-channel gan"])
def test_a_stopped_training_ends_in_the_same_weights(name, tmp_path):
    whole, cells = train(blobs(), name, tmp_path/"whole", 2), blobs()
    train(cells, name, tmp_path/"parts", 1)
    parts = train(cells, name, tmp_path/"parts", 2)
    assert all(torch.equal(v, parts.state_dict()[k]) for k, v in whole.state_dict().items())


def test_the_penalty_is_that_of_each_critic_and_each_image():
    torch.manual_seed(0)
    critics, (x, x_gen) = Critics(2, (12, 16), 2, 2).double(), torch.rand(2, 3, 2, 2, 12, 16, dtype=torch.float64)
    eps = torch.rand(3, 2, dtype=torch.float64)
    lengths = []
    for b in range(3):
        for k in range(2):
            at = eps[b, k]*x[b, k] + (1 - eps[b, k])*x_gen[b, k]
            lengths.append(torch.autograd.functional.jacobian(lambda v: critics.each[k](v[None])[0], at).norm())
    by_hand = (torch.stack(lengths) - 1).square().mean()
    assert torch.isclose(gan.grad_penalty(critics, x, x_gen, eps), by_hand, rtol=1e-12)


def test_each_critic_of_a_star_hears_its_own_green_alone():
    torch.manual_seed(0)
    star, alone = gan.Gan((12, 16), ["a", "b"], greens=(1, 1), **SMALL), gan.Gan((12, 16), ["a"], **SMALL)
    alone.critics.each[0].load_state_dict(star.critics.each[0].state_dict())
    x, x_gen, eps = torch.rand(5, 2, 2, 12, 16), torch.rand(5, 2, 2, 12, 16), torch.rand(5, 2)
    grads = []
    for model, k in [(star, 2), (alone, 1)]:
        loss = gan.loss_critic(model.critics(x[:, :k]), model.critics(x_gen[:, :k]), "wgan-gp") + 10*gan.grad_penalty(model.critics, x[:, :k], x_gen[:, :k], eps[:, :k])
        grads.append(torch.autograd.grad(loss, list(model.critics.each[0].parameters())))
    assert all(torch.allclose(2*g, h, rtol=1e-4, atol=1e-7) for g, h in zip(*grads))  # a mean over two critics; Adam forgets the scale


def test_borrowed_greens_come_from_the_nearest_reds():
    cells = blobs(n=60)
    images, y, rows = cells.images, cells.table.y.to_numpy(), cells.rows("train")
    near = families.neighbours(images, y, rows, 2, 3)
    red = images[:, 0].reshape(60, -1).astype(float)
    for i in rows[:10]:
        other = [r for r in rows if y[r] != y[i]]
        d = {r: np.linalg.norm(red[i] - red[r]) for r in other}
        assert max(d[r] for r in near[i, 1 - y[i]]) <= sorted(d.values())[2] + 1e-3 and set(near[i, y[i]]) == {i}
    assert (near[cells.rows("test")] == -1).all() and not set(near[rows].ravel()) & set(cells.rows("test"))


def test_training_comes_nearer(tmp_path):
    cells = blobs(n=48)
    model = train(cells, "star wgan-gp", tmp_path, 20, lr=5e-3)
    before = gan.Gan(cells.shape, **families.designs("star wgan-gp", cells.classes)[0], **SMALL)
    mean = {c: cells.images[cells.table.structure == c].mean(0)/255 for c in cells.classes}
    off = lambda m: sum(np.abs(families.draw(families.Trained([m]).pair(c), 200).mean(0)/255 - mean[c]).mean() for c in cells.classes)
    assert off(model) < .6*off(before)


@pytest.mark.parametrize("change, said", [
    (lambda c: families.designs("star wgan-gp", ["a"]), "only a; give at least two"),
    (lambda c: families.designs("stars wgan-gp", ["a", "b"]), "unknown model 'stars wgan-gp'"),
    (lambda c: families.designs("star", ["a", "b"]), "unknown model 'star'"),
    (lambda c: families.streams(gan.Gan((12, 16), c.classes, greens=(1, 1), **SMALL), c, 64), "fewer than a batch of 64"),
    (lambda c: families.streams(gan.Gan((12, 20), c.classes, greens=(1, 1), **SMALL), c, 4), "do not fit a model for (12, 20)"),
    (lambda c: families.streams(gan.Gan((12, 16), c.classes, greens=(2,), pairs=False, **SMALL), c, 4, n_nearest=20), "fewer than the 20 neighbours"),
    (lambda c: gan.Gan((12, 16), ["a"], **SMALL).critics.each[0](torch.zeros(1, 3, 12, 16)), "do not fit a critic"),
    (lambda c: gan.Gan((12, 4), ["a"], **SMALL), "at least 6 pixels"),
    (lambda c: gan.Gan((12, 16), ["a"], objective="lsgan?", **SMALL), "unknown objective"),
    (lambda c: families.open_gan("nowhere", "star wgan-gp"), "no trained model"),
])
def test_bad_input_is_one_sentence(change, said):
    with pytest.raises(BadInput) as e: change(blobs())
    assert said in str(e.value) and "\n" not in str(e.value)


def test_a_constant_channel_is_named():
    cells = blobs()
    cells.images[(cells.table.structure == "b").to_numpy(), 1] = 7
    with pytest.raises(BadInput, match="green channel of b is constant"): families.streams(gan.Gan((12, 16), ["a", "b"], greens=(1, 1), **SMALL), cells, 4)


def test_nan_in_a_critic_stops_with_step_and_last_good_checkpoint(tmp_path, monkeypatch):
    cells = blobs()
    train(cells, "star wgan-gp", tmp_path, 1)
    good, epoch = (tmp_path/"checkpoint.safetensors").read_bytes(), families.Streams.epoch
    monkeypatch.setattr(families.Streams, "epoch", lambda self, e, start=0: ({"x": b["x"]*(torch.nan if e else 1)} for b in epoch(self, e, start)))
    with pytest.raises(BadInput, match="loss_critic is nan at epoch 1, batch 0; .*checkpoint.safetensors"): train(cells, "star wgan-gp", tmp_path, 2)
    assert (tmp_path/"checkpoint.safetensors").read_bytes() == good
