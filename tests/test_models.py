"Kept models: what is in models/ opens, says what it is, and gives the numbers that it says; what is damaged is refused"
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import PROJECT, make_study, one_sentence, run, set_config, write_chapter

from integrated_cell.data.cells import CHANNELS_R, split_by_hash
from integrated_cell.data.manifest import fetch
from integrated_cell.data.plates import crop_cells
from integrated_cell.data.prepare import hela_cells
from integrated_cell.evaluation.metrics import image_correlation
from integrated_cell.integration.flow_matching import watching
from integrated_cell.integration.integrate import integrate
from integrated_cell.integration.conditional import Conditional
from integrated_cell.integration.prior import Flow
from integrated_cell.models import keep_model, kept_table, lay, names, open_model, part_of, take
from integrated_cell.profiling.cytogan import CytoGan, encode_cells, sample
from integrated_cell.profiling.views import known_again, profiles_of
from integrated_cell.results import BadInput, write_json
from integrated_cell.simulation.screen import simulate_screen
from integrated_cell.simulation.stem import draw_table, image_cell, simulate_cells
from integrated_cell.synthesis.families import Trained
from integrated_cell.synthesis.variety import greens_of_reds, within
from integrated_cell.training.train import save
from integrated_cell.workflow import read_config

OF = dict(run="toy", cells="data", parts={"conditional": "conditional"}, numbers={"conditional": ["factor"]}, title="A toy",
          use="to test", licence="Apache-2.0")


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    "The toy study with a trained network, kept"
    study = make_study(tmp_path_factory.mktemp("study"))
    run(study, "integrated-cell", "chapter", "conditional", "--config", "config/toy.yaml")
    cells = simulate_cells(8, (8, 12, 16), path=study/"results/toy/data/cells")
    save(Conditional(cells.shape, cells.classes, 4, 4, .1, voxel_um=cells.voxel_um), study/"results/toy/conditional")
    (study/"models").mkdir()
    (study/"models/models.yaml").write_text(yaml.safe_dump({"toy3d": OF}))
    keep_model("toy3d", study)
    return study


@pytest.fixture
def toy(once, tmp_path):
    return Path(shutil.copytree(once, tmp_path/"study"))


def refused(call):
    with pytest.raises(BadInput) as e: call()
    assert one_sentence(str(e.value))
    return str(e.value)


def test_a_kept_model_opens_and_says_what_it_is(toy):
    kept = open_model("toy3d", toy/"models")
    assert kept["conditional"].classes == kept.about.classes and kept.about.numbers == {"conditional_factor": 2}
    assert kept.about.licence == "Apache-2.0" and 0 < kept.about.n_train <= 8
    small, whole = (p/"conditional/model.safetensors" for p in (toy/"models/toy3d", toy/"results/toy"))
    assert small.stat().st_size < .3*whole.stat().st_size


@pytest.mark.parametrize("change, words", [
    (dict(format=3), ["about.json", "format 3", "formats 1 and 2"]), (dict(format="2"), ["about.json", "format '2'"]),
    (dict(format=...), ["about.json", "format: field required"]),
    (dict(shape=[8, 12, 20]), ["shape", "about.json says [8, 12, 20]"]),
    (dict(classes=["lamin"]), ["classes", "about.json says 1"]),
    (dict(licence=None), ["about.json", "licence"]), (dict(licence="  "), ["about.json", "licence"]),
    (dict(parts={}), ["about.json", "parts"]), (dict(voxel_um=[1, 1, 1]), ["voxel_um", "about.json says [1.0, 1.0, 1.0]"]),
    (dict(parts={"conditional": "Conditionl"}), ["class 'Conditionl' is unknown", "Conditional"]),
    (dict(more=1), ["about.json", "more"]),
])
def test_a_damaged_description_is_refused(toy, change, words):
    about = toy/"models/toy3d/about.json"
    write_json(about, {k: v for k, v in (json.loads(about.read_text()) | change).items() if v is not ...})
    said = refused(lambda: open_model("toy3d", toy/"models"))
    assert all(w in said for w in words), said


