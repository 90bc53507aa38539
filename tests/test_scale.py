"What no lesson cell of 72_evaluation.scale shows: bad input, the two judges on a decoder, and whether the intervals hold what they promise"
import numpy as np
import pytest
import torch

from integrated_cell.evaluation.c2st import c2st
from integrated_cell.integration.conditional import Conditional
from integrated_cell.synthesis.families import draw
from integrated_cell.integration.prior import Flow, Normal
from integrated_cell.synthesis.reconstruct import reconstruct
from integrated_cell.results import BadInput
from integrated_cell.evaluation.scale import Decoded, ratio_interval


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Conditional((8, 12, 16), ["golgi", "tubulin"], 3, 2, width=1/32).eval()
    with torch.no_grad(): [p.mul_(6) for p in model.dec_rs.parameters()]  # an untrained decoder is grey everywhere
    return model


def test_unknown_structure_is_told(model):
    with pytest.raises(BadInput, match="no structure 'actin'.*golgi, tubulin"): Decoded(model, Normal(), "actin")


def test_tables_of_different_classes_are_told():
    with pytest.raises(BadInput, match="2 classes.*scale of 3"): ratio_interval(np.ones((2, 4)), np.ones((3, 4)))


def test_the_same_functions_draw_judge_and_reconstruct_a_decoder(model):
    "As `draw`, `c2st` and `reconstruct` do with the generators of a GAN; the search finds an image that the decoder drew"
    gen = Decoded(model, Normal(), "tubulin")
    x = draw(gen, 8, seed=1)
    assert x.shape == (8, 3, 8, 12, 16) and x.dtype == np.uint8 and (x == draw(gen, 8, seed=1)).all()
    assert np.isfinite(c2st(x, draw(Decoded(model, Flow(3, 2, 2).eval(), "golgi"), 8), n_splits=1, n_steps=1, n_filters=2, batch_size=4).score).all()
    with torch.no_grad(): target, start = gen(torch.ones(1, 3), -torch.ones(1, 2)), gen(torch.zeros(1, 3), torch.zeros(1, 2))
    assert reconstruct(gen, target, n_steps=40, restarts=3)["error"][0] < .2*(start - target).square().mean().sqrt()


def test_only_the_asked_structure_is_drawn(model):
    z_r, z_s = torch.randn(2, 3), torch.randn(2, 2)
    with torch.no_grad(): a, b = (Decoded(model, Normal(), c)(z_r, z_s) for c in model.classes)
    assert not torch.equal(a, b)


def test_interval_holds_the_truth_as_often_as_it_says():
    "Classes that differ among themselves, as structures do; few classes make the bootstrap a little narrow"
    rng, held = np.random.default_rng(0), 0
    for k in range(200):
        of, by = (rng.normal(mean, .3, (12, 1)) + rng.normal(0, .2, (12, 10)) for mean in (2., 8.))
        _, low, high = ratio_interval(of, by, n_boot=300, seed=k)
        held += low <= 2/8 <= high
    assert .87 < held/200 <= 1


def test_a_scale_that_reaches_zero_gives_no_ratio():
    rng = np.random.default_rng(0)
    assert np.isnan(ratio_interval(np.ones((3, 4)), rng.normal(.05, 1, (3, 4)))).all()
    assert ratio_interval(np.ones((3, 4)), np.full((3, 4), 2.)) == (.5, .5, .5)
