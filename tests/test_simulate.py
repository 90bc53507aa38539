"The simulated population as an instrument: same bytes, any shape, the mitotic signs of the truth"
import numpy as np
import pytest

from integrated_cell.data.cells import Cells
from integrated_cell.results import BadInput
from integrated_cell.simulation.shapes import STAGES, draw_geometry, fields, voxel_grid
from integrated_cell.simulation.stem import draw_table, image_cell, resample_structure, simulate_cells
from integrated_cell.simulation.structures import STRUCTURES, structure_density

SHAPE = (16, 24, 32)


def test_same_bytes_whatever_the_number_and_the_place(tmp_path):
    a, b = simulate_cells(44, SHAPE, seed=3), simulate_cells(66, SHAPE, seed=3, path=tmp_path/"cells")
    assert np.array_equal(a.images, b.images[:44])
    assert a.table.drop(columns="split").equals(b.table[:44].drop(columns="split"))
    row = b.table.iloc[50]
    assert np.array_equal(b[50], image_cell(row.structure, row.stage, row.seed, SHAPE))
    assert not np.array_equal(a.images, simulate_cells(44, SHAPE, seed=4).images)


def test_truth_is_redrawn_from_the_store(tmp_path):
    cells = simulate_cells(22, SHAPE, seed=1, path=tmp_path/"cells")
    again = Cells.open(tmp_path/"cells")
    x = resample_structure(cells, 5, "ZO1", 4, seed=2)
    assert x.dtype == np.float32 and np.array_equal(x, resample_structure(again, 5, "ZO1", 4, seed=2))
    assert np.array_equal(x[:2], resample_structure(cells, 5, "ZO1", 2, seed=2))
    noisy = resample_structure(cells, 5, "ZO1", 4, seed=2, camera=True)
    assert 0 <= noisy.min() and noisy.max() <= 1 and .8 < np.corrcoef(x.ravel(), noisy.ravel())[0, 1] < 1


@pytest.mark.parametrize("shape", [(32, 48, 64), (16, 64, 96), (17, 50, 33), (20, 20, 20)])
def test_a_cell_fits_any_shape(shape):
    grid = voxel_grid(shape)
    for stage in STAGES:
        f = fields(draw_geometry(stage, np.random.default_rng(1)), grid)
        assert (f.d_cell > 0).any() and (f.d_dna > 0).any()
        assert max(f.d_cell.take(end, axis).max() for axis in range(3) for end in (0, -1)) < 0, "no face cuts the cell"


@pytest.mark.parametrize("stage", STAGES)
def test_cells_are_born_aligned(stage):
    grid = voxel_grid((32, 48, 64))
    for seed in range(6):
        f = fields(draw_geometry(stage, np.random.default_rng(seed)), grid)
        z, y, x = grid.v[:, f.d_cell > 0].std(1)
        assert x > .9*y and x > z, "the long axis lies along X"
        assert np.abs(grid.v[:, f.d_dna > 0].mean(1)).max() < 1, "DNA is in the middle"


def test_each_structure_in_its_place():
    f = fields(draw_geometry("interphase", np.random.default_rng(0)), voxel_grid((32, 48, 64)))
    def mean(name, field):
        draws = (structure_density(f, name, np.random.default_rng(k)) for k in range(4))
        return np.mean([np.average(field, weights=x) for x in draws])
    z = f.grid.v[0]
    assert mean("fibrillarin", f.d_dna) > .8 and abs(mean("lamin B1", f.d_dna)) < .8
    for name in ("TOM20", "ST6GAL1", "Sec61 beta", "alpha-tubulin"):
        assert mean(name, f.d_dna) < -.5 and mean(name, f.d_cell) > 1
    for name in ("beta-actin", "alpha-actinin", "myosin IIB", "desmoplakin", "ZO1"): assert mean(name, f.d_cell) < .8
    assert mean("ZO1", z) > 2 > 1 > mean("desmoplakin", z) > -2 > mean("alpha-actinin", z) - 1


def _neg_log_det(x, ridge=.01):
    corr = (1 - ridge)*np.corrcoef(x.reshape(len(x), -1)) + ridge*np.eye(len(x))
    return -np.linalg.slogdet(corr)[1]/len(x)


@pytest.mark.parametrize("name, sign", [
    ("lamin B1", -1), ("fibrillarin", -1), ("ST6GAL1", -1), ("TOM20", -1), ("alpha-tubulin", 1)])
def test_mitosis_shifts_the_truth_as_the_paper_reports(name, sign):
    "Section 3.4.5: less negative log-determinant is more variation"
    v = {}
    for stage in ("interphase", "prometaphase 1", "metaphase", "anaphase"):
        cells = simulate_cells(4, SHAPE, 5, ["TOM20"], stage)
        v[stage] = np.mean([_neg_log_det(resample_structure(cells, i, name, 40)) for i in range(2)])
    assert all(sign*(v[stage] - v["interphase"]) > .1 for stage in v if stage != "interphase"), v


def test_frequencies():
    table = draw_table(3000, 0, frequencies="table_s9")
    share = table.structure.value_counts(normalize=True)
    assert set(table.structure) == set(STRUCTURES) and abs(share["TOM20"] - 4578/21967) < .03
    assert share["myosin IIB"] < .02
    assert set(draw_table(30, 0, stages="metaphase").stage) == {"metaphase"}
    assert set(draw_table(60, 0, stages=["anaphase", "metaphase"]).stage) == {"anaphase", "metaphase"}


def test_bad_input_is_one_sentence():
    cells = simulate_cells(4, SHAPE, structures=["ZO1"])
    for wrong in (dict(structures=["nucleolin"]), dict(stages="G2"), dict(frequencies="S9"), dict(shape=(48, 80)),
                  dict(n=0)):
        with pytest.raises(BadInput): simulate_cells(**dict(n=22, shape=SHAPE) | wrong)
    for i, structure in ((0, "actin"), (9, "ZO1")):
        with pytest.raises(BadInput): resample_structure(cells, i, structure, 2)
    del cells.table["seed"]
    with pytest.raises(BadInput, match="not simulated"): resample_structure(cells, 0, "ZO1", 2)
