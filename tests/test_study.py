"A study in a folder of its own: begun, looked at on one page, run; wherever it lies"
import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import chdir
from html import unescape

import pytest
import tifffile
import yaml
from conftest import ENV, PROJECT, one_sentence, run
from test_plates import rows, tables
from test_plates import write as write_plates

from integrated_cell import study, workflow
from integrated_cell.data.cells import Cells
from integrated_cell.simulation.stem import simulate_cells
from integrated_cell.simulation.yeast import simulate_yeast

KINDS = ["TOM20", "lamin B1"]


def write(path, x, **named):
    "A simulated cell as a microscope's file, in a field that is a little wider"
    import numpy as np
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {f"PhysicalSize{a}": 1. for a in "ZYX"} | dict(axes="CZYX", Channel={"Name": ["membrane", "structure", "dna"]}) | named
    tifffile.imwrite(path, np.pad(x, [(0, 0)] + [(3, 3)]*3), photometric="minisblack", metadata=about)


@pytest.fixture(scope="module")
def cells():
    return simulate_cells(16, (10, 16, 20), seed=1, structures=KINDS)


@pytest.fixture
def mine(tmp_path, cells):
    "A study whose images lie in a folder a structure"
    root = tmp_path/"my study"
    for i in range(len(cells)): write(root/"images"/cells.table.structure[i]/f"cell_{i:02d}.ome.tif", cells[i])
    study.new_study(root)
    small = dict(n_epochs=1, batch_size=4)
    set_study(root, chapters=["data", "reference", "conditional"], data=dict(source="cells.csv", shape="16,24,32", to_voxel_um=1.),
              reference=dict(small, n_latent_r=4, width=1/16), conditional=dict(small, n_latent_s=4))
    return root


def set_study(root, **said):
    (root/"config.yaml").write_text(yaml.safe_dump(said))


def change(root, **data):
    said = yaml.safe_load((root/"config.yaml").read_text())
    set_study(root, **said | {"data": said["data"] | data})


def planned(root):
    out, err = run(root, sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", "--snakefile", PROJECT/"Snakefile", "--directory", root,
                   "--cores", 1, "--config", "file=config.yaml")
    table = [line.split() for line in (out + err).splitlines()]
    return {line[0] for line in table if len(line) == 2 and line[1].isdigit()} - {"total", "all", "book"}


# ------------------------------------------------------------------------------------------------ new

def test_new_writes_what_is_to_be_filled_in(tmp_path):
    run(tmp_path, "integrated-cell", "new", "empty")
    assert sorted(p.name for p in (tmp_path/"empty").iterdir()) == ["README.md", "cells.csv", "config.yaml"]
    config = workflow.read_config(tmp_path/"empty")
    assert config["chapters"][0] == "data" and config["out"] == (tmp_path/"empty/results").resolve()
    before = {p.name: p.read_bytes() for p in (tmp_path/"empty").iterdir()}
    out, err = run(tmp_path, "integrated-cell", "new", "empty", rc=2)
    assert one_sentence(err) and "stands already" in err and before == {p.name: p.read_bytes() for p in (tmp_path/"empty").iterdir()}
    out, err = run(tmp_path, "integrated-cell", "check", "empty", rc=2)
    assert one_sentence(err) and "check.html" in err and (tmp_path/"empty/check.html").exists()
    out, err = run(tmp_path, "integrated-cell", "check", ".", rc=2)
    assert one_sentence(err) and "config.yaml is missing" in err


# ------------------------------------------------------------------------------------------------ check

def test_pairs_are_looked_at(tmp_path):
    import numpy as np
    from PIL import Image
    root = study.new_study(tmp_path/"pairs", "pairs")
    assert not study.check_study(root)[1], "its folder is not there yet"
    for split, n in (("train", 16), ("test", 3)):
        for protein in ("Arp3", "Tea1"):
            folder = root/f"images/my_size-48-80_{split}"/protein
            folder.mkdir(parents=True)
            of = simulate_yeast(n, (48, 80), len(split), (protein,))
            for i in range(n): Image.fromarray(np.stack([*of[i], 0*of[i][0]], -1)).save(folder/f"{i}.png")
    page, ready, verdict = study.check_study(root)
    assert ready and "32 pictures to learn from, 6 to test with" in verdict and "Magenta: the first channel" in page.read_text()
    (root/"images/my_size-48-80_train/Tea1/0.png").unlink()
    page, ready, _ = study.check_study(root)
    assert not ready and "Tea1 has 15 training pictures" in unescape(page.read_text())


