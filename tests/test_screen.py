"The simulated compound screen as an instrument: same bytes, a plan like BBBC021's, effects that are there and known"
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy import ndimage

from integrated_cell.data.cells import Cells
from integrated_cell.data.sites import COLUMNS
from integrated_cell.results import BadInput
from integrated_cell.simulation.mcf7 import TRAITS
from integrated_cell.simulation.screen import (
    MECHANISMS, draw_plates, draw_screen, screen_truth, simulate_field, simulate_screen,
)


def test_a_cell_depends_on_the_seed_and_its_number_alone(tmp_path):
    a, b = simulate_screen(20, (48, 48), seed=3), simulate_screen(30, (48, 48), seed=3, path=tmp_path/"cells")
    assert np.array_equal(a.images, b.images[:20]) and a.channels == ("dna", "tubulin", "actin")
    assert a.images.shape == (20, 3, 48, 48)
    same = [c for c in a.table if c not in ("split", "y")]
    assert a.table[same].equals(b.table[same][:20])
    assert np.array_equal(screen_truth(Cells.open(tmp_path/"cells"))[:20], screen_truth(a))
    other = simulate_screen(20, (48, 48), seed=4)
    assert not np.array_equal(a.images, other.images) and not np.array_equal(screen_truth(a), screen_truth(other))


def test_any_shape_shows_the_same_cells():
    small, large, wide = (simulate_screen(24, shape, seed=5) for shape in ((32, 32), (96, 96), (48, 64)))
    assert screen_truth(small).tolist() == screen_truth(large).tolist() and small.voxel_um == (1., 1.)
    assert wide.shape == (48, 64)
    down = large.images.reshape(24, 3, 32, 3, 32, 3).mean((3, 5))
    agree = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(down[:, 0], small.images[:, 0].astype(float))]
    assert np.median(agree) > .6


def test_every_treatment_comes_equally_often_and_a_seventh_is_untreated():
    table = draw_screen(254, seed=1)
    dmso = table["compound"] == "DMSO"
    assert abs(dmso.mean() - .15) < .01 and (table[dmso].moa == "DMSO").all() and (table[dmso].concentration == 0).all()
    assert (table[~dmso].groupby(["compound", "concentration"]).size() == 2).all() and table[~dmso].moa.nunique() == 12
    assert (table.structure == table.moa).all() and sorted(MECHANISMS) == sorted(table[~dmso].moa.unique())
    assert sum(c.startswith("true_") for c in table) == len(TRAITS) == 12


@pytest.mark.parametrize("n_compounds, n_doses, n_replicates", [(1, 1, 1), (2, 8, 2), (6, 4, 3), (3, 11, 1)])
def test_the_plan_puts_each_treatment_into_one_well_of_each_replicate_plate(n_compounds, n_doses, n_replicates):
    plan = draw_plates(7, n_compounds, n_doses, n_replicates)
    treated = plan[plan.moa != "DMSO"]
    assert len(treated) == 12*n_compounds*n_doses*n_replicates and not plan.duplicated(["plate", "well"]).any()
    wells = treated.groupby(["compound", "concentration"])
    assert wells.ngroups == 12*n_compounds*n_doses and (wells.plate.nunique() == n_replicates).all()
    assert (wells.batch.nunique() == 1).all()
    assert set(plan[plan.moa == "DMSO"].plate) == set(plan.plate)


def test_compounds_of_a_mechanism_share_a_direction_and_doses_go_further_along_it():
    t = draw_screen(2540, seed=2)
    shift = t[t.moa != "DMSO"].groupby(["moa", "compound", "concentration"])[[f"true_{name}" for name in TRAITS]].mean()
    size = np.linalg.norm(shift, axis=1)
    grows = [np.all(np.diff(g.to_numpy()) > -.3) for _, g in shift.assign(size=size)["size"].groupby("compound")]
    assert np.mean(grows) > .9
    unit, moa = shift.to_numpy()/size[:, None], shift.index.get_level_values(0).to_numpy()
    like, other = unit @ unit.T, shift.index.get_level_values(1).to_numpy()
    apart = other[:, None] != other
    assert like[apart & (moa[:, None] == moa)].mean() > like[apart & (moa[:, None] != moa)].mean() + .4


