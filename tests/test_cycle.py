"The clock and the places of proteins: robust to turning, noise and blur; the same for any population; failures in one sentence"
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, rotate
from scipy.stats import spearmanr

from integrated_cell.synthesis.cycle import along_cycle, anchors, axial_profile, curve_distance, phase_of, positions, read_red, slerp, straighten
from integrated_cell.results import BadInput
from integrated_cell.simulation.yeast import cell_channels, draw_rod, simulate_yeast


@pytest.fixture(scope="module")
def cells(): return simulate_yeast(160, seed=11)


def read(x, um=.2): return read_red(straighten(x), um)


def test_clock_is_the_simulated_age_also_in_expected_noisy_and_soft_images(cells):
    rng, clean = np.random.default_rng(0), np.stack([cell_channels(cells, i, ("Arp3",)) for i in range(160)])
    noisy = np.clip(clean + .02*rng.normal(size=clean.shape), 0, 1)
    for x, least in ((clean, .99), (noisy, .98), (gaussian_filter(clean, (0, 0, .7, .7)), .99)):
        r = read(x)
        assert spearmanr(r.order, cells.table.phase)[0] > least
        assert np.median(np.abs(r.length_um - cells.table.length_um)) < .4


def test_clock_does_not_mind_how_the_cell_lies(cells):
    x = cells.images[:60]/255.
    plain = read(x)
    turned = read(np.clip(rotate(x, 8, (3, 2), reshape=False, order=1), 0, 1))
    shifted = read(np.roll(x, (2, -2), (2, 3)))
    for other in (turned, shifted, read(x[..., ::-1, :]), read(x[..., ::-1])):
        fits = cells.table.length_um[:60] < 13  # longer ones leave the image
        assert np.abs(other.length_um - plain.length_um)[fits].max() < .45 and np.abs(other.septum - plain.septum)[fits].mean() < .05


def test_axis_and_profile_of_a_drawn_rod():
    y, x = np.mgrid[:48, :80]
    u, v = (x - 44)*np.cos(.2) + (y - 22)*np.sin(.2), (y - 22)*np.cos(.2) - (x - 44)*np.sin(.2)
    rod = ((np.abs(u) <= 20) & (np.abs(v) <= 8)).astype(float)
    image = np.stack([rod*(.3 + .6*(u > 12)), rod*(np.abs(u) < 5)])[None]
    s = straighten(image)
    r = read_red(s)
    p = axial_profile(s, r)
    assert abs(r.length_um[0] - 40) < 2 and abs(r.middle[0] - 39.5) < 1.5
    assert positions(p)["middle"][0, 1] > .7 and positions(p)["tips"][0, 1] < .02
    assert positions(p)["one_end"][0, 0] > .1  # the brighter end comes last, wherever it was
    assert np.allclose(axial_profile(straighten(image[..., ::-1]), read_red(straighten(image[..., ::-1]))), p, atol=.03)


def test_empty_and_uniform_images_do_not_stop_a_chapter():
    x = np.zeros((3, 2, 48, 80), np.uint8)
    x[1], x[2] = 255, np.random.default_rng(0).integers(0, 255, (2, 48, 80))
    s = straighten(x)
    r = read_red(s)
    assert np.isfinite(r.to_numpy()).all() and np.isfinite(axial_profile(s, r)).all()


def test_true_arp3_moves_to_the_middle_and_equal_populations_have_no_distance(cells):
    names = ("Arp3", "Tea1")
    both = []
    for seed in (21, 22):
        c = simulate_yeast(120, seed=seed)
        s = straighten(np.stack([cell_channels(c, i, names) for i in range(120)]))
        r = read_red(s, .2)
        both.append((r.order.to_numpy(), positions(axial_profile(s, r, .2))["middle"]))
    (o1, m1), (o2, m2) = both
    p1, p2 = phase_of(o1, o1), phase_of(o2, o1)
    for k in (1, 2): assert curve_distance((p1, m1[:, k]), (p2, m2[:, k]), 5)[1] < .01
    course = along_cycle(p1, m1[:, 1], 5)
    assert course.low[4] > course.high[1] and curve_distance((p1, m1[:, 1]), None, 5)[1] > curve_distance((p1, m1[:, 1]), (p2, m2[:, 1]), 5)[2]


def test_a_population_of_one_age_is_not_near_by_having_nothing_to_compare():
    rng = np.random.default_rng(0)
    t = rng.random(500)
    d = curve_distance((t, t), (np.full(500, .5), np.full(500, .5)))
    assert d[0] > .25
    course = along_cycle(np.full(20, .5), rng.random(20))
    assert course.n.sum() == 20 and course["mean"].notna().sum() == 1


def test_slerp_keeps_to_the_sphere_for_any_pair():
    a, b = torch.randn(2, 100, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    path = slerp(a, b, 7)
    t = torch.linspace(0, 1, 7, dtype=torch.float64)[:, None]
    assert torch.allclose(path.norm(dim=-1), (1 - t)*a.norm(dim=-1) + t*b.norm(dim=-1))
    assert torch.allclose(slerp(b, a, 7).flip(0), path)
    assert torch.allclose(slerp(a, a, 3), a.expand(3, -1, -1)) and torch.isfinite(slerp(a, -a, 5)).all() and torch.isfinite(slerp(0*a, b, 5)).all()


def test_bad_input_is_told_in_one_sentence():
    with pytest.raises(BadInput): slerp(torch.ones(3), torch.ones(3), 1)
    with pytest.raises(BadInput): straighten(np.zeros((2, 2, 8, 16, 16)))
    with pytest.raises(BadInput): anchors(np.linspace(0, 1, 5), torch.randn(5, 3), np.array([0, .5, 1]))


def test_same_age_same_length_within_noise():
    lengths = [draw_rod(.6, np.random.default_rng(i)).length for i in range(200)]
    assert np.std(lengths) < .4