def test_what_cannot_be_kept_is_refused_and_nothing_is_lost(toy):
    before = (toy/"models/toy3d/about.json").read_text()
    assert "names no model 'toy2d'; there are toy3d" in refused(lambda: keep_model("toy2d", toy))
    for lost, words in (("licence", "names no licence"), ("numbers", "lacks numbers")):
        (toy/"models/models.yaml").write_text(yaml.safe_dump({"toy3d": {k: v for k, v in OF.items() if k != lost}}))
        assert words in refused(lambda: keep_model("toy3d", toy))
    (toy/"models/models.yaml").write_text(yaml.safe_dump({"toy3d": OF | dict(numbers={"conditional": ["nothing"]})}))
    assert "conditional wrote no 'nothing'" in refused(lambda: keep_model("toy3d", toy))
    assert (toy/"models/toy3d/about.json").read_text() == before


def test_a_kept_model_stands_in_for_its_training(toy):
    run(toy, "integrated-cell", "publish", "--config", "config/toy.yaml")
    shutil.rmtree(toy/"results/toy/conditional")
    out, _ = run(toy, "integrated-cell", "chapter", "conditional", "--config", "config/toy.yaml", "--from", "models")
    home = toy/"results/toy/conditional"
    assert {"laid", "metrics.json", "run.json", "notebook.ipynb", "model.safetensors"} <= {p.name for p in home.iterdir()}
    kept = (toy/"book/published/toy/conditional/notebook.ipynb").read_bytes()
    run(toy, "integrated-cell", "publish", "--config", "config/toy.yaml")
    assert (toy/"book/published/toy/conditional/notebook.ipynb").read_bytes() == kept  # what was laid is not kept again
    run(toy, "integrated-cell", "chapter", "conditional", "--config", "config/toy.yaml")
    assert not (home/"laid").exists()
    (home/"checkpoint.safetensors").touch()
    _, err = run(toy, "integrated-cell", "chapter", "conditional", "--config", "config/toy.yaml", "--from", "models", rc=2)
    assert one_sentence(err) and "a training of your own" in err
    (home/"checkpoint.safetensors").unlink()
    _, err = run(toy, "integrated-cell", "chapter", "conditional", "--config", "config/toy.yaml", "--from", "models", "-p", "factor=3", rc=2)
    assert one_sentence(err) and "has factor = 2, not 3" in err and (home/"metrics.json").exists()
    set_config(toy, chapters=["data", "reference", "conditional"], conditional=dict(factor=4))
    said = refused(lambda: lay(read_config(toy/"config/toy.yaml"), "conditional"))
    assert "the kept model of conditional has factor = 2, not 4" in said


def test_a_page_of_an_older_notebook_runs_anew_on_the_kept_model(toy):
    run(toy, "integrated-cell", "publish", "--config", "config/toy.yaml")
    shutil.rmtree(home := toy/"results/toy/conditional")
    write_chapter(toy, "conditional", 'weights = sorted(p.name for p in (Path(results)/"conditional").glob("model*"))\nweights')
    run(toy, "integrated-cell", "chapter", "conditional", "--config", "config/toy.yaml", "--from", "models")
    assert "model.safetensors" in (home/"notebook.ipynb").read_text() and not (home/"laid").exists()
    run(toy, "integrated-cell", "publish", "--config", "config/toy.yaml")
    assert "model.safetensors" in (toy/"book/published/toy/conditional/notebook.ipynb").read_text()


