"What a chapter may be given, however it is run: by a run's file, the command line, plain papermill, JupyterLab or nbconvert"
import json
import re
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ENV, PROJECT, one_sentence, run, write_chapter

from integrated_cell.chapter import Chapter
from integrated_cell.data.cells import Cells
from integrated_cell.parameters import RANGES, declared, range_of, taken
from integrated_cell.results import BadInput
from integrated_cell.workflow import read_config, read_yaml

BODY = """
from integrated_cell.chapter import Chapter
ch = Chapter("data", results, seed)
ch.close("factor=3", factor=factor, flip=flip, n_cells=n_cells, lr=lr)"""
PARAMETERS = 'factor = 2\nflip = False  # mirror\nn_cells = 40\nlr = .1\ntest_fraction = .1\nshape = ""'


@pytest.fixture
def toy(study):
    "A study whose chapter 'data' begins and ends as real ones do"
    path = write_chapter(study, "data", BODY, PARAMETERS)
    nb = nbformat.read(path, 4)
    nb.cells.pop()
    nbformat.write(nb, path)
    (study/"config/toy.yaml").write_text("chapters: [data]\nall: {seed: 1}\ndata: {lr: 1e-4, flip: true}\n")
    return study


def papermill(root, *more, cwd="", rc=0):
    up = "../"*len(cwd.split("/")) if cwd else ""
    return run(root/cwd, "papermill", f"{up}nbs/experiments/data.ipynb", root/"out.ipynb", "--log-level=ERROR", "--no-progress-bar",
               "-p", "results", "results/toy", *more, rc=rc)


def signs(root):
    out = root/"results/toy/data"
    return {p.name for p in out.iterdir()} - {"notebook.ipynb"}, json.loads((out/"run.json").read_text())["parameters"]


@pytest.mark.parametrize("cwd", ["", "nbs/experiments"])
def test_a_chapter_run_by_plain_papermill_is_a_finished_chapter(toy, cwd):
    run(toy, "integrated-cell", "chapter", "data", "--config", "config/toy.yaml")
    ours, values = signs(toy)
    number = json.loads((toy/"results/toy/data/metrics.json").read_text())
    assert "run.json" in ours and len([s for s in ours if s.startswith("finished-")]) == 1 and ".lock" not in ours
    for p in (toy/"results/toy/data").iterdir(): p.unlink()
    papermill(toy, "-p", "seed", 1, "-p", "flip", "True", "-r", "lr", "1e-4", cwd=cwd)
    assert signs(toy) == (ours, values)
    again = json.loads((toy/"results/toy/data/metrics.json").read_text())
    assert again | {"seconds": 0} == number | {"seconds": 0} and again["lr"] == 1e-4 and again["flip"] is True
    assert "Nothing to be done" in "".join(run(toy, "snakemake", "-n", "--cores", 1, "--config", "run=toy", "--", "results/toy/data/metrics.json"))
    papermill(toy, "-p", "n_cells", 30, cwd=cwd)
    assert signs(toy)[1] == {"results": "results/toy", "n_cells": 30, "seed": 0, "flip": False, "lr": .1}, "other values, another sign"
    assert signs(toy)[0] != ours


@pytest.mark.parametrize("more, says", [
    (["-p", "flip", "false"], "chapter data: flip is 'false', not True or False"),
    (["-r", "n_cells", "30"], "chapter data: n_cells is '30', not a whole number"),
    (["-p", "test_fraction", "10"], "chapter data: test_fraction is 10, not a number in [0, 1)"),
    (["-p", "shape", "a,b"], "chapter data: shape is 'a,b', not whole numbers in [1, inf) with commas between"),
    (["-p", "no_such", "3"], "chapter data: unknown parameter 'no_such'; it knows results, seed, factor"),
])
def test_plain_papermill_is_checked_as_a_file_is(toy, more, says):
    out, err = papermill(toy, *more, rc=1)
    assert f"BadInput: {says}" in re.sub(r"\x1b\[[0-9;]*m", "", out + err)
    assert not (toy/"results/toy/data/metrics.json").exists()


def test_nbconvert_finds_the_project(toy):
    run(toy, "jupyter", "nbconvert", "--to", "notebook", "--execute", "--output-dir", toy, "nbs/experiments/data.ipynb")
    assert signs(toy)[1]["flip"] is False and not (toy/"nbs/experiments/results").exists()


def test_two_runs_of_a_chapter(toy):
    "Whoever began is at work; the second is told, from the command line and from papermill"
    held = f"from integrated_cell.results import alone\nwith alone({str(toy/'results/toy/data')!r}): print(1, flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", held], env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdout.readline()
    out, err = run(toy, "integrated-cell", "chapter", "data", "--config", "config/toy.yaml", rc=2)
    assert one_sentence(err) and f"process {other.pid} is at work there" in err
    out, err = papermill(toy, rc=1)
    assert f"process {other.pid} is at work there" in out + err
    other.kill(); other.wait()
    run(toy, "integrated-cell", "chapter", "data", "--config", "config/toy.yaml")


