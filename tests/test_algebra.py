"Sums of cells: bad input, agreement with libraries, and equations that chance cannot solve"
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from integrated_cell.profiling.algebra import balance, direction, dose_algebra, edit, edit_effect, mechanism_algebra, opposites, plate_transfer, rank_of, read_drawn
from integrated_cell.profiling.cytogan import CytoGan
from integrated_cell.profiling.features import PROPERTIES
from integrated_cell.results import BadInput

rng = np.random.default_rng(0)


def screen(d=12, noise=0., n=3, weeks=2, seed=0):
    "Profiles of treatments on plates: mechanisms are directions, a dose is how far, weeks and plates have places of their own"
    rng = np.random.default_rng(seed)
    ways, week, plate = (rng.normal(size=(k, d)) for k in (5, weeks, 2*weeks))
    rows = [(f"{m}{c}", dose, "ABCDE"[m], f"w{c % weeks}", f"w{c % weeks}_{p}", 3*week[c % weeks] + plate[2*(c % weeks) + p] + dose*(3*ways[m] + .3*rng.normal(size=d)) + noise*rng.normal(size=d))
            for m in range(5) for c in range(n) for dose in (.1, 1.) for p in range(2)]
    x = pd.DataFrame([r[-1] for r in rows], pd.MultiIndex.from_tuples([r[:-1] for r in rows], names=["compound", "concentration", "moa", "batch", "plate"]))
    dmso = pd.DataFrame([(3*week[w] + plate[2*w + p]) for w in range(weeks) for p in range(2)], pd.MultiIndex.from_tuples([(f"w{w}", f"w{w}_{p}") for w in range(weeks) for p in range(2)], names=["batch", "plate"]))
    return x, dmso


def test_a_direction_is_the_pseudo_inverse_of_a_joint_regression():
    z = rng.normal(size=(3000, 20))
    b = rng.normal(size=(20, 4))
    y = z @ b + .3*rng.normal(size=(3000, 4))
    exact = np.linalg.pinv(LinearRegression().fit(z, y).coef_)
    for i in range(4):
        step = direction(z, y[:, i], np.delete(y, i, 1))
        assert np.allclose(step, exact[:, i], atol=.01) and np.allclose(step @ b, np.eye(4)[i], atol=.03)


def test_a_direction_does_not_depend_on_units_or_on_where_zero_is():
    z = rng.normal(size=(300, 5))
    y = z @ rng.normal(size=(5, 2)) + rng.normal(size=(300, 2))
    a, b = direction(z, y[:, 0], y[:, 1:]), direction(z, 1e4*y[:, 0] + 7, 1e-3*y[:, 1:] - 5)
    assert np.allclose(a, 1e4*b, rtol=1e-3)


def test_fewer_cells_than_dimensions_still_find_a_direction():
    z = rng.normal(size=(30, 64))
    step = direction(z, z[:, 0] + .1*rng.normal(size=30))
    assert np.isfinite(step).all() and step[0] > 0


@pytest.mark.parametrize("z, values, given, says", [((10, 3), (9,), None, "10 noises and 9 values"), ((10, 3), (10,), "constant", "property 1 is the same in all 10 cells")])
def test_directions_refused(z, values, given, says):
    given = np.ones((10, 1)) if given else None
    with pytest.raises(BadInput, match=says): direction(rng.normal(size=z), rng.normal(size=values), given)


def test_an_effect_needs_two_amounts_and_copes_with_one_property():
    done = rng.normal(size=(2, 8, 1)) + np.array([0, 1]).reshape(2, 1, 1)
    with pytest.raises(BadInput, match="two amounts"): edit_effect([1, 1], done, ["a"], "a")
    alone = edit_effect([0, 1], done, ["a"], "a", 50)
    assert alone["beside"] == "" and alone["most"] == 0 and alone["low"] < alone["slope"] < alone["high"]


