"The simulated yeast as an instrument: same bytes, any shape, channels independent given the cell, known habits"
import numpy as np
import pytest

from integrated_cell.data.cells import Cells
from integrated_cell.results import BadInput
from integrated_cell.data.pairs import SIX
from integrated_cell.simulation.yeast import (
    PROTEINS, cell_channels, draw_rod, expected, resample_green, simulate_yeast,
)


def at(t, name, n=20):
    "Expected images of a protein in n rods of phase t, all with the old end on the right"
    rods = [r for i in range(4*n) if (r := draw_rod(t, np.random.default_rng(i))).old == 1][:n]
    return np.mean([expected(r, name, np.random.default_rng([7, i])) for i, r in enumerate(rods)], 0)


def test_same_bytes_whatever_the_number_and_the_place(tmp_path):
    a, b = simulate_yeast(40, seed=3), simulate_yeast(60, seed=3, path=tmp_path/"cells")
    assert np.array_equal(a.images, b.images[:40]) and a.channels == ("red", "green")
    assert a.images.shape == (40, 2, 48, 80)
    assert a.table.drop(columns="split").equals(b.table[:40].drop(columns="split"))
    assert not np.array_equal(a.images, simulate_yeast(40, seed=4).images)
    again = Cells.open(tmp_path/"cells")
    assert np.array_equal(cell_channels(again, 50, again.table.structure[50], camera=True), b[50])


def test_channels_of_one_cell_are_those_of_the_store_and_independent_of_one_another():
    cells = simulate_yeast(16, seed=2)
    for i in range(16):
        every = cell_channels(cells, i, PROTEINS, camera=True)
        assert every.dtype == np.uint8
        assert np.array_equal(every[[0, 1 + PROTEINS.index(cells.table.structure[i])]], cells[i])
        some = [0, 1 + PROTEINS.index("Tea1"), 1 + PROTEINS.index("Arp3")]
        assert np.array_equal(cell_channels(cells, i, ("Tea1", "Arp3")), cell_channels(cells, i, PROTEINS)[some])
    x, seen = cell_channels(cells, 1, SIX), cell_channels(cells, 1, SIX, camera=True)
    assert x.dtype == np.float32 and x.max() <= .9 + 1e-6 and np.abs(x - seen/255).mean() < .02


def test_resampling_changes_u_alone():
    cells = simulate_yeast(16, seed=2)
    a = resample_green(cells, 3, "Sid2", 4, seed=1)
    assert np.array_equal(a[:2], resample_green(cells, 3, "Sid2", 2, seed=1))
    assert not np.array_equal(a, resample_green(cells, 3, "Sid2", 4, seed=2))
    assert resample_green(cells, 3, "Sid2", 1, camera=True).dtype == np.uint8
    for name in PROTEINS:
        x = resample_green(cells, 5, name, 30)
        own = cell_channels(cells, 5, name)[1]
        spread = np.sqrt(((x[:, None] - x[None])**2).mean((2, 3)))[np.triu_indices(30, 1)]
        to_own = np.sqrt(((x - own)**2).mean((1, 2)))
        assert spread.min() > 0 and to_own.mean() < 2*spread.mean(), name  # the cell's own draw is one like the others


def test_every_protein_varies_with_the_cell_more_than_the_red_does_with_u():
    rod = draw_rod(.5, np.random.default_rng(0))
    def drawn(name): return np.stack([expected(rod, name, np.random.default_rng(i)) for i in range(10)])
    draws = {name: drawn(name) for name in ("red", *PROTEINS)}
    sd = {name: x.std(0).mean()/x.mean() for name, x in draws.items()}
    assert sd["red"] < min(sd[name] for name in ("Alp14", "Arp3", "Fim1", "Tea1", "Tea4"))


@pytest.mark.parametrize("name", ["red", "Arp3", "Fim1"])
def test_growth_is_at_the_old_end_then_both_then_the_middle(name):
    young, grown, last = (at(t, name) for t in (.05, .7, .95))
    right, left = (lambda x: x[:, 40:].sum()), (lambda x: x[:, :40].sum())
    assert right(young) > 1.2*left(young) and .8 < right(grown)/left(grown) < 1.3
    assert last[:, 37:43].mean() > 2*grown[:, 37:43].mean()


def test_tea1_and_tea4_are_at_both_ends_always():
    for name in ("Tea1", "Tea4"):
        for t in (.05, .7, .95):
            x = at(t, name)
            assert .7 < x[:, 40:].sum()/x[:, :40].sum() < 1.4 and x[:, 37:43].mean() < .7*x.mean(0).max()


def test_sid2_has_one_pole_then_two_then_a_ring():
    one, two, ring = (at(t, "Sid2") for t in (.5, .88, .96))
    assert one[:, 32:48].max() == one.max()
    assert two[:, 38:42].mean() < two[:, [*range(18, 30), *range(50, 62)]].max()
    assert ring[:, 39:41].mean() > 1.3*one[:, 39:41].mean()


def test_any_two_dimensional_shape_shows_the_same_cell():
    small, large = simulate_yeast(8, (24, 40), seed=1), simulate_yeast(8, (48, 80), seed=1)
    assert small.voxel_um == (.4, .4) and large.voxel_um == (.2, .2) and small.table.equals(large.table)
    coarse = large.images[:].reshape(8, 2, 24, 2, 40, 2).mean((3, 5))
    assert min(np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(small.images[:, 0], coarse[:, 0])) > .95


def test_population_is_of_all_ages_and_each_protein_as_often():
    cells = simulate_yeast(400, (24, 40), seed=0)
    assert cells.table.structure.value_counts().eq(50).all() and set(cells.classes) == set(PROTEINS)
    assert abs(cells.table.phase.mean() - .5) < .05 and cells.table.length_um.between(6.5, 14.7).all()
    assert cells.table[["phase", "length_um"]].corr("spearman").iloc[0, 1] > .95
    assert set(simulate_yeast(12, (24, 40), proteins=SIX).classes) == set(SIX)


def test_bad_input_is_told_in_one_sentence():
    cells = simulate_yeast(2, (24, 40), proteins=("Arp3",))
    for wrong in (dict(n=0), dict(proteins=("Arp3", "Actin")), dict(proteins=()), dict(shape=(16, 24, 32)),
                  dict(shape=(4, 4))):
        with pytest.raises(BadInput): simulate_yeast(**dict(n=4) | wrong)
    with pytest.raises(BadInput): cell_channels(cells, 2)
    with pytest.raises(BadInput): resample_green(cells, 0, "GFP", 1)
    table = cells.table[["cell_id", "structure"]].copy()
    real = Cells.create(None, cells.images, table, (.1, .1), ("red", "green"), {}, test_fraction=0)
    with pytest.raises(BadInput, match="not simulated"): cell_channels(real, 0)