def test_plates_are_looked_at(tmp_path):
    import numpy as np
    root = study.new_study(tmp_path/"plates", "plates")
    page, ready, _ = study.check_study(root)
    assert not ready and "plates" in page.read_text()
    sites, rng = rows(), np.random.default_rng(0)
    write_plates(tables(root/"plates", sites), sites, lambda i, row: rng.integers(1, 999, (3, 40, 50)).astype(np.uint16))
    page, ready, verdict = study.check_study(root)
    assert ready and "12 sites" in verdict and "treatments without a mechanism (1): PD-98059" in unescape(page.read_text())
    config = (root/"config.yaml").read_text()
    bad = {"folder: plates ": "folder: '' ", '"96,96"': '"64,96"', "nucleus_px: 30 ": "nucleus_px: 2 "}
    for (old, new), says in zip(bad.items(), ("names no folder", "64,96 is not square", "nucleus_px 2 is no diameter")):
        (root/"config.yaml").write_text(config.replace(old, new))
        page, ready, _ = study.check_study(root)
        assert not ready and says in unescape(page.read_text())
    (root/"config.yaml").write_text(config)
    next((root/"plates/Week1_22141").iterdir()).write_bytes(b"no image")
    page, ready, _ = study.check_study(root)
    assert not ready and "put a whole copy in its place" in unescape(page.read_text())


def test_a_study_that_is_ready(mine, cells, browser):
    out, err = run(mine.parent, "integrated-cell", "check", "my study")
    assert "Training can start: " in out and f"{KINDS[0]}" not in out
    page = (mine/"check.html").read_text()
    for said in ("channel 1 “structure”", *KINDS, "16 of 16 cells fit", "seconds a step", "GiB"): assert said in page, said
    assert "To be mended" not in page and "http" not in page and "src=\"data:" in page
    for width in (1280, 390):
        browser.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        asked, failed = browser.open(mine/"check.html", wait=1.)
        assert not failed and browser.run("document.documentElement.scrollWidth <= innerWidth"), width
        assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


def test_what_would_fit_does(mine):
    change(mine, shape="10,12,16")
    found = study.checked(mine)
    from integrated_cell.data.checkup import would_fit
    sizes = [f.size_um for f in found.found]
    assert sum(not f.fits for f in found.found) and "take a larger shape" in (study.check_study(mine)[0]).read_text()
    for share, less in ((.95, 1), (1., 0)):
        shape, voxel = would_fit(sizes, 1., (10, 12, 16), share)
        for how in (dict(shape=",".join(map(str, shape))), dict(shape="10,12,16", to_voxel_um=voxel)):
            change(mine, **dict(to_voxel_um=1.) | how)
            with chdir(mine): assert sum(not f.fits for f in study.look(workflow.read_config(mine)).found) <= less


def test_everything_that_is_wrong_stands_on_the_page(mine, cells):
    write(mine/"images/TOM20/other.ome.tif", cells[0], Channel={"Name": ["DAPI", "GFP", "mask"]})
    (mine/"images/TOM20/broken.ome.tif").write_bytes(b"II*\0 and no more")
    with open(mine/"cells.csv", "a") as f: f.write("images/TOM20/other.ome.tif,TOM20\nimages/TOM20/broken.ome.tif,TOM20\nlost.tif,TOM20\nlost.tif,\n")
    out, err = run(mine.parent, "integrated-cell", "check", "my study", rc=2)
    assert one_sentence(err) and "4 things are to be mended" in err
    page = unescape((mine/"check.html").read_text())
    for said in ("other.ome.tif: which of its 3 channels (called DAPI, GFP, mask)", "broken.ome.tif", "lost.tif does not exist", "has no structure"):
        assert said in page, said
    assert "16 of 16 cells fit" in page and "channel 0 “membrane”" in page, "those that are right are shown all the same"


@pytest.mark.parametrize("spoil, words", [
    (lambda root: (root/"cells.csv").write_bytes("path,structure\na.tif,Zellkörper\n".encode("latin-1")), "is not in UTF-8 (line 2)"),
    (lambda root: (root/"config.yaml").write_bytes("chapters: [data] # Größe".encode("latin-1")), "not in UTF-8"),
    (lambda root: (root/"config.yaml").write_text("chapters: [data]\ndata: {sorce: cells.csv}"), "unknown parameter 'sorce'"),
    (lambda root: (root/"cells.csv").write_text("path,structur\na.tif,A\n"), "unknown column 'structur'"),
    (lambda root: change(root, source="simulated"), "read no images of your own")])
def test_what_stops_the_look_is_said_on_the_page_too(mine, spoil, words):
    spoil(mine)
    page, ready, verdict = study.check_study(mine)
    assert not ready and words in unescape(page.read_text()) and "1 thing is" in verdict


def test_too_few_are_told_before_anything_is_trained(mine):
    said = yaml.safe_load((mine/"config.yaml").read_text())
    set_study(mine, **said | {"chapters": [*said["chapters"], "classification"]})
    lines = (mine/"cells.csv").read_text().splitlines()
    (mine/"cells.csv").write_text("\n".join([lines[0], *(line for line in lines if line.endswith("TOM20"))]))
    assert any("the chapter classification tells 2 structures apart" in f for f in study.checked(mine).faults)


# ------------------------------------------------------------------------------------------------ run