@pytest.mark.parametrize("more, says", [
    ("data: {test_fraction: 10}", "test_fraction is 10"), ("data: {lr: .nan}", "lr is nan"), ("data: {lr: -.inf}", "lr is -inf"),
    ("data: {flip: 'false'}", "flip is 'false'"), ("data: {n_cells: '30'}", "n_cells is '30'"), ("data: {n_cells: 3.5}", "n_cells is 3.5"),
    ("data: {n_cells: true}", "n_cells is True"), ("data: {shape: 'a,b'}", "shape is 'a,b'"), ("data: {shape: '0,4'}", "shape is '0,4'"),
    ("data: {shape: 16}", "shape is 16, not a text"), ("data: {lr: [1]}", "lr is [1]"), ("data: {lr: null}", "lr is None"), ("all: {seed: -1}", "seed is -1"),
    ("data: {lr: 1}\ndata: {lr: 2}", "'data' twice"), ("data: {lr: 1, lr: 2}", "near line 2 ('lr' twice"),
    ("data: !!python/object/apply:os.system ['false']", "not valid YAML near line 2"), ("data: {[1]: 2}", "not valid YAML"),
    ("data: " + "["*3000, "not valid YAML"), ("data: [lr]", "not a list of 'key: value' lines"), ("1: {lr: 1}", "unknown block '1'"),
    ("data: {1: 2}", "unknown parameter '1'"), ("data: {lr: 1e400}", "lr is '1e400'"),
])
def test_a_value_or_a_file_that_cannot_be_is_one_sentence(toy, more, says):
    (toy/"config/bad.yaml").write_text(f"chapters: [data]\n{more}\n")
    with pytest.raises(BadInput) as e: read_config(toy/"config/bad.yaml")
    assert says in str(e.value) and "bad.yaml" in str(e.value) and "\n" not in str(e.value) and len(str(e.value)) < 500


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "utf-32", "cp1252"])
def test_a_config_of_another_encoding(toy, encoding):
    (toy/"config/bad.yaml").write_bytes("# größe\nchapters: [data]\n".encode(encoding))
    out, err = run(toy, "integrated-cell", "chapter", "data", "--config", "config/bad.yaml", rc=2)
    assert one_sentence(err) and "bad.yaml: not in UTF-8" in err and "save it as UTF-8" in err
    (toy/"config/bad.yaml").write_bytes("# größe\nchapters: [data]\n".encode("utf-8-sig"))
    assert read_config(toy/"config/bad.yaml")["chapters"] == ["data"]


def test_merged_keys_and_many_names_for_one_thing_are_no_mistake(tmp_path):
    (tmp_path/"a.yaml").write_text("a: &x {n: 1}\nb: {<<: *x, m: 2}\n")
    assert read_yaml(tmp_path/"a.yaml")["b"] == {"n": 1, "m": 2}


def test_every_default_and_every_range_is_one():
    "A default that its own table refuses would be refused nowhere; a name that no notebook has is a mistake"
    known = {}
    for notebook in (PROJECT/"nbs/experiments").glob("*.ipynb"): known |= declared(notebook)
    named = [n for names in RANGES for n in names.split()]
    assert len(named) == len(set(named)) and set(named) <= set(known)
    for interval in RANGES.values(): assert re.search(r"[\[(]-?[\d.inf]+, [\d.inf]+[\])]$|^one of \S+(, \S+)+$", interval)
    for name, default in known.items(): assert "one of" not in range_of(name) or taken(name, default, default, "") == default
    assert taken("batch_size", 0, 0, "") == 0, "where 0 is the default it means something"
    with pytest.raises(BadInput): taken("batch_size", 0, 30, "")


# What a training needs is asked before it starts

@pytest.mark.parametrize("n, structure, fraction, says", [
    (20, "a", .3, "tells at least 2 classes apart and there is only 'a'"), (20, "ab", 0, "needs at least 2 held-out cells and there are 0"),
    (20, "ab", .1, None), (20, [1, 2], .1, None)])
def test_a_training_that_could_not_be_judged_is_not_begun(tmp_path, n, structure, fraction, says):
    table = pd.DataFrame({"cell_id": [f"c{i}" for i in range(n)], "structure": list(structure)*(n//len(structure))})
    Cells.create(tmp_path/"data/cells", np.zeros((n, 3, 4, 6, 8), np.uint8), table, None, ("membrane", "structure", "dna"), {}, test_fraction=fraction)
    ch = Chapter("toy", tmp_path)
    if says is None: assert len(ch.cells(held_out=2, classes=2)) == n and json.dumps(ch.cells().classes)
    else:
        with pytest.raises(BadInput) as e: ch.cells(held_out=2, classes=2)
        assert says in str(e.value) and "the chapter 'toy'" in str(e.value)


@pytest.mark.parametrize("chapter", ["reference", "conditional", "classification", "judge"])
def test_chapters_that_train_ask_first(chapter):
    code = [c.source for c in nbformat.read(PROJECT/f"nbs/experiments/{chapter}.ipynb", 4).cells if c.cell_type == "code"]
    first = next(i for i, c in enumerate(code) if any(f in c for f in ("train.fit(", "fit_classifier(", "opponents(features")))
    assert any("cells(held_out=2" in c for c in code[:first])