def test_a_field_has_the_cells_that_were_asked_for_and_its_background_is_dark():
    plan = draw_plates(0)
    dose = plan.concentration[plan["compound"] == "STA-1"].max()
    field, labels = simulate_field(20, (200, 260), "STA-1", dose, seed=1)
    assert field.shape == (3, 200, 260) and field.dtype == np.uint16 and field.max() < 4096 and labels.dtype == np.int32
    assert len(np.unique(labels)) == 21 and all(ndimage.label(labels == k)[1] < 4 for k in range(1, 21))
    for x in field: assert np.median(x[labels == 0]) < np.median(x[labels > 0]) and x[labels == 0].std() > 1
    again, _ = simulate_field(20, (200, 260), "STA-1", dose, seed=1)
    assert np.array_equal(field, again) and not np.array_equal(field, simulate_field(20, (200, 260), seed=1)[0])


def strangers():
    "Four cells of two classes that nobody simulated"
    table = dict(cell_id=list("abcd"), structure=list("xxyy"))
    return Cells.create(None, np.zeros((4, 3, 16, 16), np.uint8), table, None, ("dna", "tubulin", "actin"), {}, .5)


@pytest.mark.parametrize("call, says", [
    (lambda: simulate_screen(0), "cannot simulate 0 cells"),
    (lambda: simulate_screen(10, (4, 96, 96)), "two dimensions"),
    (lambda: simulate_screen(10, (8, 8)), "at least 16 pixels"),
    (lambda: draw_screen(0), "cannot simulate 0 cells"),
    (lambda: draw_plates(0, 3, 99), "at most 11"),
    (lambda: draw_plates(0, 0), "at least one"),
    (lambda: simulate_field(5, compound="taxol"), "there is no compound 'taxol'"),
    (lambda: simulate_field(5, compound="STA-0"), "there is no compound 'STA-0'"),
    (lambda: simulate_field(5, compound="STA-1", concentration=7.), "choose from"),
    (lambda: simulate_field(500), "do not fit"),
    (lambda: screen_truth(strangers()), "not simulated")])
def test_bad_input_is_told_in_one_sentence(call, says):
    with pytest.raises(BadInput, match=says): call()


@pytest.mark.parametrize("compound", ["STA-1", "DMSO"])
def test_the_chapter_without_dmso_or_with_nothing_else(tmp_path, compound):
    dose, rows = 30.*(compound == "STA-1"), []
    for i, plate in enumerate(("P1", "P2")):
        (tmp_path/"mine"/plate).mkdir(parents=True)
        files = dict(dna="a_w1.tif", tubulin="a_w2.tif", actin="a_w4.tif")
        given = dict(replicate=i, compound=compound, concentration=dose)
        rows.append(dict(files, folder=plate, plate=plate, well="B02", **given))
        field, _ = simulate_field(10, (192, 224), compound, dose, seed=i)
        for name, x in zip(files.values(), field): tifffile.imwrite(tmp_path/"mine"/plate/name, x)
    images = pd.DataFrame(rows).rename(columns={v: k for k, v in COLUMNS.items()})
    images.to_csv(tmp_path/"mine/BBBC021_v1_image.csv", index=False)
    moas = pd.DataFrame([dict(compound=compound, concentration=dose, moa=compound)])
    moas.to_csv(tmp_path/"mine/BBBC021_v1_moa.csv", index=False)
    space, names = {}, dict(results=str(tmp_path), source="bbbc021", folder=str(tmp_path/"mine"))
    chapter = json.loads((Path(__file__).parents[1]/"nbs/experiments/screen.ipynb").read_text())
    for cell in (c for c in chapter["cells"] if c["cell_type"] == "code"):
        exec("".join(cell["source"]), space)
        if "parameters" in cell["metadata"].get("tags", []): space |= names
    metrics = json.loads((tmp_path/"screen/metrics.json").read_text())
    assert (metrics["brightest_over_dimmest_plate"] is None) == (compound != "DMSO")
    assert metrics["shown"] == compound and metrics["nsc"] is None
    assert metrics["hand_made"] == metrics["hand_made_verdict"] == metrics["room"] == "not in this run"
