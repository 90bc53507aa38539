"A GPU node without internet: ranges of versions that hold what was tested, imports that need no extra, no console script"
import configparser
import json
import re
import shlex
import subprocess
import sys

from conftest import ENV, PROJECT
from packaging.requirements import Requirement

EXTRAS = {  # what only other formats, the book, the workflow or the making of the package need
    "bioio", "bioio_base", "bioio_ome_tiff", "bioio_ome_zarr", "ome_types", "xsdata", "papermill", "nbclient", "nbformat", "ipykernel", "snakemake",
    "jupyter_book", "myst_nb", "sphinx_book_theme", "nbdev", "execnb", "fastcore", "jupyterlab", "jupytext", "pytest", "ruff"}
RARE = {  # required, but for pages, figures, downloads and stores, not for training
    "zarr", "numcodecs", "pooch", "plotly", "seaborn", "ipywidgets", "IPython", "pydantic", "tensorboard", "dask"}
TRAINING = ("training.train", "integration.reference", "integration.conditional", "synthesis.gan", "synthesis.families", "profiling.cytogan")
def settings(key):
    ini = configparser.ConfigParser(delimiters=["="])
    ini.read(PROJECT/"settings.ini", encoding="utf-8")
    return [Requirement(r) for r in shlex.split(ini["DEFAULT"][key])]


def python(code, absent):
    "What a process says in which some packages are not to be had"
    absence = f"import sys\nfor name in {absent}: sys.modules[name] = None\n"
    done = subprocess.run([sys.executable, "-c", absence + code], env=ENV, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr[-2000:]
    return done.stdout


def test_requirements_are_ranges_and_constraints_lie_in_them():
    exact = dict(re.findall(r"^([\w.-]+)==(\S+)$", (PROJECT/"constraints.txt").read_text(), re.M))
    exact = {name.lower().replace("_", "-"): version for name, version in exact.items()}
    for r in settings("requirements") + settings("chapters_requirements"):
        assert [s.operator for s in r.specifier].count(">=") == 1, f"{r}: its oldest version is what .ci/run tries"
        assert exact[r.name.lower()] in r.specifier, f"constraints.txt has {r.name} {exact[r.name.lower()]}"
    assert "2.8.0" in next(r for r in settings("requirements") if r.name == "torch").specifier


def test_every_module_can_be_imported_without_the_extras():
    modules = sorted(".".join(p.relative_to(PROJECT).with_suffix("").parts) for p in (PROJECT/"integrated_cell").rglob("*.py") if p.name[0] != "_")
    python(f"from importlib import import_module\nfor name in {modules}: import_module(name)", EXTRAS)


def test_a_trainings_imports_need_no_extra(tmp_path):
    said = python(f"""
from importlib import import_module
for name in {TRAINING}: import_module(f"integrated_cell.{{name}}")
import numpy as np
from integrated_cell.data.batches import Batches
from integrated_cell.integration import reference
from integrated_cell.training.train import fit, load
images, y = np.random.default_rng(0).integers(0, 256, (4, 3, 4, 6, 8), np.uint8), np.arange(4) % 2
sys.modules.pop("tensorboard")  # a training writes for it
cells, model = Batches(images, y, np.arange(4), 2), reference.Reference((4, 6, 8), 2, .0625)
fit(model, reference.step, reference.optimisers(model), cells, 1, {str(tmp_path)!r}, devices=1, accelerator="cpu", show=False)
print(type(load({str(tmp_path)!r}, reference.Reference)).__name__)
""", EXTRAS | RARE)
    assert said.strip().splitlines()[-1] == "Reference"


def test_a_chapter_runs_where_no_console_script_is(study):
    path = dict(PATH="/usr/bin:/bin")
    command = [sys.executable, "-m", "integrated_cell", "chapter", "data", "--config", "config/toy.yaml"]
    done = subprocess.run(command, cwd=study, env=ENV | path, capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr[-2000:]
    assert json.loads((study/"results/toy/data/metrics.json").read_text())["factor"] == 2
