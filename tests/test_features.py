"Hand-made features: what no lesson cell shows, agreement with scikit-image, and real crops"
import os
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from skimage.draw import disk
from skimage.measure import label, regionprops

from integrated_cell.profiling.features import PROPERTIES, find_cell, measure
from integrated_cell.results import BadInput
from integrated_cell.simulation.screen import simulate_screen

MIRROR = os.environ.get("INTEGRATED_CELL_MIRROR")
real = pytest.mark.skipif(not MIRROR or not (Path(MIRROR or ".")/"bbbc021_cells").is_dir(), reason="INTEGRATED_CELL_MIRROR has no bbbc021_cells")


def drawn(shape=(96, 96), at=(48, 48), radius=10, light=.8):
    x = np.zeros((3, *shape), np.float32)
    x[0][disk(at, radius, shape=shape)], x[1][disk(at, 2.5*radius, shape=shape)], x[2][disk(at, 2.5*radius, shape=shape)] = light, .6, .4
    return x


def test_bytes_and_fractions_blocks_and_zarr_like_arrays_agree():
    x = np.stack([drawn(radius=r, at=(45, 50)) for r in range(6, 12)])
    whole = measure(x)
    assert np.allclose(measure((x*255).round().astype(np.uint8)), whole, atol=.02, rtol=.01)
    assert np.allclose(measure(x, block=2), whole, atol=1e-4, rtol=1e-4)
    assert whole.dtypes.eq(np.float32).all() and (np.diff(whole.nuclear_area) > 0).all()


def test_a_pixel_size_scales_areas_and_totals_and_nothing_else():
    x = drawn()[None]
    a, b = measure(x).iloc[0], measure(x, .25).iloc[0]
    sized = [c for c in a.index if c.endswith(("_area", "_total"))]
    assert np.allclose(b[sized], a[sized]/16) and np.allclose(b.drop(sized), a.drop(sized))


@pytest.mark.parametrize("x", [np.zeros((1, 3, 32, 40)), np.ones((1, 3, 32, 40)), np.eye(40)[None, None, :32].repeat(3, 1),
                               np.random.default_rng(0).random((4, 3, 24, 24)), np.pad(np.ones((1, 1, 40, 40)), ((0, 0), (1, 1), (0, 0), (0, 0)))])
def test_never_a_nan_whatever_the_image(x):
    assert np.isfinite(measure(x).to_numpy()).all() and len(measure(x)) == len(x)


def test_no_cells_gives_an_empty_table_or_is_refused():
    with pytest.raises(BadInput, match="not \\(n, 3, Y, X\\)"): measure(np.zeros((2, 2, 32, 32)))
    with pytest.raises(BadInput, match="not \\(n, 3, Y, X\\)"): measure(np.zeros((3, 32, 32)))
    with pytest.raises(BadInput, match="not numbers"): measure(np.full((1, 3, 32, 32), np.nan))
    assert len(measure(np.zeros((0, 3, 32, 32)))) == 0


def test_a_neighbour_changes_nothing_but_a_little():
    alone, beside = drawn(), drawn()
    beside[0][disk((12, 12), 9)], beside[1][disk((10, 10), 20, shape=(96, 96))] = 1, .9
    a, b = (measure(x[None]).iloc[0] for x in (alone, beside))
    for name in ("nuclear_area", "n_nuclei", "cell_area", "dna_total", "actin_total", "tubulin_total"): assert b[name] == pytest.approx(a[name], rel=.05)


def test_shapes_are_those_of_scikit_image():
    rng = np.random.default_rng(1)
    x = np.stack([np.stack([ndimage.gaussian_filter(rng.random((64, 64)), 6)*w for w in (np.hypot(*(np.indices((64, 64)) - 31.5)) < 22, 1, 1)]) for _ in range(5)])
    x /= x.max((2, 3), keepdims=True)
    for image, row in zip(x, measure(x).itertuples()):
        pieces, cell, _ = find_cell(ndimage.gaussian_filter(image.astype(np.float32), (0, 64/96, 64/96), truncate=3))
        props = regionprops((pieces > 0).astype(int))[0]
        assert row.nuclear_area == (pieces > 0).sum() == props.area and row.n_nuclei == label(pieces > 0, connectivity=1).max()
        assert row.nuclear_solidity == pytest.approx(props.solidity, abs=1e-5) and row.cell_area == cell.sum()
        inside = image[0][pieces > 0]
        assert row.dna_mean == pytest.approx(inside.mean(), abs=1e-4) and row.dna_cv == pytest.approx(inside.std()/inside.mean(), abs=1e-3)
        assert row.dna_tubulin_correlation == pytest.approx(np.corrcoef(image[0][cell], image[1][cell])[0, 1], abs=2e-3)


def test_the_simulated_truth_is_read_back():
    cells = simulate_screen(100, (48, 48), seed=2)
    f = measure(cells.images[:], cells.voxel_um[-1])
    for name, trait in (("nuclear_area", "true_nuclear_size"), ("cell_area", "true_cell_size")): assert f[name].corr(cells.table[trait], method="spearman") > .4
    assert (f[list(PROPERTIES)].std() > 0).all()


@real
def test_real_crops():
    packed = np.load(Path(MIRROR)/"bbbc021_cells"/"cells.npz")
    x = packed["images"][::100].transpose(0, 3, 1, 2)[:, [0, 2, 1]]/65535
    f = measure(x/x.max((2, 3), keepdims=True))
    assert np.isfinite(f.to_numpy()).all() and (f.nuclear_area > 300).mean() > .95 and f.n_nuclei.median() == 1 and (f.cell_area > f.nuclear_area).mean() > .95
