"The papers' tables as printed agree with themselves, the pages about them name what exists, and the code that reads the manifests leaves them alone"
import inspect
import json
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from integrated_cell.evaluation.classify import recall_table, scores
from integrated_cell.data.manifest import sources
from integrated_cell.evaluation.metrics import inception_score
from integrated_cell.simulation.stem import TABLE_S9

FOLDER = Path(__file__).resolve().parent.parent/"data_manifest"
CLASSES = sorted(TABLE_S9)


@pytest.fixture(scope="module")
def table():
    printed = pd.read_csv(FOLDER/"printed/johnson2017.csv")
    assert list(printed) == ["table", "row", "column", "value"] and not printed.duplicated(["table", "row", "column"]).any()
    return {t: g.pivot(index="row", columns="column", values="value") for t, g in printed.groupby("table")}


def test_s9_adds_up(table):
    s9 = table["S9"].astype(int)
    assert s9.total.to_dict() == TABLE_S9 and (s9.train + s9.test == s9.total).all()
    assert s9.total.sum() == 21967  # the cells of section 3.1


def test_rows_of_s11_are_the_test_cells_of_s9(table):
    s11 = table["S11"].astype(int).loc[CLASSES, CLASSES]
    assert (s11.sum(axis=1) == table["S9"].loc[CLASSES, "test"]).all()


def test_s11_gives_its_recalls_and_accuracy(table):
    s11 = table["S11"].astype(int).loc[CLASSES, CLASSES].to_numpy()
    y, y_hat = np.indices(s11.shape).reshape(2, -1).repeat(s11.ravel(), 1)
    recall, of_all = recall_table(y, y_hat, CLASSES), scores(y, y_hat)
    assert recall.right.loc["myosin IIB"] == 7 and recall.n.loc["myosin IIB"] == 19 and recall.most_often_taken_for["myosin IIB"] == "desmoplakin"
    assert of_all["n"] == 2212 and of_all["accuracy"] == pytest.approx(2140/2212)
    assert of_all["macro_recall"] == pytest.approx((s11.diagonal()/s11.sum(1)).mean()) == pytest.approx(.902, abs=5e-4)


@pytest.mark.parametrize("split, off", [("train", 2e-4), ("test", None)])
def test_inception_scores_of_s10_on_data_stay_at_their_ceiling(table, split, off):
    n, said = table["S9"].loc[CLASSES, split], table["S10"][f"data {split}"]
    certain = np.eye(len(CLASSES))[np.arange(len(CLASSES)).repeat(n.astype(int))]
    top = inception_score(certain, np.asarray(CLASSES).repeat(n.astype(int)))
    assert top[CLASSES].to_numpy() == pytest.approx((n.sum()/n).to_numpy())
    assert inception_score(certain) == pytest.approx(np.exp(-(n/n.sum()*np.log(n/n.sum())).sum()))
    assert said["all classes"] <= inception_score(certain) + .0015
    assert (said[CLASSES] <= top[CLASSES]*1.002).all()  # p(y) is that of the predictions, so a little more is possible
    if off: assert said[CLASSES].to_numpy() == pytest.approx(top[CLASSES].to_numpy(), rel=off)


def test_the_manifests_do_not_see_the_printed_tables():
    assert "printed" not in sources(FOLDER).index and (FOLDER/"printed/README.md").exists()


def test_the_second_paper_s_tables_hold_together():
    t = pd.read_csv(FOLDER/"printed/osokin2017.csv", dtype={"table": str})
    one, two, three = (t[t.table == k].pivot(index="row", columns="column", values="value") for k in "123")
    assert one.shape == (8, 8) and (one.to_numpy().diagonal() < 1).all()  # a protein with itself
    assert one.loc["Arp3", "Fim1"] == one.loc["Arp3"].drop("Arp3").min() and one.loc["Tea1", "Tea4"] == one.loc["Tea1"].drop("Tea1").min()  # and its like
    six = two.drop("all proteins")
    assert (six.real == pd.Series(one.to_numpy().diagonal(), one.index)[six.index]).all()  # Table 2 repeats the diagonal of Table 1
    assert six.mean().sub(two.loc["all proteins"]).abs().max() < .15  # so the last row is a mean
    assert three.error.min() == three.error["star wgan-gp regular"] and three.shape == (10, 2)


def test_the_third_paper_s_numbers_hold_together():
    t = pd.read_csv(FOLDER/"printed/goldsborough2017.csv", dtype={"table": str})
    assert list(t) == ["table", "row", "column", "value", "average", "source", "note"] and not t.duplicated(["table", "row", "column"]).any()
    assert t.source.notna().all() and set(t.column) == {"NSC", "NSCB", "real", "generated", "experts", "fooled"}
    accuracy = t[t.column.isin(["NSC", "NSCB"])]
    assert accuracy.value.between(0, 100).all() and set(accuracy.average) == {"compounds", "treatments"}
    nsc = t[t.column == "NSC"].pivot(index="row", columns="table", values="value")
    assert len(nsc["1"].dropna()) == 7 and len(nsc.poster.dropna()) == 5 and nsc.poster["bigan"] == 70
    twice = nsc.dropna(subset=["1", "poster"])
    assert len(twice) == 4 and (twice["1"] == twice.poster).all()  # the poster repeats Table 1
    cited = nsc.dropna(subset=["1", "published"])
    assert set(cited.index) == {"vae", "CellProfiler", "deep transfer (Pawlowski)", "deep transfer (Ando)"} and (cited["1"] == cited.published).all()
    assert (accuracy.average == "compounds").equals(accuracy.row.str.contains("gan"))  # its own models, nobody else's
    from_treatments = accuracy[(accuracy.value*10 % 10 != 0)].set_index("column").value  # those with a decimal
    for column, n in (("NSC", 103), ("NSCB", 92)): assert np.isclose(np.round(from_treatments[[column]]/100*n)/n*100, from_treatments[[column]], atol=.06).all()
    jury = t[t.table == "jury"].set_index("column").value
    assert jury.to_dict() == dict(real=50, generated=50, experts=3, fooled=30)


def test_the_errata_name_what_exists():
    text = (FOLDER.parent/"book/errata.md").read_text(encoding="utf-8")
    name = r"`([a-z]+\.[a-z0-9]+\.[a-z_0-9]+)`"
    functions = {f: getattr(import_module(f"integrated_cell.{f.rpartition('.')[0]}"), f.rpartition(".")[2]) for f in re.findall(name, text)}
    assert len(functions) > 8
    for name, f in re.findall(rf"`(\w+)` in {name}", text): assert name in inspect.signature(functions[f]).parameters, f"{name} of {f}"
    for name, chapter in re.findall(r"`(\w+)(?: = \S+)?` in \*(\w+)\*", text):
        cells = json.loads((FOLDER.parent/f"nbs/experiments/{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
        said = next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", []))
        assert re.search(rf"^{name} = ", said, re.M), f"{name} of {chapter}"
