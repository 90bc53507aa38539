"What no lesson cell of `metrics` and `distribution` shows about sets of images: other libraries, images on disk, bad input"
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from scipy import stats
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from integrated_cell.evaluation import correlation, distribution, metrics
from integrated_cell.evaluation.classify import soften
from integrated_cell.results import BadInput

PRINTED = {"alpha-actinin": (446, 44.29), "myosin IIB": (138, 143.138), "TOM20": (4128, 4.786),
           "lamin B1": (4028, 4.904)}  # Tables S9 and S10, train


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return rng.normal(size=(80, 6)), rng.normal(.5, 1.5, size=(60, 6))


@pytest.mark.parametrize("as_store", [False, True])
def test_pairwise_correlation_reads_from_disk(tmp_path, as_store):
    "40 MB of images, mapped or in a store, are correlated within 16 MB, to the numbers of numpy"
    shape = (100, 8, 100, 125)
    x = np.lib.format.open_memmap(tmp_path/"x.npy", "w+", np.float32, shape)
    rng = np.random.default_rng(0)
    common = rng.random(shape[1:], dtype=np.float32)
    for i in range(100): x[i] = common*(i % 3) + rng.random(shape[1:], dtype=np.float32)
    source = zarr.create_array(tmp_path/"x.zarr", data=x[:], chunks=(1, *shape[1:])) if as_store else x
    tracemalloc.start()
    rho = correlation.pairwise_correlation(source, 8, **({"memory": 1} if as_store else {}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16*2**20
    assert np.allclose(rho, np.corrcoef(x.reshape(100, -1)), atol=1e-5)


def test_pairwise_correlation_of_whole_numbers_does_not_wrap_round():
    x = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)
    assert np.allclose(correlation.pairwise_correlation(x), np.corrcoef(x.reshape(5, -1).astype(float)), atol=1e-6)


def test_pairwise_correlation_agrees_with_image_correlation():
    x = np.random.default_rng(0).random((4, 3, 5, 6))
    one = float(metrics.image_correlation(x[1:2, None], x[3:4, None]))
    assert correlation.pairwise_correlation(x)[1, 3] == pytest.approx(one, abs=1e-5)


def test_inception_score_of_a_certain_classifier_is_the_papers_first_column():
    "Table S10, data, train: 1/p(y) a row to the printed digits, exp(H(y)) in all"
    counts = np.array([446, 3035, 1429, 2326, 884, 4028, 138, 1382, 1742, 4128, 217])
    y = np.repeat(np.arange(11), counts)
    assert metrics.inception_score(np.eye(11)[y]) == pytest.approx(8.085, abs=5e-4) == pytest.approx(np.exp(stats.entropy(counts/counts.sum())), abs=5e-4)
    of_class = metrics.inception_score(np.eye(11)[y], y)
    for n, printed in PRINTED.values(): assert of_class[list(counts).index(n)] == pytest.approx(printed, abs=.02)


def test_inception_score_takes_names_and_series():
    p = torch.softmax(torch.randn(12, 3), 1)
    names = pd.Series(list("abc")*4, index=range(5, 17))
    of_name = metrics.inception_score(p, names)
    assert list(of_name.index) == list("abc") and np.log(of_name).mean() == pytest.approx(np.log(metrics.inception_score(p)))


@pytest.mark.parametrize("probs", [np.ones((3, 3)), np.ones(3)/3, np.empty((0, 3)), torch.randn(4, 3)])
def test_inception_score_refuses_logits(probs):
    with pytest.raises(BadInput, match="sum to 1"): metrics.inception_score(probs)


def test_kernel_distance_agrees_with_sklearn(features):
    a, b = features
    k = [polynomial_kernel(*t, degree=3, gamma=1/6, coef0=1) for t in ((a, a), (b, b), (a, b))]
    for t in k[:2]: np.fill_diagonal(t, 0)
    assert metrics.kernel_distance(a, b) == pytest.approx(k[0].sum()/80/79 + k[1].sum()/60/59 - 2*k[2].mean())


def test_neighbour_scores_agree_with_sklearn(features):
    real, generated = features
    found = metrics.neighbour_scores(real, generated, 3)
    r, g = (NearestNeighbors(n_neighbors=4).fit(t).kneighbors(t)[0][:, 3] for t in (real, generated))
    apart = np.linalg.norm(real[:, None] - generated[None], axis=2)
    assert np.allclose(found["precision"], (apart < r[:, None]).any(0)) and np.allclose(found["recall"], (apart < g[None]).any(1))
    assert np.allclose(found["density"], (apart < r[:, None]).sum(0)/3) and np.allclose(found["coverage"], (apart < r[:, None]).any(1))


@pytest.mark.filterwarnings("ignore:Metric `Kernel")
def test_torchmetrics_gives_the_same_distances(features):
    fid, kid = (pytest.importorskip(f"torchmetrics.image.{name}") for name in ("fid", "kid"))
    flat = torch.nn.Flatten()
    for make, ours in ((lambda: fid.FrechetInceptionDistance(flat, normalize=True, input_img_size=(3, 2, 4)), metrics.frechet_distance),
                       (lambda: kid.KernelInceptionDistance(flat, subsets=1, subset_size=40, normalize=True), metrics.kernel_distance)):
        a, b = torch.rand(2, 40, 3, 2, 4)
        measure = make()
        if ours is metrics.frechet_distance: measure.set_dtype(torch.float64)
        measure.update(a, real=True); measure.update(b, real=False)
        said = measure.compute()
        assert float(said[0] if isinstance(said, tuple) else said) == pytest.approx(ours(a.flatten(1), b.flatten(1)), rel=1e-3, abs=1e-3)


def test_a_repeated_image_is_precise_and_not_varied(features):
    "What the inception score cannot see: one image a hundred times"
    real = features[0]
    found = {k: v.mean() for k, v in metrics.neighbour_scores(real, np.repeat(real[:1], 100, 0) + 1e-6).items()}
    assert found["precision"] == 1 and found["recall"] == 0 and found["coverage"] < .25


def test_neighbour_scores_refuse_few_images():
    with pytest.raises(BadInput, match="too few"): metrics.neighbour_scores(np.ones((5, 2)), np.ones((9, 2)), 5)


@pytest.mark.parametrize("shape", [(6, 9, 11), (20, 30)])
def test_soften_keeps_the_reference_and_never_wraps_round(shape):
    "A full-scale image stays within 8 bits in 2D and 3D; floats and whole numbers agree; an empty channel stays empty but for haze"
    x = np.zeros((3, *shape), np.uint8)
    x[0], x[2], x[1, 2:4] = 7, 9, 255
    for seed in range(20):
        whole, real = soften(x, np.random.default_rng(seed)), soften(x/255., np.random.default_rng(seed))
        assert whole.dtype == np.uint8 and np.abs(whole[1]/255. - real[1].clip(0, 1)).max() < .003 and (whole[[0, 2]] == x[[0, 2]]).all()
    assert not soften(np.zeros((3, *shape), np.uint8), np.random.default_rng(0)).any()


def seen(y, sure):  # a set of which a network is as sure as told
    p = np.full((len(y), 3), (1 - sure)/2)
    p[np.arange(len(y)), y] = sure
    return distribution.Seen(y, p, p, np.eye(3)[y], pd.DataFrame({"structure": list("abc")}))


def test_scores_of_sets_with_other_frequencies_are_compared_as_shares_of_their_ceilings():
    "The paper's 8.09 and a run of four structures: both networks are certain, both stand at 1"
    even, rare = np.repeat([0, 1, 2], 20), np.repeat([0, 1, 2], [50, 8, 2])
    found = distribution.inception({("data", "train"): seen(even, 1.), ("data", "test"): seen(rare, 1.)}, 20)
    assert np.allclose(found.score, found.ceiling) and found.ceiling.nunique() == 2
    unsure = distribution.inception({("data", "test"): seen(rare, .6)}, 20)
    assert (unsure.high < unsure.ceiling).all()


def test_structures_that_a_set_lacks_are_no_rows():
    "A run of fewer structures than the paper has no blank rows"
    parts = distribution.inception_by_structure({("data", "test"): seen(np.repeat([0, 2], 9), .9)}, list("abc"))
    assert set(parts.structure) == {"a", "c"}
    paper = distribution.printed_inception()
    whole = paper[paper.structure == "all structures"]
    assert not paper.isna().any().any() and (whole.score <= whole.ceiling*1.001).all()


def test_more_alike_needs_both_intervals():
    rows = [("expected", "a", .1, .2), ("encoded-decoded", "a", .15, .3), ("generated, flow", "a", .25, .4)]
    pairs = pd.DataFrame(rows, columns=["kind", "structure", "low", "high"]).assign(split="test")
    found = distribution.more_alike(pairs, "expected").set_index("kind").n
    assert found.to_dict() == {"encoded-decoded": 0, "generated, flow": 1}
