"What runs again after a change, and what stops a run with one sentence"
import json
import re
import subprocess
from functools import partial

import nbformat
import pytest
from conftest import ENV, one_sentence, run, set_config, write_chapter

from integrated_cell import workflow
from integrated_cell.training.progress import telling

LAST = "results/toy/classification/metrics.json"
ALL = ["data", "reference", "conditional", "classification"]


def planned(root):
    "The chapters that Snakemake would run now"
    out, err = run(root, "snakemake", "-n", "--cores", 2, "--config", "run=toy", "--", LAST)
    return [r for r in re.findall(r"^(?:local)?rule (\w+):", out + err, re.M)]


def everything(root):
    "Each file of a run and when it was written"
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in (root/"results").rglob("*")}


def execute(root):
    run(root, "snakemake", "--quiet", "all", "--cores", 2, "--config", "run=toy", "--", LAST)


def test_two_trainings_at_once_share_the_cores_but_not_a_gpu(study):
    out, err = run(study, "snakemake", "-n", "--cores", 6, "--config", "run=toy", "--", LAST)
    threads = {of.split("\n")[0].rstrip(":"): re.findall(r"threads: (\d+)", of) for of in re.split(r"\nrule ", out + err)[1:]}
    each = "6" if workflow.gpu() else "3"
    assert (threads["reference"], threads["conditional"], threads["classification"]) == ([each], [each], [])


def test_only_what_changed_and_what_follows_runs_again(study):
    assert planned(study) == ALL
    execute(study)
    assert planned(study) == []
    kept = json.loads((study/LAST).read_text())
    assert kept == {"factor": 2, "seed": 0}
    # a parameter of one chapter
    set_config(study, chapters=ALL, conditional={"factor": 3})
    assert planned(study) == ["conditional", "classification"]
    execute(study)
    assert planned(study) == [] and json.loads((study/"results/toy/conditional/metrics.json").read_text())["factor"] == 3
    # a chapter run by hand with another value, then as the config says
    run(study, "integrated-cell", "chapter", "conditional", "--config", "config/toy.yaml", "-p", "factor=9")
    before = everything(study)
    assert planned(study) == ["conditional", "classification"]
    assert everything(study) == before  # a dry run changes nothing
    execute(study)
    assert planned(study) == [] and json.loads((study/"results/toy/conditional/metrics.json").read_text())["factor"] == 3
    # by hand as another config says, which is then taken back: what Snakemake saw last does not matter
    set_config(study, chapters=ALL, conditional={"factor": 4})
    run(study, "integrated-cell", "chapter", "conditional", "--config", "config/toy.yaml")
    set_config(study, chapters=ALL, conditional={"factor": 3})
    assert planned(study) == ["conditional", "classification"]
    execute(study)
    # a notebook touched, then changed
    (study/"nbs/experiments/reference.ipynb").touch()
    assert planned(study) == []
    write_chapter(study, "reference", "factor + 1")
    assert planned(study) == ["reference", "conditional", "classification"]
    # what every chapter is given
    set_config(study, chapters=ALL, all={"seed": 7}, conditional={"factor": 3})
    assert set(planned(study)) == set(ALL)


def test_a_finished_chapter_runs_again_when_asked(study):
    execute(study)
    out, err = run(study, "integrated-cell", "again", "conditional", "--config", "config/toy.yaml")
    assert out.strip() == "to be run again: conditional, classification"
    assert planned(study) == ["conditional", "classification"]
    execute(study)
    assert planned(study) == []
    out, err = run(study, "integrated-cell", "again", "gallery", "--config", "config/toy.yaml", rc=2)
    assert one_sentence(err) and "no chapter 'gallery' in this run" in err


def prose(root, chapter):
    nb = nbformat.read(root/f"results/toy/{chapter}/notebook.ipynb", 4)
    return "\n".join(c.source for c in nb.cells if c.cell_type == "markdown")


def test_the_executed_notebook_has_its_numbers(study):
    write_chapter(study, "reference", "factor", text="Twice {{ data_factor }} and {{ gans_n? }}.")
    execute(study)
    assert "the factor 2." in prose(study, "data") and "Twice 2 and not in this run." in prose(study, "reference")


@pytest.mark.parametrize("name", ["reference_faktor", "reference_faktor?", "classification_factor", "gans_n", "nothing_n?"])
def test_a_number_that_is_not_there_stops_the_chapter(study, name):
    "Misspelt; of a chapter that does not come before this one; of no chapter of this run, without a question mark"
    write_chapter(study, "reference", "factor", text=f"So many: {{{{ {name} }}}}.")
    run(study, "integrated-cell", "chapter", "data", "--config", "config/toy.yaml")
    out, err = run(study, "integrated-cell", "chapter", "reference", "--config", "config/toy.yaml", rc=2)
    said = err.strip().splitlines()[-1]
    assert f"no chapter wrote a number '{name.strip('?')}'" in said and "Traceback" not in err
    assert not list((study/"results/toy/reference").glob("finished-*"))