def test_a_study_runs_where_it_lies_and_can_be_moved(mine, tmp_path):
    set_study(mine, chapters=["data"], data=dict(source="cells.csv", shape="16,24,32", to_voxel_um=1.))
    assert planned(mine) == {"data"} and not (mine/"results").exists()
    out, err = run(tmp_path, sys.executable, "-m", "integrated_cell", "run", "my study", "--cores", 1)
    assert out.strip().endswith("my study/results/book/index.html") and (mine/"results/book/index.html").exists()
    assert not (mine/"results/book/library").exists() and "simulate_cells" in (mine/"results/book/library.html").read_text()
    ran = json.loads((mine/"results/data/run.json").read_text())
    assert ran["parameters"]["results"] == "results" and "integrated-cell run ." in (mine/"results/data/notebook.ipynb").read_text()
    first = Cells.open(mine/"results/data/cells").provenance["content"]
    shutil.move(mine, tmp_path/"elsewhere")
    there = tmp_path/"elsewhere"
    assert planned(there) == set(), "nothing in a study says where it lies"
    image = next((there/"images/TOM20").glob("*.tif"))
    shutil.copy(next((there/"images/lamin B1").glob("*.tif")), image)
    assert planned(there) == {"data"}
    run(there, "integrated-cell", "chapter", "data", "--config", ".")
    assert Cells.open(there/"results/data/cells").provenance["content"] != first and planned(there) == set()
    (there/"results/data/metrics.json").unlink()  # and the book still stands
    assert planned(there) == {"data"}


def test_a_runs_file_lies_in_a_study_or_in_the_project(mine):
    (mine/"config.yaml").rename(mine/"other.yaml")
    out, err = run(mine, "integrated-cell", "chapter", "data", "--config", "other.yaml", rc=2)
    assert one_sentence(err) and "is the config.yaml of a study's own folder" in err


# ------------------------------------------------------------------------------------------------ the command line

def test_version_with_and_without_the_script(tmp_path):
    from integrated_cell import __version__
    for command in (["integrated-cell"], [sys.executable, "-m", "integrated_cell"]):
        out, err = run(tmp_path, *command, "--version")
        assert out.startswith(f"integrated_cell {__version__}, commit ") and not err
    assert run(tmp_path, sys.executable, "-m", "integrated_cell", "new", "a")[0]


def test_a_place_that_may_not_be_written(tmp_path):
    for place in ("/proc/nothing", "/dev/null/mine"):
        out, err = run(tmp_path, "integrated-cell", "new", place, rc=2)
        assert one_sentence(err) and place in err, err


def test_ctrl_c_ends_in_one_sentence(mine):
    going = subprocess.Popen([sys.executable, "-m", "integrated_cell", "check", "."], cwd=mine, env=ENV, stderr=subprocess.PIPE, text=True,
                             preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))  # which may be ignored here
    for _ in range(600):
        time.sleep(.1)
        if "libtorch" in open(f"/proc/{going.pid}/maps").read(): break  # it is past its start
    going.send_signal(signal.SIGINT)
    said = going.communicate(timeout=120)[1]
    assert going.returncode == 130 and "stopped; run the same command to go on" in said and "Traceback" not in said


def test_a_second_run_waits_outside(tmp_path):
    from integrated_cell.results import BadInput, alone
    from integrated_cell.workflow import run_chapter
    root = study.new_study(tmp_path/"mine")
    code = "import sys, time\nfrom integrated_cell.results import alone\nwith alone(sys.argv[1]): print('in', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(root/"results")], env=ENV, stdout=subprocess.PIPE)
    other.stdout.readline()
    with pytest.raises(BadInput, match=f"process {other.pid} is at work there"): study.run_study(root)
    with pytest.raises(BadInput, match=f"process {other.pid} is at work there"): run_chapter("data", root)
    other.kill(); other.wait()
    with alone(root/"results"): pass


def test_lines_of_the_template_can_be_taken_into_use(tmp_path):
    root = study.new_study(tmp_path/"mine")
    text = (root/"config.yaml").read_text()
    (root/"config.yaml").write_text(text.replace("  # voxel_um", "  voxel_um").replace("  # channels", "  channels"))
    said = workflow.read_config(root)["blocks"]["data"]
    assert said["voxel_um"] == "0.29,0.1,0.1" and said["channels"].startswith("membrane=CMDRP")


def test_what_is_to_be_mended_is_told_in_the_terminal_and_channels_on_the_page(tmp_path, cells):
    root = study.new_study(tmp_path/"mine")
    for k, structure in enumerate(KINDS):  # the same name of a cell under two structures
        for c, role in enumerate(("mem", "gfp", "dapi")):
            write(root/"images"/f"{structure.replace(' ', '')}_1_{role}.ome.tif", cells[k][[c]], Channel={"Name": [role]})
    (root/"cells.csv").write_text('path,channels\nimages/{structure}_{cell}_{channel}.ome.tif,"membrane=mem,structure=gfp,dna=dapi"\n'
                                  'images/none_{structure}_{cell}_{channel}.ome.tif,"membrane=mem,structure=gfp,dna=dapi"\n')
    out, err = run(tmp_path, "integrated-cell", "check", "mine", rc=2)
    page = unescape((root/"check.html").read_text())
    assert "no file in" in out and "no file in" in page and one_sentence(err)
    assert page.count("of images/") >= 6, "three channels of each of two structures"
