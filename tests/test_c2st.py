"The two-sample test: what it refuses, what its seeds promise, and what no lesson cell has time for"
import numpy as np
import pandas as pd
import pytest
import torch
from torch.func import functional_call

from integrated_cell.evaluation import c2st as room
from integrated_cell.evaluation.c2st import Splits, c2st, c2st_many, median_mad, score_critic, train_critics
from integrated_cell.synthesis.gan import grad_penalty
from integrated_cell.results import BadInput
from integrated_cell.synthesis.towers import Critic

SMALL = dict(n_splits=2, n_steps=3, n_filters=2, batch_size=4, device="cpu")


def images(n=8, c=2, shape=(12, 16), seed=0): return np.random.default_rng(seed).integers(0, 256, (n, c, *shape), dtype=np.uint8)


@pytest.mark.parametrize("real, fake, said", [
    (images(3), images(), "3 images cannot be split"),
    (images(), images(2), "2 images cannot be split"),
    (images(), images(shape=(16, 12)), r"\(2, 12, 16\) against \(2, 16, 12\)"),
    (images(), images(c=3), "bring both to one shape"),
    (images()*np.array([0, 1], np.uint8)[:, None, None], images(), "channel 0 is 0 in every pixel"),
    (images().astype(np.float32), images(), r"floats in \[0, 1\]"),
    (np.full((8, 2, 12, 16), np.nan, np.float32), images(), "finite"),
    (images()[:, 0], images()[:, 0], "with their channels"),
])
def test_refused(real, fake, said):
    with pytest.raises(BadInput, match=said) as e: c2st_many({"Alp14": (real, fake)}, **SMALL)
    assert str(e.value).startswith("Alp14")


def test_unknown_objective():
    with pytest.raises(BadInput, match="choose from gan, lsgan, wgan, wgan-gp"): c2st(images(), images(), "hinge", **SMALL)


@pytest.mark.parametrize("what", ["n_splits", "n_steps", "n_filters", "batch_size"])
def test_counts_below_1(what):
    with pytest.raises(BadInput, match=f"{what} is 0; .* at least 1"): c2st(images(), images(), **SMALL | {what: 0})


def test_generated_images_may_have_a_constant_channel():
    assert np.isfinite(c2st(images(), 0*images(), **SMALL).score).all()


@pytest.mark.parametrize("batched", [False, True])
def test_nan_names_comparison_split_and_step(monkeypatch, batched):
    real, calls = room.loss_critic, []
    def fails(d, d_gen, objective):
        calls.append(len(d))
        return real(d, d_gen, objective)*(float("nan") if len(calls) == 2 else 1)  # the second step's weights are NaN, the third step says so
    monkeypatch.setattr(room, "loss_critic", fails)
    with pytest.raises(BadInput, match="Arp3, split 0: .* at step 2"): c2st_many({"Arp3": (images(), images(seed=1))}, batched=batched, **SMALL)


@pytest.mark.parametrize("shape, objective", [((12, 16), "wgan-gp"), ((9, 13), "gan"), ((6, 8, 10), "wgan-gp"), ((6, 8, 10), "wgan")])
def test_stacked_as_one_by_one_in_2d_and_3d(shape, objective):
    pairs = {"a": (images(9, 3, shape), images(7, 3, shape, 1)), "b": (images(12, 3, shape, 2), images(8, 3, shape, 3)/255)}
    found = [c2st_many(pairs, objective, batched=b, dtype=torch.float64, flip=True, **SMALL) for b in (False, True, 3)]
    for other in found[1:]: pd.testing.assert_frame_equal(found[0], other, rtol=0, atol=1e-8)
    assert found[0].n.tolist() == [4, 4, 4, 4]


def test_as_a_critic_trained_in_the_plain_way():
    "One critic, its own optimiser, the penalty written out"
    real, fake = (torch.as_tensor(x).double()/255 for x in (images(), images(seed=1)))
    splits = Splits([(real, fake)], [(5, 0)], dtype=torch.float64)
    _, weights = train_critics(splits, ["x"], n_steps=4, n_filters=64, batch_size=4, lr=1e-3)
    again = Splits([(real, fake)], [(5, 0)], dtype=torch.float64)
    torch.manual_seed(int(again.rngs[0].integers(2**63)))
    critic = Critic((12, 16), 2, 64).double()
    opt = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0., .9))
    for _ in range(4):
        x, y, eps = (t[0] for t in again.batch(4))
        between = (eps.view(-1, 1, 1, 1)*x + (1 - eps).view(-1, 1, 1, 1)*y).requires_grad_()
        slope = torch.autograd.grad(critic(between).sum(), between, create_graph=True)[0].flatten(1).norm(dim=1)
        loss = critic(y).mean() - critic(x).mean() + 10*((slope - 1)**2).mean()
        opt.zero_grad(); loss.backward(); opt.step()
    for name, w in critic.named_parameters(): assert torch.allclose(w, weights[name][0], rtol=0, atol=1e-10)


