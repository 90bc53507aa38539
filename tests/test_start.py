"Starting up: what an import brings with it, counted in modules; seconds are measured by bench/start.py"
import json
import subprocess
import sys

import pytest
from conftest import ENV

NO_TORCH = [
    "results", "plot", "data.archive", "data.manifest", "data.workers", "data.stack", "data.prepare", "data.pairs",
    "data.sites", "data.plates", "data.cells", "data.scenes", "data.image", "data.own", "simulation.camera", "simulation.shapes", "simulation.structures",
    "simulation.stem", "simulation.yeast", "simulation.mcf7", "simulation.screen", "profiling.features",
    "profiling.profiles", "profiling.across", "workflow", "book", "app"]
HEAVY = {"torch", "lightning", "bioio", "dask", "ome_types", "papermill", "snakemake"}


def said_by(code):
    "What a fresh process prints last, as JSON"
    done = subprocess.run([sys.executable, "-c", f"import json, sys\n{code}"], env=ENV, capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_the_package_alone_brings_nothing():
    before, after = said_by("n = len(sys.modules)\nimport integrated_cell\nprint(json.dumps([n, len(sys.modules)]))")
    assert after - before <= 2


def test_the_package_is_there_at_once():
    "Processor time of the import, of the fastest of five processes: a busy machine makes others slower, not this one"
    took = [said_by("import time\nt = time.process_time()\nimport integrated_cell\nprint(json.dumps(time.process_time() - t))") for _ in range(5)]
    assert min(took) < .3, took


def test_the_first_verbs_come_when_they_are_used():
    import integrated_cell as ic
    loaded, heavy = said_by(f"""
import integrated_cell as ic
first = dir(ic)
cells = ic.simulate_cells(2, (8, 12, 16), structures=["TOM20"])
print(json.dumps([[n in first for n in ic.__all__] + [n in vars(ic) for n in ic.__all__], sorted({HEAVY} & set(sys.modules))]))""")
    n = len(ic.__all__)
    assert all(loaded[:n]) and sum(loaded[n:]) == 1 and not heavy
    assert dir(ic) == sorted(ic.__all__)  # the verbs and nothing else
    for name in ic.__all__: assert callable(getattr(ic, name)) and getattr(ic, name).__doc__, name
    with pytest.raises(AttributeError, match="it offers simulate_cells"): ic.simulate_cell


def test_modules_that_need_no_torch_do_not_load_it():
    found = said_by(f"""
from importlib import import_module
found = dict()
for name in {NO_TORCH}:
    import_module(f"integrated_cell.{{name}}")
    for heavy in {HEAVY} & set(sys.modules): found.setdefault(heavy, name)
print(json.dumps(found))""")
    assert not found, f"loaded, and by which module: {found}"


def test_who_trains_nothing_does_not_wait_for_lightning():
    found = said_by("""
import integrated_cell.evaluation.costs, integrated_cell.evaluation.trial, integrated_cell.models, integrated_cell.synthesis.families
import integrated_cell.profiling.views
print(json.dumps(sorted({"lightning", "torch._dynamo", "torchmetrics"} & set(sys.modules))))""")
    assert not found


def test_what_starts_a_chapter_loads_no_library_of_its_own():
    "Each of forty chapters has such a process, beside the kernel that does the work"
    found = said_by("""
from integrated_cell.app import main
assert main(["chapter", "no_such", "--config", "config/quick.yaml"]) == 2
from integrated_cell.workflow import gpu
import papermill
print(json.dumps([gpu() is None, sorted({"torch", "pandas", "scipy", "matplotlib", "rfc3987_syntax"} & set(sys.modules))]))""")
    assert not found[1] or not found[0]


def test_the_command_line_answers_at_once():
    heavy, n = said_by(f"""
from integrated_cell.app import main
try: main(["--help"])
except SystemExit: pass
print(json.dumps([sorted({HEAVY | {"pandas", "scipy", "zarr", "matplotlib", "skimage", "sklearn"}} & set(sys.modules)), len(sys.modules)]))""")
    assert not heavy and n < 600


def test_cells_are_simulated_stored_and_opened_without_torch(tmp_path):
    n, loaded = said_by(f"""
from integrated_cell.data.cells import Cells
from integrated_cell.simulation.stem import simulate_cells
simulate_cells(4, (8, 12, 16), path={str(tmp_path/"cells")!r}, test_fraction=0)
cells = Cells.open({str(tmp_path/"cells")!r})
print(json.dumps([len(cells.images[:]), sorted({HEAVY} & set(sys.modules))]))""")
    assert n == 4 and not loaded
