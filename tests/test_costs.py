"What the chapter on costs says of benchmarks that are there, missing or foreign; what the benchmark of precision computes."
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from integrated_cell.aims import read_aims

ROOT = Path(__file__).parents[1]
AIMS = read_aims(ROOT/"bench/aims.csv", "costs")


def chapter(folder, files):
    "Execute the chapter's cells over some files of benchmarks; its metrics"
    for name, said in files.items():
        (folder/"bench/results"/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/"bench/results"/name).write_text(json.dumps(said))
    (folder/"bench").mkdir(exist_ok=True)
    shutil.copy(ROOT/"bench/aims.csv", folder/"bench")
    cells = json.loads((ROOT/"nbs/experiments/costs.ipynb").read_text())["cells"]
    names = {}
    for c in cells:
        if c["cell_type"] != "code": continue
        exec("".join(c["source"]), names)
        if "parameters" in c["metadata"].get("tags", []): names |= dict(results=str(folder/"results/quick"), bench=str(folder/"bench/results"))
    return json.loads((folder/"results/quick/costs/metrics.json").read_text())


def test_aims_name_scripts_that_exist():
    assert set(AIMS.sense) == {"≥", "≤"} and set(AIMS.on) <= {"any", "cpu", "gpu"} and AIMS.aim.astype(float).gt(0).all()
    for command in AIMS.command: assert (ROOT/command.split()[1]).is_file(), command


def test_nothing_measured(tmp_path, capsys):
    metrics = chapter(tmp_path, {})
    assert metrics["n_files"] == metrics["n_reached"] == metrics["n_missed"] == 0
    assert metrics["n_not_measured"] == metrics["n_aims"] == len(AIMS)


def test_reached_missed_and_foreign_rows(tmp_path, capsys):
    start = [dict(what="import integrated_cell", seconds=.2), dict(what="integrated-cell --help", seconds=9.)]
    steps = [dict(phase=p, side="library", times_as_fast=9.) for p in ("reference", "conditional")]
    pair = dict(measure="accuracy", seeds=1, relative_difference=.01, low=None, high=None, furthest=None, sd_between_float32_seeds=None, aim=.02)
    metrics = chapter(tmp_path, {
        "cpu/precision.json": dict(precision="bf16-mixed", rows=[pair]),
        "cpu/start.json": dict(question="How long?", command="python bench/start.py", rows=start),
        "cpu/prepare.json": dict(rows=[dict(other=1)]), "cpu/c2st.json": dict(rows=[]),
        "cpu/growth.json": dict(rows=[dict(phase="a", against="volume", value=v, seconds_per_cell=v) for v in (1., 2.)]),
        "a-gpu/training_step.json": dict(command="python bench/training_step.py", width=1, shape="64,96,128", rows=steps)})
    state = {(a["folder"], a["what"]): a["state"] for a in metrics["aims"]}
    assert state["cpu", "import integrated_cell"] == "reached" and state["cpu", "integrated-cell --help"] == "missed"
    assert all(s == "not measured" for (_, what), s in state.items() if what.startswith("accuracy"))  # one pair has no interval
    assert state["cpu", "make book with nothing to do"] == "not measured" and metrics["n_devices"] == 2
    assert metrics["n_missed"] == 1 and metrics["n_reached"] == 3  # starting up, and both phases on the GPU
    small = {"cpu/training_step.json": dict(width=1, shape="8,12", rows=steps)}  # a trial at another size is no answer
    assert all(a["state"] == "not measured" for a in chapter(tmp_path/"small", small)["aims"])


@pytest.fixture
def precision(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT/"bench"))
    import precision
    yield precision
    sys.modules.pop("precision"), sys.modules.pop("record")


def test_rounded_products_are_those_of_bf16(precision):
    "Each product is the float32 product of the same rounded numbers, rounded once, forwards and backwards"
    torch.manual_seed(0)
    x, w = torch.randn(2, 3, 8, 8, 8).bfloat16().requires_grad_(), torch.randn(4, 3, 4, 4, 4).bfloat16().requires_grad_()
    with precision.Rounded():
        y = torch.nn.functional.conv3d(x, w, stride=2, padding=1)
        y.sum().backward()
        assert (torch.randn(3, 3) @ torch.eye(3)).dtype == torch.float32
    xf, wf = (v.detach().float().requires_grad_() for v in (x, w))
    exact = torch.nn.functional.conv3d(xf, wf, stride=2, padding=1)
    exact.sum().backward()
    assert y.dtype == torch.bfloat16 and torch.equal(y, exact.bfloat16())
    assert torch.equal(x.grad, xf.grad.bfloat16()) and torch.equal(w.grad, wf.grad.bfloat16())


def test_relative_differences_and_their_intervals(precision):
    rng = np.random.default_rng(0)
    full = [dict(accuracy=rng.random(50) + .5) for _ in range(3)]
    pairs = [(f, dict(accuracy=f["accuracy"]*k)) for f, k in zip(full, (1.00, 1.01, 1.02))]
    found = precision.compared("accuracy", pairs)
    assert found["relative_difference"] == pytest.approx(.01) and found["seeds"] == 3
    assert found["high"] - .01 == pytest.approx(4.3027*.01/3**.5, rel=1e-3) and found["furthest"] == pytest.approx(found["high"])
    assert precision.compared("accuracy", pairs[:1])["low"] is None  # one pair has no interval