def test_score_is_of_the_held_out_half_alone():
    splits = Splits([(torch.as_tensor(images(40)), torch.as_tensor(images(30, seed=1)))], [(0, 0)])
    critic, weights = train_critics(splits, ["x"], n_steps=2, n_filters=2, batch_size=4)
    real, fake = (2*splits.images[half].float()/255 - 1 for half in splits.held[0])
    judge = lambda x: functional_call(critic, {k: w[0] for k, w in weights.items()}, (x,))
    assert np.isclose(score_critic(critic, weights, splits, 0, batch_size=7)["score"], (judge(real).mean() - judge(fake).mean()).item(), atol=1e-6)
    assert not set(splits.train[0][0]) & set(splits.held[0][0]) and len(splits.held[0][0]) == 20 and len(splits.held[0][1]) == 15
    fixed = grad_penalty(lambda x: judge(x[:, 0])[:, None], real[:15, None], fake[:, None], torch.full((15, 1), .5)).item()
    found = score_critic(critic, weights, splits, 0)
    assert np.isclose((found["score"] - found["score_penalised"])/10, fixed, rtol=.05)  # eps is drawn, the critic is nearly flat


def test_larger_difference_larger_score_and_seed_decides():
    a, b = images(40, 1, (8, 8)), images(40, 1, (8, 8), 1)
    how = dict(n_splits=2, n_steps=60, n_filters=8, batch_size=8, lr=1e-2, device="cpu", batched=True)
    found = c2st_many({k: (a//2, b//2 + np.uint8(k)) for k in (0, 20, 80)}, **how)
    medians = [median_mad(t.score)[0] for _, t in found.groupby("name")]
    assert abs(medians[0]) < .5 < medians[1] < medians[2]
    short = [c2st(a, b, **how | {"n_steps": 3, "seed": seed}) for seed in (0, 0, 1)]
    pd.testing.assert_frame_equal(*short[:2])
    assert not np.allclose(short[0].score, short[2].score)


def test_median_and_mad_of_a_table_are_those_of_all_its_values():
    x = np.random.default_rng(0).normal(size=(4, 5))
    assert np.allclose(median_mad(x), median_mad(x.ravel())) and np.isclose(median_mad(x)[1], np.median(np.abs(x - np.median(x))))


def test_a_full_gpu_trains_half_as_many_at_a_time(monkeypatch):
    pairs, went = {"a": (images(), images(seed=1)), "b": (images(seed=2), images(seed=3))}, []
    known, real = c2st_many(pairs, batched=False, **SMALL), room.train_critics
    def full(splits, names, **how):
        went.append(len(names))
        if len(names) > limit: raise torch.OutOfMemoryError("CUDA out of memory")
        return real(splits, names, **how)
    monkeypatch.setattr(room, "train_critics", full)
    limit = 1
    pd.testing.assert_frame_equal(c2st_many(pairs, batched=True, **SMALL), known, rtol=0, atol=1e-6)
    assert went == [4, 2, 1, 1, 1, 1]
    limit = 0
    with pytest.raises(torch.OutOfMemoryError): c2st_many(pairs, batched=True, **SMALL)


def test_the_faster_way_on_a_cpu_changes_no_score():
    "Small critics are stacked, large ones and comparisons of different shapes are not"
    how, went, real = SMALL | dict(dtype=torch.float64), [], room.train_critics
    def watched(splits, names, **rest):
        went.append(len(names))
        return real(splits, names, **rest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "train_critics", watched)
        chosen = c2st_many({"a": (images(), images(seed=1))}, **how)
        mixed = c2st_many({"a": (images(), images(seed=1)), "b": (images(shape=(8, 8)), images(shape=(8, 8), seed=1))}, **how)
    assert went == [2, 1, 1, 1, 1]
    pd.testing.assert_frame_equal(chosen, mixed[mixed.name == "a"], rtol=0, atol=1e-8)