@pytest.mark.parametrize("said, words", [
    ({"chapters": ALL, "conditional": {"facto": 3}}, ["unknown parameter 'facto'", "results, seed, factor"]),
    ({"chapters": ALL, "conditionl": {"factor": 3}}, ["unknown block 'conditionl'", "data, reference"]),
    ({"chapters": ALL, "all": {"epochs": 3}}, ["unknown parameter 'epochs'", "'all'"]),
    ({"chapters": ALL, "data": {"factor": "many"}}, ["factor", "'many'"]),
    ({"chapters": ["data", "dta"]}, ["unknown chapter 'dta'"]),
    ({"chapters": ["data", "classification"]}, ["'classification' follows from 'conditional'"]),
    ({"data": {}}, ["no list 'chapters'"]),
])
def test_a_bad_config_stops_with_one_sentence(study, said, words):
    set_config(study, **said)
    out, err = run(study, "snakemake", "--quiet", "all", "--cores", 2, "--config", "run=toy", rc=2)
    assert one_sentence(err) and all(w in err for w in words), err
    assert not (study/"results").exists()


def test_an_unknown_config_names_those_that_exist(study):
    out, err = run(study, "integrated-cell", "chapter", "data", "--config", "config/nothing.yaml", rc=2)
    assert one_sentence(err) and "toy" in err


def test_a_parameter_on_the_command_line(study):
    run(study, "integrated-cell", "chapter", "data", "--config", "config/toy.yaml", "-p", "factor=5")
    assert json.loads((study/"results/toy/data/metrics.json").read_text())["factor"] == 5
    assert json.loads((study/"results/toy/data/run.json").read_text())["parameters"] == {"results": "results/toy", "factor": 5}
    before = (study/"results/toy/data/notebook.ipynb").read_bytes()
    out, err = run(study, "integrated-cell", "chapter", "data", "--config", "config/toy.yaml", "-p", "epochs=5", rc=2)
    assert planned(study) == ALL  # as the config says again: what a command line changed does not stay
    assert one_sentence(err) and "unknown parameter 'epochs'" in err and (study/"results/toy/data/notebook.ipynb").read_bytes() == before


@pytest.mark.parametrize("body, words", [
    ('raise BadInput("a.tif: every voxel is 7; give another image")', ["a.tif: every voxel is 7"]),
    ("1/0", ["chapter reference failed in code cell 4: ZeroDivisionError", "results/toy/reference/notebook.ipynb"]),
    ("import os; os._exit(9)", ["chapter reference stopped", "results/toy/reference/notebook.ipynb"]),
])
def test_a_failed_chapter_says_why_and_keeps_its_notebook(study, body, words):
    write_chapter(study, "reference", body)
    out, err = run(study, "integrated-cell", "chapter", "reference", "--config", "config/toy.yaml", rc=2)
    said = err.strip().splitlines()[-1]
    assert all(w in said for w in words) and "Traceback" not in err, err
    if body == "1/0": run(study, "snakemake", "--quiet", "all", "--cores", 2, "--config", "run=toy", "--", LAST, rc=1)
    assert (study/"results/toy/reference/notebook.ipynb").exists() and not (study/"results/toy/reference/metrics.json").exists()


def test_a_notebook_that_lost_its_tag_is_refused(study):
    path = study/"nbs/experiments/data.ipynb"
    nb = nbformat.read(path, 4)
    for c in nb.cells: c.metadata.pop("tags", None)
    nbformat.write(nb, path)
    out, err = run(study, "integrated-cell", "chapter", "data", "--config", "config/toy.yaml", rc=2)
    assert one_sentence(err) and "0 cells carry the tag 'parameters'" in err


def test_every_real_config_fits_the_notebooks():
    from conftest import PROJECT
    from integrated_cell.parameters import declared
    from integrated_cell.workflow import read_config
    for notebook in (PROJECT/"nbs/experiments").glob("*.ipynb"): assert list(declared(notebook))[:2] == ["results", "seed"], notebook
    for config in (PROJECT/"config").glob("*.yaml"): assert read_config(config)["chapters"][0] == "data"


@pytest.mark.parametrize("said, found", [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_leave_their_core_to_others(study, said, found):
    "unless the user has said otherwise"
    write_chapter(study, "data", 'import os\nfactor = os.environ["OMP_WAIT_POLICY"]')
    env = {k: v for k, v in ENV.items() if k != "OMP_WAIT_POLICY"} | ({"OMP_WAIT_POLICY": said} if said else {})
    subprocess.run(["integrated-cell", "chapter", "data", "--config", "config/toy.yaml"], cwd=study, env=env, check=True, capture_output=True)
    assert json.loads((study/"results/toy/data/metrics.json").read_text())["factor"] == found


def test_a_training_shows_itself(study, monkeypatch, capsys):
    "on stderr of the command that runs its chapter, though the notebook's own output is not seen"
    monkeypatch.setattr(workflow, "telling", partial(telling, every_s=.1))
    said = {"epoch": 3, "epochs": 12, "seconds_left": 840, "losses": {"loss_x": .25, "validation": .5}}
    write_chapter(study, "data", f"""
import time
write_json(Path(results)/"data"/"star"/"progress.json", {said})
time.sleep(1.5)
(Path(results)/"data"/"star"/"progress.json").unlink()""")
    workflow.run_chapter("data", study/"config/toy.yaml")
    assert capsys.readouterr().err.count("data: star, epoch 3 of 12, loss_x 0.25, validation 0.5, 14 min left") == 1, "said once while it stands"
