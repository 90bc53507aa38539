"What no single lesson cell of `variation` shows: memory, the temporary file, larger cases, bad input"
import os
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from integrated_cell.evaluation import variation
from integrated_cell.evaluation.metrics import image_correlation
from integrated_cell.results import BadInput
from integrated_cell.evaluation.variation import variations


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
    assert np.allclose(variation.streamed_correlation(x, memory=12*8*2*7), pairs, atol=1e-4)


def resident(): return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])*1024  # bytes, without mapped files


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what Linux tells of a process")
def test_memory_does_not_grow_with_images_times_voxels(tmp_path):
    n, voxels, batch, memory = 400, 100_000, 16, 2**24  # 160 MB of float32
    torch.manual_seed(0)
    base, seen, stop = torch.randn(4, voxels), [], threading.Event()
    stream = (torch.randn(batch, 4) @ base for _ in range(n//batch))
    watch = threading.Thread(target=lambda: [seen.append(resident()) for _ in iter(lambda: stop.wait(.002), True)])
    variation.streamed_correlation((torch.randn(batch, 4) @ base for _ in range(2)), 2**21, tmp_path)  # what libraries take for themselves
    before = resident()
    watch.start()
    corr = variation.streamed_correlation(stream, memory, tmp_path)
    stop.set(); watch.join()
    assert len(seen) > 20 and max(seen) - before < memory + 4*8*n*n + 4*4*batch*voxels < 4*n*voxels/3
    assert np.linalg.matrix_rank(corr, tol=1e-3) == 4 and not list(tmp_path.iterdir())


def test_a_memory_map_gives_what_an_array_gives(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (50, 6, 7, 8), dtype=np.uint8)
    np.save(tmp_path/"x.npy", x)
    assert np.allclose(variation.streamed_correlation(np.load(tmp_path/"x.npy", mmap_mode="r")), np.corrcoef(x.reshape(50, -1)), atol=1e-12)


def test_channel_of_cells_is_read_in_place_or_streamed():
    x = np.random.default_rng(0).random((20, 3, 4, 5, 6), dtype=np.float32)
    expected = np.corrcoef(x[:, 1].reshape(20, -1))
    for images in (x[:, 1], torch.from_numpy(x)[:, 1], x[::-1].copy()[::-1][:, 1].copy(), torch.from_numpy(x)[:, 1].double()):
        assert np.allclose(variation.streamed_correlation(images), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float16, np.float64])
def test_any_number_type(dtype):
    x = (np.random.default_rng(0).random((12, 50))*200).astype(dtype)
    assert np.allclose(variation.streamed_correlation(x), np.corrcoef(x.astype(float)), atol=1e-12)
    assert np.allclose(variation.streamed_correlation(iter(np.split(x, 3))), np.corrcoef(x.astype(float)), atol=1e-6)


def test_images_whose_first_slice_says_nothing_of_the_rest():
    "The shift by the mean of the first slice must not cost digits"
    x = np.random.default_rng(0).normal(size=(30, 4000))*1e-3 + 1e3
    x[:, :16] = 0  # one slice of background
    assert np.allclose(variation.streamed_correlation(x, memory=30*8*2*16), np.corrcoef(x), atol=1e-10)
    y = x[:, 16:]
    assert np.allclose(variation.streamed_correlation(y, memory=30*8*2*16), np.corrcoef(y), atol=1e-10)


def test_variation_counts_on_noise_alone():
    decode = lambda z_r, y, u_s: torch.sigmoid(torch.cat([u_s, u_s*u_s, u_s.roll(1, 1)*u_s], 1) + y[:, None]).unflatten(1, (3, -1))
    u_s = torch.randn(2, 70, 32, generator=torch.Generator().manual_seed(5))
    measure = lambda u, batch, memory: variation.sample_variation(variation.structure_samples(decode, torch.zeros(2), 3, u, batch), .01, memory=memory)
    given = [measure(u_s[0], batch, memory) for batch, memory in ((64, None), (7, None), (7, 100))]
    assert np.allclose(given, given[0], rtol=1e-5)
    assert measure(u_s[1], 64, None) != given[0]


class Draws:
    "Images of a structure in a cell; may kill its process, or complain, at a given draw"
    def __init__(self, fatal=-1): self.fatal, self.asked = fatal, []
    def __call__(self, i, c):
        if len(self.asked) == self.fatal: os.kill(os.getpid(), signal.SIGKILL)
        self.asked.append((int(i), int(c)))
        return np.random.default_rng([i, c]).random((15, 40))


HOW = dict(n_cells=3, n_structures=4, ridges=[0., .01], parts=[slice(7), slice(None)])


def test_a_killed_table_goes_on_with_equal_numbers(tmp_path):
    how, whole = HOW | dict(path=tmp_path/"normal.npy", of=[1]), variations(Draws(), **HOW)
    for k in (4, 5):  # killed twice
        if not (pid := os.fork()): variations(Draws(k), **how)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    rest = Draws()
    assert np.array_equal(variations(rest, **how), whole) and len(rest.asked) == 3
    assert np.array_equal(variations(Draws(0), **how), whole)  # asks for nothing any more
    assert [p.suffix for p in tmp_path.iterdir()] == [".npy"]


def test_a_half_written_number_is_done_again(tmp_path):
    how = HOW | dict(path=tmp_path/"normal.npy", of=[1])
    whole = variations(Draws(), **how)
    table = np.load(next(tmp_path.iterdir()), mmap_mode="r+")
    table[1, 2, 1, 1] = np.nan
    table.flush()
    rest = Draws()
    assert np.array_equal(variations(rest, **how), whole) and rest.asked == [(1, 2)]


def test_another_model_noise_or_ridge_does_not_mix(tmp_path):
    torch.manual_seed(0)
    net, u_s = torch.nn.Linear(2, 2), torch.randn(5, 3)
    how = HOW | dict(path=tmp_path/"normal.npy", of=[net, u_s])
    variations(Draws(), **how)
    others = [dict(of=[torch.nn.Linear(2, 2), u_s]), dict(of=[net, u_s + 1e-6]), dict(of=[net, u_s[:4]]), dict(ridges=[0., .02]), dict(parts=[slice(6), slice(None)]), dict(n_cells=2)]
    for other in others:
        d = Draws()
        variations(d, **how | other)
        assert len(d.asked) == (how | other)["n_cells"]*4
    again = Draws(0)
    variations(again, **how)
    assert not again.asked and len(list(tmp_path.iterdir())) == 1 + len(others)


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
                 lambda: variations(Draws(), 1, 1, path="x.npy"), lambda: variation.mitotic_shifts(np.zeros((3, 2)), np.ones(3, bool), ["TOM20"])):
        with pytest.raises(BadInput) as e: call()
        assert one_sentence(e)

    monkeypatch.setattr(variation, "TemporaryFile", lambda dir: open("/dev/full", "wb+"))
    with pytest.raises(BadInput, match="disk"): variation.streamed_correlation(iter([np.ones((2, 9000), np.float32)]*2), memory=1)
