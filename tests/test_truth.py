"Samples of the truth: kept, resumed, refused; statistics against SciPy; the Direct network in 2D"
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from integrated_cell.evaluation import truth
from integrated_cell.evaluation.correlation import spearman
from integrated_cell.evaluation.direct import Direct
from integrated_cell.integration.walks import staged
from integrated_cell.results import BadInput, write_json
from integrated_cell.simulation.stem import resample_structure, simulate_cells


@pytest.fixture(scope="module")
def cells(): return simulate_cells(8, (8, 12, 16), 3, ["TOM20", "ZO1"])


def test_a_stopped_draw_goes_on(cells, tmp_path, monkeypatch):
    drawn = []

    def stopping(cells, i, *args):
        drawn.append(i)
        if len(drawn) == 3: raise KeyboardInterrupt
        return resample_structure(cells, i, *args)
    monkeypatch.setattr(truth, "resample_structure", stopping)
    with pytest.raises(KeyboardInterrupt): truth.draw_samples(cells, [5, 2, 7], 2, tmp_path/"calibration", threads=1)
    with pytest.raises(BadInput, match="calibration"): truth.open_samples(tmp_path)
    drawn[:] = [0]*10
    x = truth.draw_samples(cells, [5, 2, 7], 2, tmp_path/"calibration", threads=1)
    assert 2 in drawn[10:] and 5 not in drawn[10:]  # cell 5 was there
    assert [p.name for p in sorted((tmp_path/"calibration").iterdir())] == ["rows.npy", "samples.npy"]
    assert np.array_equal(x[0, 1], np.rint(resample_structure(cells, 5, "ZO1", 2)*255))


def test_samples_are_kept_only_if_they_are_the_same(cells, tmp_path):
    draw = lambda rows, seed: truth.draw_samples(cells, rows, 2, tmp_path/"calibration", seed)
    first, stamp = np.array(draw([1, 4], 0)), (tmp_path/"calibration"/"samples.npy").stat().st_mtime_ns
    draw([1, 4], 0)
    assert (tmp_path/"calibration"/"samples.npy").stat().st_mtime_ns == stamp
    assert not np.array_equal(draw([1, 4], 1), first) and not np.array_equal(draw([4, 1], 0), first)
    assert truth.open_samples(tmp_path)[0].tolist() == [4, 1]


def test_too_small_a_disk_is_told_first(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(truth.shutil, "disk_usage", lambda _: type("Usage", (), dict(free=100))())
    with pytest.raises(BadInput, match="GiB of true samples do not fit"): truth.draw_samples(cells, [0], 2, tmp_path/"calibration")


def test_energy_distance_agrees_with_scipy_in_one_dimension():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 1)), rng.normal(.5, 2, size=(60, 1))
    of_pairs = lambda t: abs(t - t.T).sum()/len(t)**2
    biased = stats.energy_distance(a[:, 0], b[:, 0])**2
    unbiased = biased - of_pairs(a)/39 - of_pairs(b)/59  # SciPy counts each sample's distance to itself
    assert np.isclose(truth.energy_distance(a, b), unbiased, atol=1e-6)


def test_scores_need_no_luck(cells):
    "Two halves of the truth score 0 within their noise, another cell far from it, at 30 samples"
    x = resample_structure(cells, 0, "ZO1", 60)
    other = resample_structure(cells, 1, "ZO1", 30)
    same, wrong = truth.compare(x[30:], x[:30]), truth.compare(other, x[:30])
    for kind in ("error", "two_sample", "two_sample_coarse"): assert abs(same[kind]) < .1*wrong[kind]
    assert np.isnan(truth.compare(x[:1], x)["variation"])


def test_spearman_of_a_constant_is_zero_and_intervals_hold_the_value():
    rng = np.random.default_rng(0)
    a, b = rng.random((20, 3)), rng.random((20, 3))
    assert (spearman(np.ones_like(a), b) == 0).all()
    table = truth.by_structure(a, b, ["p", "q", "r"])
    assert ((table.low < table.value) & (table.value < table.high)).all() and np.isclose(table.value["all"], table.value[:3].mean())


def test_more_neighbours_than_cells_are_refused(cells):
    with pytest.raises(BadInput, match="only 4 are trained on"): truth.nearest_in_shape(cells, [0], np.arange(8), 5)


@pytest.mark.parametrize("shape", [(9, 14, 11), (13, 20)])
def test_direct_in_any_shape(shape):
    direct = Direct(shape, 3, 5, .1).eval()
    with torch.no_grad(): x_hat = direct(torch.rand(2, 2, *shape), torch.tensor([0, 2]))
    assert x_hat.shape == (2, *shape) and ((x_hat > 0) & (x_hat < 1)).all()


def comparison(folder, **chapters):
    "Execute the chapter `comparison` over what some chapters wrote; its metrics"
    root, names = Path(__file__).parents[1], {}
    for name, said in chapters.items():
        (folder/name).mkdir(parents=True)
        write_json(folder/name/"metrics.json", said)
    for c in json.loads((root/"nbs/experiments/comparison.ipynb").read_text())["cells"]:
        if c["cell_type"] != "code": continue
        exec("".join(c["source"]), names)
        if "parameters" in c["metadata"].get("tags", []):
            names |= dict(results=str(folder), aims=str(root/"bench/aims.csv"))
    return json.loads((folder/"comparison/metrics.json").read_text())


def test_comparison_reads_what_there_is(tmp_path, capsys):
    prior = {p: dict(log_density_z_r_test=v, log_density_z_s_test=v) for p, v in (("normal", -2.), ("flow", .5))}
    alone = comparison(tmp_path/"alone", prior=dict(by_prior=prior))
    assert alone["n_compared"] == alone["n_flow_better"] == 2 and alone["aims_both"] == alone["n_apart"] == 0
    named = dict(accuracy=.98, accuracy_low=.96, accuracy_high=.99, macro_recall=.94, min_test_per_class=31)
    leak = {p: dict(leakage=v, leakage_interval=[v - .01, v + .01]) for p, v in (("normal", .9), ("flow", .19))}
    more = comparison(tmp_path/"more", prior=dict(by_prior=prior), classification=named,
                      latent=dict(by_prior=leak, chance=.1, leakage_neighbours=dict(normal=.8, flow=.4)))
    assert more["aims_both"] == 3 and more["reached_both"] == 2
    assert more["reached_flow"] == 1 and more["n_crossed"] == 1
    assert more["n_apart"] == more["n_apart_flow_better"] == 1 and "calibration" in more["without"]
    with pytest.raises(BadInput, match="'prior' has not run"): comparison(tmp_path/"nothing")


def test_cells_without_stages_are_refused(cells):
    plain = type("Cells", (), dict(path="store", table=cells.table.drop(columns="stage")))()
    with pytest.raises(BadInput, match="carry no stage"): staged(plain, ["interphase"])
