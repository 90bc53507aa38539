"What no single lesson cell of `variation` shows: memory, the temporary file, larger cases, bad input"
import tracemalloc

import numpy as np
import pytest
import torch
from scipy import stats

from integrated_cell import variation
from integrated_cell.metrics import image_correlation
from integrated_cell.results import BadInput


def one_sentence(e): return "\n" not in str(e.value) and len(str(e.value)) > 20


def test_determinant_of_many_equicorrelated_images():
    for n, rho in ((1000, .9), (300, .999), (20, -.05)):
        corr = np.full((n, n), rho) + (1 - rho)*np.eye(n)
        assert np.isclose(variation.neg_log_det(corr), -((n - 1)*np.log(1 - rho) + np.log(1 + (n - 1)*rho))/n)


def test_duplicates_of_float32_images_are_singular_without_a_ridge():
    x = np.random.default_rng(0).random((200, 5000), dtype=np.float32)
    distinct = variation.sample_variation(x)
    x[150] = x[7]
    assert np.isfinite(distinct) and variation.sample_variation(x) == np.inf
    assert variation.sample_variation(x, 1e-6) < np.inf
    assert variation.sample_variation(x[:, :100]) == np.inf  # 200 images of 100 voxels


def test_a_ridge_is_independent_noise():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 50_000))  # rank 3
    x = (x - x.mean(1, keepdims=True))/x.std(1, keepdims=True)
    noisy = np.sqrt(.9)*x + np.sqrt(.1)*rng.normal(size=x.shape)
    assert np.isclose(variation.sample_variation(x, .1), variation.sample_variation(noisy), rtol=.01)


def test_same_correlation_as_metrics_for_all_pairs():
    x = torch.rand(12, 3, 4, 5)*.01 + .8
    x[4], x[9] = .3, 0
    pairs = torch.stack([image_correlation(x[:, None], a[None, None])[:, 0] for a in x]).numpy()
    np.fill_diagonal(pairs, 1)
    assert np.allclose(variation.streamed_correlation(x, batch_size=5), pairs, atol=1e-4)


def test_memory_does_not_grow_with_images_times_voxels(tmp_path):
    n, voxels, batch = 400, 20_000, 16  # 32 MB of float32
    rng = np.random.default_rng(0)
    base = rng.normal(size=(4, voxels)).astype(np.float32)
    stream = ((rng.normal(size=(batch, 4)).astype(np.float32) @ base) for _ in range(n//batch))
    tracemalloc.start()
    corr = variation.streamed_correlation(stream, batch, limit=2**20, folder=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4*8*n*n + 4*8*batch*voxels < 4*n*voxels/1.3
    assert np.linalg.matrix_rank(corr, tol=1e-3) == 4 and not list(tmp_path.iterdir())


def test_a_memory_map_gives_what_an_array_gives(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (50, 6, 7, 8), dtype=np.uint8)
    np.save(tmp_path/"x.npy", x)
    assert np.allclose(variation.streamed_correlation(np.load(tmp_path/"x.npy", mmap_mode="r")), np.corrcoef(x.reshape(50, -1)), atol=1e-12)


def test_variation_counts_on_noise_alone():
    decode = lambda z_r, y, u_s: torch.sigmoid(torch.cat([u_s, u_s*u_s, u_s.roll(1, 1)*u_s], 1) + y[:, None]).unflatten(1, (3, -1))
    given = [variation.structure_variation(decode, torch.zeros(2), 3, 70, 32, .01, seed=5, batch_size=b, limit=limit) for b, limit in ((64, 2**30), (7, 2**30), (7, 100))]
    assert np.allclose(given, given[0], rtol=1e-5)
    assert variation.structure_variation(decode, torch.zeros(2), 3, 70, 32, .01, seed=6) != given[0]


def test_delta_and_rank_correlation_agree_with_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 40).astype(float), rng.integers(2, 8, 33).astype(float)  # with ties
    d = variation.cliffs_delta(a, b)
    assert np.isclose(d["delta"], 2*stats.mannwhitneyu(a, b).statistic/(40*33) - 1) and d["low"] < d["delta"] < d["high"] and d["p"] < .05
    assert variation.cliffs_delta([1, 2], [3, 4])["delta"] == -1
    rho = variation.rank_correlation(a[:33], b)
    assert np.isclose(rho[0], stats.spearmanr(a[:33], b).statistic) and rho[1] < rho[0] < rho[2]


def test_bad_input_is_told_in_one_sentence(monkeypatch):
    for call in (lambda: variation.neg_log_det(np.ones((2, 3))), lambda: variation.neg_log_det(np.eye(3), 1.5), lambda: variation.streamed_correlation(iter([])),
                 lambda: variation.streamed_correlation(np.zeros(4)), lambda: variation.streamed_correlation(np.full((3, 4), np.nan)), lambda: variation.cliffs_delta([], [1.]),
                 lambda: variation.mitotic_shifts(np.zeros((3, 2)), np.ones(3, bool), ["TOM20"])):
        with pytest.raises(BadInput) as e: call()
        assert one_sentence(e)

    monkeypatch.setattr(variation, "TemporaryFile", lambda dir: open("/dev/full", "wb+"))
    with pytest.raises(BadInput, match="disk"): variation.streamed_correlation(iter([np.ones((2, 9000), np.float32)]*2), limit=1)