def test_balance_leaves_out_what_cannot_be_moved():
    steps = np.eye(3)
    tried = edit(rng.normal(size=(5, 3)), steps, (-1, 1), False)*[2, 1, 1e-6]
    assert np.allclose(balance(steps, (-1, 1), tried), np.diag([.5, 1, 0]))


def test_properties_of_what_a_model_draws():
    model = CytoGan("lsgan", (16, 16), .06, 4).eval()
    z = rng.normal(size=(3, 2, 7, 4))
    y = read_drawn(z, model, PROPERTIES, .3)
    assert y.shape == (3, 2, 7, len(PROPERTIES)) and np.isfinite(y).all() and np.allclose(read_drawn(z[1, 1], model, PROPERTIES, .3), y[1, 1])


def test_ranks_by_brute_force():
    points, candidates, target, used = rng.normal(size=(40, 6)), rng.normal(size=(15, 6)), rng.integers(15, size=40), rng.integers(15, size=(40, 2))
    by_hand = []
    for p, t, u in zip(points, target, used):
        d = np.linalg.norm(candidates - p, axis=1)
        others = [i for i in range(15) if i != t and i not in u]
        by_hand.append(np.mean(d[others] < d[t]))
    assert np.allclose(rank_of(points, candidates, target, used), by_hand)
    assert np.allclose(rank_of(np.zeros((1, 2)), np.ones((4, 2)), [0]), .5)  # all as near: chance
    with pytest.raises(BadInput, match="no other treatment"): rank_of(points[:1], candidates[:2], [0], [[1]])


def test_equations_hold_where_the_world_is_a_sum():
    x, dmso = screen()
    dose = dose_algebra(x.groupby(["compound", "concentration", "moa"]).mean())
    by = dose.groupby("donors")["rank"].mean()
    assert by["same mechanism"] < .02 < .2 < by["other mechanism"] and len(dose.compound.unique()) == 15
    top = x.xs(1., level="concentration").groupby(["compound", "moa", "batch"]).mean()
    sums = mechanism_algebra(top, dmso.groupby("batch").mean()).groupby("sum")["rank"].mean()
    assert sums["DMSO moved"] == 0 and sums["DMSO not moved"] > .05 and sums["no mechanism"] > .2
    moved = plate_transfer(x, dmso.droplevel("batch"))
    assert len(moved) == 30 and (moved.moved < moved.stayed).all()


def test_equations_between_noise_are_chance():
    ranks = []
    for seed in range(6):
        x, dmso = screen(seed=seed)
        x[:] = np.random.default_rng(seed).normal(size=x.shape)
        top = x.xs(1., level="concentration").groupby(["compound", "moa", "batch"]).mean()
        ranks += [dose_algebra(x.groupby(["compound", "concentration", "moa"]).mean())["rank"].mean(), mechanism_algebra(top, 0*dmso.groupby("batch").mean())["rank"].mean()]
    assert abs(np.mean(ranks) - .5) < .06


def test_equations_refused():
    x, dmso = screen()
    top = x.xs(1., level="concentration").groupby(["compound", "moa", "batch"]).mean()
    with pytest.raises(BadInput, match="two doses"): dose_algebra(x.xs(1., level="concentration", drop_level=False).groupby(["compound", "concentration", "moa"]).mean())
    with pytest.raises(BadInput, match="batch w1 has no DMSO"): mechanism_algebra(top, dmso.groupby("batch").mean().loc[["w0"]])
    with pytest.raises(BadInput, match="two compounds"): mechanism_algebra(top.groupby("moa").head(1), dmso.groupby("batch").mean())
    with pytest.raises(BadInput, match="no two pairs"): opposites(top[top.index.get_level_values("moa").isin(["A", "B"])], dmso.groupby("batch").mean())
    with pytest.raises(BadInput, match="no treatment stands on two plates"): plate_transfer(x[x.index.get_level_values("plate").str.endswith("_0")], dmso.droplevel("batch"))
