"One command measures a device: in which order, for how long, and how it goes on; the measurements are fakes that take milliseconds"
import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ENV, PROJECT

from integrated_cell.aims import benchmarks, judged, read_aims
from integrated_cell.data.cells import Cells
from integrated_cell.simulation.stem import simulate_cells


def script(name):
    spec = importlib.util.spec_from_file_location(name, PROJECT/f"bench/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


measure = script("measure")
FAKE = """
import json, os, pathlib, sys, time
name = sys.argv[1]
if name == "broken" and not pathlib.Path("mended").exists(): sys.exit("no such thing")
with open("began", "a") as f: print(name, file=f)
out = pathlib.Path("bench/results", os.environ["BENCH_CARD"])
out.mkdir(parents=True, exist_ok=True)
(out/f"{name}.json").write_text(json.dumps(dict(question="?", device="A GPU", rows=[dict(seconds=.5)])))
if name == "slow": time.sleep(float(pathlib.Path("slow").read_text()))
"""
AIMS = """chapter,question,what,key,on,sense,aim,unit,script,command,where,column,take,times,beside,beside_key
costs,Q,of any,c,any,≤,1,s,last,python bench/fake.py last,,seconds,max,,,
costs,Q,of a processor,p,cpu,≤,1,s,processor,python bench/fake.py processor,,seconds,max,,,
costs,Q,of a card,a,gpu,≤,1,s,slow,python bench/fake.py slow,,seconds,max,,,
costs,Q,of a card too,b,gpu,≤,1,s,slow,python bench/fake.py slow,,seconds,max,,,
costs,Q,next of a card,d,gpu,≥,2,s,broken,python bench/fake.py broken,,seconds,max,,,
"""


@pytest.fixture
def place(tmp_path):
    "A folder with aims and a script whose every call is a measurement"
    (tmp_path/"bench").mkdir()
    (tmp_path/"bench/fake.py").write_text(FAKE)
    (tmp_path/"bench/aims.csv").write_text(AIMS)
    (tmp_path/"slow").write_text("0")
    return tmp_path


def measured(place, minutes=1., device="gpu", machine="a machine"):
    "How every command stands after a call, and which were begun in it"
    (place/"began").unlink(missing_ok=True)
    asked = measure.asked_here(device, place/"bench/aims.csv", place/"bench/none")
    done = measure.measure(asked, place/"bench/results/card", minutes, place, os.environ | {"BENCH_CARD": "card"}, machine)
    began = (place/"began").read_text().split() if (place/"began").exists() else []
    return {c.split()[-1]: row["state"] for c, row in done.items()}, began


def test_what_only_such_a_device_can_answer_comes_first(place):
    (place/"mended").touch()
    state, began = measured(place)
    assert began == ["slow", "broken", "last"] and set(state.values()) == {"finished"}
    assert measured(place) == (state, [])  # nothing is left
    assert measured(place, device="cpu")[1] == ["processor"]  # what is asked of any stands already
    assert measured(place, machine="another of that name")[1] == began  # what this one did not measure
    asked = measure.asked_here("gpu")
    assert "training_step" in asked[0] and "python bench/growth.py" in asked and not any("measure" in c or "record" in c for c in asked)


def test_the_time_stops_a_measurement_and_what_was_not_tried_comes_next(place):
    (place/"mended").touch()
    (place/"slow").write_text("60")
    state, began = measured(place, 6/60)
    assert (state, began) == ({"slow": "stopped"}, ["slow"])
    assert (place/"bench/results/card/slow.json").exists()  # what it had written by then
    state, began = measured(place, 5.9/60)  # others first; and less time than was not enough is not tried
    assert began == ["broken", "last"] and state == {"slow": "stopped", "broken": "finished", "last": "finished"}
    (place/"slow").write_text("0")
    assert measured(place) == (dict.fromkeys(state, "finished"), ["slow"])
    assert measured(place, 0)[1] == []


def test_what_fails_holds_up_nothing_and_is_tried_again(place, capfd):
    state, began = measured(place)
    assert state == {"slow": "finished", "broken": "failed", "last": "finished"} and began == ["slow", "last"]
    measure.tell(measure.asked_here("gpu", place/"bench/aims.csv", place/"bench/none"), measure.read_done(place/"bench/results/card/commands.csv", "a machine"))
    assert "2 of 3 are measured; call again to go on" in capfd.readouterr().out
    (place/"mended").touch()
    assert measured(place) == (dict.fromkeys(state, "finished"), ["broken"])


def test_the_chapter_says_not_measured_only_where_nobody_did(place):
    aims = read_aims(place/"bench/aims.csv", "costs")
    measured(place)
    met = judged(aims, benchmarks(place/"bench/results")[1])
    state = {(r.key, r.folder): r.state for r in met.itertuples()}
    assert state == {("p", "cpu"): "not measured", ("d", "gpu"): "not measured", ("a", "card"): "reached", ("b", "card"): "reached", ("c", "card"): "reached"}
    shutil.copytree(place/"bench/results/card", place/"bench/results/other")
    for name in ("slow", "last"): (place/f"bench/results/card/{name}.json").unlink()
    (place/"mended").touch()
    measured(place)
    met = judged(aims, benchmarks(place/"bench/results")[1])  # one card has d, the other all else
    assert sorted(zip(met.key, met.folder, met.state)) == [
        ("a", "other", "reached"), ("b", "other", "reached"), ("c", "other", "reached"), ("d", "card", "missed"), ("p", "cpu", "not measured")]
    (place/"bench/results/test").mkdir()
    said = dict(device="CPU, a stand-in", rows=[dict(seconds=.5)])
    for name in ("processor", "slow"): (place/f"bench/results/test/{name}.json").write_text(json.dumps(said))
    met = judged(aims, benchmarks(place/"bench/results")[1])  # a stand-in answers for a processor and for no card
    assert {(r.key, r.state) for r in met.itertuples() if r.folder == "test"} == {("p", "reached")}


def test_a_gpu_that_is_not_there_is_one_sentence():
    env = ENV | {"CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run([sys.executable, PROJECT/"bench/measure.py", "--device", "gpu", "--minutes", "0"], env=env, capture_output=True, text=True)
    assert done.returncode and done.stderr.startswith("DEVICE=gpu: PyTorch sees no GPU here") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("asked, said", [
    ("measure --minutes -3", "invalid minutes value: '-3'"), ("measure --aims nowhere.csv", "nowhere.csv"),
    ("training_step --sizes 64,96", "'64,96' is no list of shape:width:batch"), ("scale --parts nothing", "there is no part 'nothing'"),
    ("scale --rows 0", "'0' is no whole number above 0"), ("waiting --repeats two", "'two' is no whole number above 0")])
def test_what_a_benchmark_is_asked_wrongly_is_a_sentence(asked, said):
    script, *rest = asked.split()
    done = subprocess.run([sys.executable, PROJECT/f"bench/{script}.py", *rest], env=ENV, capture_output=True, text=True)
    assert done.returncode and said in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_what_takes_longest_is_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(PROJECT/"bench")
    making = script("making")
    said = "= slowest 3 durations =\n12.30s call     tests/test_a.py::test_b[x-1]\n0.50s setup    tests/test_a.py::test_c\n4 passed in 13.10s\n"
    assert making.tests(said) == {"tests/test_a.py::test_b[x-1]": 12.3, "tests/test_a.py::test_c (setup)": .5}
    for name, said in (("data", {"seconds": 3.}), ("gans", {"minutes": 2})):
        (tmp_path/f"results/quick/{name}").mkdir(parents=True)
        (tmp_path/f"results/quick/{name}/metrics.json").write_text(json.dumps(said))
    assert making.chapters(tmp_path) == {"data": 3.}


def test_the_store_whose_memory_is_measured_opens(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(PROJECT/"bench")
    some = simulate_cells(64, (4, 6, 8))
    Cells.create(tmp_path/"warm", some, some.table, some.voxel_um, some.channels, {})
    script("feeding").repeated(tmp_path/"cells", tmp_path/"warm", some.table, 130)
    cells = Cells.open(tmp_path/"cells")
    assert len(cells) == 130 and (cells[129] == cells[1]).all()
    said = subprocess.run([sys.executable, PROJECT/"bench/feeding.py", "--memory-of", tmp_path/"cells", "--feed", "2"],
                          env=ENV, capture_output=True, text=True, check=True).stdout
    assert json.loads(said.splitlines()[-1])["cells"] == 130


def test_the_images_whose_preparation_is_timed_are_prepared(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(PROJECT/"bench")
    prepare = script("prepare")
    files = prepare.write_images(tmp_path, 3, (16, 24, 32), (.5, .4, .4))
    for n in (2, 3): assert (prepare.spent(files, n, 1, (16, 24, 32), 1., tmp_path) > 0).all()


def test_the_book_that_has_nothing_to_do_has_nothing_to_do(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(PROJECT/"bench")
    script("start").finished(tmp_path/"project", "quick")
    dry = ["snakemake", "-n", "all", "--cores", "1", "--config", "run=quick"]
    said = subprocess.run(dry, cwd=tmp_path/"project", env=ENV, capture_output=True, text=True, check=True)
    assert "Nothing to be done" in said.stdout + said.stderr