def test_a_trained_folder_is_taken_with_its_prior_and_its_commit(toy):
    home = toy/"results/toy/conditional"
    save(Flow(4, 4, 2, 1, 4), toy/"results/toy/prior")
    parts, source = take(home)
    assert {k: type(m) for k, m in parts.items()} == dict(conditional=Conditional, prior=Flow)
    assert source.model == str(home) and source.commit == json.loads((home/"run.json").read_text())["commit"]
    kept, of_kept = take("toy3d", toy/"models")
    assert of_kept.model == "toy3d" and len(of_kept.weights) == len(source.weights) == 8 != of_kept.weights
    assert "holds conditional, prior; give one with 'cytogan'" in refused(lambda: part_of(parts, source, CytoGan, do="draw treated cells"))
    for name, words in (("toy4d", "there are toy3d"), (toy/"config", "holds no trained model")): assert words in refused(lambda: take(name, toy/"models"))


def test_a_model_is_never_laid_beside_the_page_of_another_training(toy):
    run(toy, "integrated-cell", "publish", "--config", "config/toy.yaml")
    shutil.rmtree(toy/"results/toy/conditional")
    page = toy/"book/published/toy/conditional/run.json"
    write_json(page, json.loads(page.read_text()) | dict(parameters=dict(results="results/toy", factor=3)))
    said = refused(lambda: lay(read_config(toy/"config/toy.yaml"), "conditional"))
    assert "the kept page of conditional has factor = 3, not 2" in said and not (toy/"results/toy/conditional").exists()


@pytest.mark.parametrize("name", kept_table(PROJECT))
def test_every_model_of_the_table_is_kept_and_opens(name):
    kept = open_model(name)
    assert kept.about.licence and kept.about.numbers and set(kept) == set(kept_table(PROJECT)[name]["parts"])


def correlation(a, b):  # mean over cells
    return np.mean([np.corrcoef(p.ravel(), q.ravel())[0, 1] for p, q in zip(a, b)])


def rebuilt(kept, x):  # what both phases make of cells
    return kept["reference"](x[:, CHANNELS_R])[0], kept["conditional"](x)[0]


@pytest.mark.skipif("hela3d" not in names() or not os.environ.get("INTEGRATED_CELL_MIRROR"), reason="no real images here")
def test_hela3d_gives_the_numbers_that_it_says():
    kept, cells = open_model("hela3d"), hela_cells(fetch("hela3d"), test_fraction=.2, validation_fraction=.1)
    rows = np.flatnonzero(cells.table.split == "test")
    x = torch.as_tensor(np.stack([cells[i] for i in rows])).float()
    if x.max() > 1: x = x/255
    x_r = x[:, CHANNELS_R]
    with torch.no_grad(): x_r_hat = kept["reference"](x_r)[0]
    for k, channel in enumerate(("membrane", "dna")):
        found = correlation(x_r[:, k].numpy(), x_r_hat[:, k].numpy())
        assert abs(found - kept.about.numbers[f"reference_correlation_{channel}"]) < 1e-3
    seen, unseen = "conditional_correlation_structure", "integration_correlation_integrated"
    with torch.no_grad(): x_hat = kept["conditional"](x)[0]
    drawn = integrate(kept["conditional"], x_r)[torch.arange(len(rows)), cells.table.y.to_numpy()[rows]]
    for key, answer in ((seen, x_hat[:, 1]), (unseen, drawn)):
        assert abs(correlation(x[:, 1].numpy(), answer.numpy()) - kept.about.numbers[key]) < 2e-3


@pytest.mark.skipif("stem3d" not in names(), reason="no such model here")
def test_stem3d_gives_the_numbers_that_it_says():
    kept = open_model("stem3d")
    said = json.loads((PROJECT/"book/published/truth/data/run.json").read_text())["parameters"]
    table, shape = draw_table(said["n_cells"]), tuple(kept.about.shape)
    held = table[split_by_hash(table.structure, table.cell_id, said["test_fraction"]) == "test"]
    with ThreadPoolExecutor(2) as pool:  # of the cells of the page the test cells alone
        images = [*pool.map(lambda row: image_cell(row.structure, row.stage, row.seed, shape), held.itertuples())]
    x = torch.as_tensor(np.stack(images)).float()/255
    with torch.no_grad(): x_r_hat, x_hat = (torch.cat(y) for y in zip(*(rebuilt(kept, b) for b in x.split(60))))
    found = dict(reference_correlation_membrane=(x[:, 0], x_r_hat[:, 0]), reference_correlation_dna=(x[:, 2], x_r_hat[:, 1]),
                 conditional_correlation_structure=(x[:, 1], x_hat[:, 1]))
    for key, (seen, answer) in found.items():
        assert abs(correlation(seen.numpy(), answer.numpy()) - kept.about.numbers[key]) < 2e-3, key


