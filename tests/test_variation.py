"What no single lesson cell of `correlation`, `variation` and `shifts` shows: memory, the temporary file, larger cases, bad input"
import os
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from integrated_cell.evaluation import correlation, shifts, variation
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
    assert np.allclose(correlation.streamed_correlation(x, memory=12*8*2*7), pairs, atol=1e-4)


def resident(): return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])*1024  # bytes, without mapped files


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what Linux tells of a process")
def test_memory_does_not_grow_with_images_times_voxels(tmp_path):
    n, voxels, batch, memory = 400, 100_000, 16, 2**24  # 160 MB of float32
    torch.manual_seed(0)
    base, seen, stop = torch.randn(4, voxels), [], threading.Event()
    stream = (torch.randn(batch, 4) @ base for _ in range(n//batch))
    watch = threading.Thread(target=lambda: [seen.append(resident()) for _ in iter(lambda: stop.wait(.002), True)])
    correlation.streamed_correlation((torch.randn(batch, 4) @ base for _ in range(2)), 2**21, tmp_path)  # what libraries take for themselves
    before = resident()
    watch.start()
    corr = correlation.streamed_correlation(stream, memory, tmp_path)
    stop.set(); watch.join()
    assert len(seen) > 20 and max(seen) - before < memory + 4*8*n*n + 4*4*batch*voxels < 4*n*voxels/3
    assert np.linalg.matrix_rank(corr, tol=1e-3) == 4 and not list(tmp_path.iterdir())


def test_a_memory_map_gives_what_an_array_gives(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (50, 6, 7, 8), dtype=np.uint8)
    np.save(tmp_path/"x.npy", x)
    assert np.allclose(correlation.streamed_correlation(np.load(tmp_path/"x.npy", mmap_mode="r")), np.corrcoef(x.reshape(50, -1)), atol=1e-12)


def test_channel_of_cells_is_read_in_place_or_streamed():
    x = np.random.default_rng(0).random((20, 3, 4, 5, 6), dtype=np.float32)
    expected = np.corrcoef(x[:, 1].reshape(20, -1))
    for images in (x[:, 1], torch.from_numpy(x)[:, 1], x[::-1].copy()[::-1][:, 1].copy(), torch.from_numpy(x)[:, 1].double()):
        assert np.allclose(correlation.streamed_correlation(images), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float16, np.float64])
def test_any_number_type(dtype):
    x = (np.random.default_rng(0).random((12, 50))*200).astype(dtype)
    assert np.allclose(correlation.streamed_correlation(x), np.corrcoef(x.astype(float)), atol=1e-12)
    assert np.allclose(correlation.streamed_correlation(iter(np.split(x, 3))), np.corrcoef(x.astype(float)), atol=1e-6)


def test_images_whose_first_slice_says_nothing_of_the_rest():
    "The shift by the mean of the first slice must not cost digits"
    x = np.random.default_rng(0).normal(size=(30, 4000))*1e-3 + 1e3
    x[:, :16] = 0  # one slice of background
    assert np.allclose(correlation.streamed_correlation(x, memory=30*8*2*16), np.corrcoef(x), atol=1e-10)
    y = x[:, 16:]
    assert np.allclose(correlation.streamed_correlation(y, memory=30*8*2*16), np.corrcoef(y), atol=1e-10)


def test_variation_counts_on_noise_alone():
    decode = lambda z_r, y, u_s: torch.sigmoid(torch.cat([u_s, u_s*u_s, u_s.roll(1, 1)*u_s], 1) + y[:, None]).unflatten(1, (3, -1))
    u_s = torch.randn(2, 70, 32, generator=torch.Generator().manual_seed(5))
    measure = lambda u, batch, memory: variation.sample_variation(variation.sampler(decode, torch.zeros(1, 2), u, batch)(0, 3), .01, memory=memory)
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
    others = [dict(of=[torch.nn.Linear(2, 2), u_s]), dict(of=[net, u_s + 1e-6]), dict(of=[net, u_s[:4]]),
              dict(ridges=[0., .02]), dict(parts=[slice(6), slice(None)]), dict(n_cells=2)]
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
    d = shifts.cliffs_delta(a, b)
    assert np.isclose(d.value, 2*stats.mannwhitneyu(a, b).statistic/(40*33) - 1) and d.low < d.value < d.high < 0
    assert shifts.cliffs_delta([1, 2], [3, 4]).value == -1
    rho = correlation.rank_correlation(a[:33], b)
    assert np.isclose(rho[0], stats.spearmanr(a[:33], b).statistic) and rho[1] < rho[0] < rho[2]


def test_bad_input_is_told_in_one_sentence(monkeypatch):
    streamed, mitotic = correlation.streamed_correlation, np.ones(3, bool)
    for call in (lambda: variation.neg_log_det(np.ones((2, 3))), lambda: variation.neg_log_det(np.eye(3), 1.5),
                 lambda: streamed(iter([])), lambda: streamed(np.zeros(4)), lambda: streamed(np.full((3, 4), np.nan)),
                 lambda: correlation.rank_agreement(np.ones((3, 2)), np.ones((4, 2)), "ab"),
                 lambda: shifts.cliffs_delta([], [1.]), lambda: shifts.Varied(["TOM20"], mitotic, 2, .01),
                 lambda: shifts.mitotic_shifts(np.zeros((3, 2)), mitotic, ["TOM20"]),
                 lambda: variations(Draws(), 1, 1, path="x.npy")):
        with pytest.raises(BadInput) as e: call()
        assert one_sentence(e)

    monkeypatch.setattr(correlation, "TemporaryFile", lambda dir: open("/dev/full", "wb+"))
    with pytest.raises(BadInput, match="disk"): correlation.streamed_correlation(iter([np.ones((2, 9000), np.float32)]*2), memory=1)


def test_a_model_that_only_knows_the_phase_agrees_over_all_cells_and_not_within_one():
    "The trap that the chapter warns of: two groups of cells make a correlation that is none within either"
    rng, phase = np.random.default_rng(0), np.repeat(["interphase", "mitosis"], 20)
    v = shifts.Varied(["TOM20", "ZO1"], phase, 4, .01)
    for s in ("truth", "flow"):
        number = rng.normal(size=(40, 2)) + 5*(phase == "mitosis")[:, None]
        v.values[s] = np.broadcast_to(number[:, :, None, None], (40, 2, len(v.parts), len(v.ridges)))
    found = shifts.agreement(v, 400).query("structure == 'median of structures'").set_index("cells")
    assert found.low["all cells"] > .5 and found.low["mitosis"] < 0 < found.high["mitosis"]


def test_a_shift_against_the_truth_is_counted_only_where_both_are_sure():
    rows = [("truth", "Sec61 beta", -.5, -.9, -.1), ("flow", "Sec61 beta", .7, .3, .9), ("truth", "lamin B1", 1, .8, 1),
            ("flow", "lamin B1", -.1, -.4, .2)]
    t = pd.DataFrame(rows, columns=["source", "structure", "value", "low", "high"])
    count = shifts.signs(t.assign(q=.01, paper=t.structure.map(shifts.MITOTIC_SHIFTS))).loc["flow"]
    assert (count.against_truth, count.opposite, count.as_truth, count.as_paper, count.n_all) == (1, "Sec61 beta", 0, 0, 2)