def rebuilds_as_it_says(kept, x, within):
    (part, model), = kept.items()
    codes = torch.as_tensor(encode_cells(model, x, np.arange(len(x))))
    found = np.median(image_correlation(x/255, sample(model, len(x), z=codes)/255).numpy(), 0)
    assert found == pytest.approx([*kept.about.numbers[f"cytogan_rebuilt_{part}"].values()], abs=within)


@pytest.fixture(scope="module")
def mcf7():
    "The real cells as the published run has them"
    if not os.environ.get("INTEGRATED_CELL_MIRROR"): pytest.skip("no real images here")
    said = json.loads((PROJECT/"book/published/real/screen/run.json").read_text())["parameters"]
    return crop_cells(fetch("bbbc021_cells"), test_fraction=said["test_fraction"], validation_fraction=said["validation_fraction"])


def test_mcf7_rebuilds_cells_as_it_says(mcf7):
    if "mcf7" not in names(): pytest.skip("no such model here")
    rebuilds_as_it_says(open_model("mcf7"), np.stack([mcf7[i] for i in mcf7.rows("test")[::3]]), .01)


def test_flow_matching_of_mcf7_errs_as_at_the_end_of_its_training(mcf7):
    if "mcf7_flow" not in names(): pytest.skip("no such model here")
    ended = pd.read_csv(PROJECT/"models/mcf7_flow/flow/history.csv").validation.dropna().iloc[-1]
    assert watching(mcf7, [0, 1, 2], [])(open_model("mcf7_flow")["flow"]) == pytest.approx(ended, rel=2e-3)


def test_views_of_mcf7_know_turned_cells_again_as_their_page_says(mcf7):
    if "mcf7_views" not in names(): pytest.skip("no such model here")
    page = json.loads((PROJECT/"book/published/real/views/metrics.json").read_text())
    few, kept = np.stack([mcf7[i] for i in mcf7.rows("test")[:page["n_turned"]]]), open_model("mcf7_views")
    for key, part in (("cell", "views"), ("treatment", "views with weak labels")):
        found = known_again(partial(profiles_of, kept[part]), few, page["degrees"]).mean()
        assert found == pytest.approx(kept.about.numbers[f"views_again_{key}"]["value"], abs=.01)


def test_the_model_of_the_screen_rebuilds_new_cells_as_it_says():
    if "screen" not in names(): pytest.skip("no such model here")
    cells = simulate_screen(150, (64, 64), seed=1, test_fraction=0)
    rebuilds_as_it_says(open_model("screen"), np.stack([cells[i] for i in range(len(cells))]), .02)


@pytest.mark.parametrize("name, run", [("yeast", "truth"), ("buddingyeast", "real")])
def test_yeast_draws_greens_as_varied_as_its_page_says(name, run):
    if name not in names(): pytest.skip("no such model here")
    page = json.loads((PROJECT/"book/published"/run/"gan_samples/metrics.json").read_text())
    gan, said = Trained([open_model(name)["star wgan-gp"]]), {g["method"]: g["value"] for g in page["greens"]}
    for p in page["proteins"]:
        found = within(greens_of_reds(gan.pair(p), page["n_reds"], page["n_greens"])/255).mean()
        assert found == pytest.approx(said[f"{p}, star wgan-gp"], rel=.005)
