"Training on several devices: two processes on a CPU (gloo) do what one does, and their checkpoints are exchangeable"
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import ENV, run, set_config, write_chapter
from safetensors.torch import load_file

from integrated_cell.integration import conditional, reference
from integrated_cell.results import BadInput
from integrated_cell.training.train import _read_tensors, end_others, fit
from integrated_cell.workflow import run_chapter

STEPS, HERE = 12, Path(__file__).resolve()
IMPORT = f"import sys; sys.path.insert(0, {str(HERE.parent)!r}); from test_devices import Cells, end_others, train"


class Cells:
    "Twelve batches of five cells: two processes have three and two of them"
    def __init__(self, dtype="float64", nudge=1., pause=0): self.dtype, self.nudge, self.pause = getattr(torch, dtype), nudge, pause
    def __len__(self): return STEPS
    def order(self, e): return [range(5)]*STEPS
    def epoch(self, e, start=0, share=(0, 1)):
        gen = torch.Generator().manual_seed(e)
        x, y = torch.rand(STEPS, 5, 3, 4, 8, 8, generator=gen).to(self.dtype)*self.nudge, torch.randint(3, (STEPS, 5), generator=gen)
        for b in range(start, STEPS):
            time.sleep(self.pause)
            yield {"x": x[b][share[0]::share[1]], "y": y[b][share[0]::share[1]]}


def train(phase, out, devices=1, epochs=3, cells=None, **more):
    "A tiny model of one phase after some tens of steps, and its history"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cells = cells or Cells()
    model, step = reference.Reference((4, 8, 8), 4, 1/16), reference.step
    if phase == "conditional":
        model = conditional.Conditional.after(model, ["a", "b", "c"], 4, held=True)
        step = functools.partial(conditional.step, enc_r=model.enc_r, moments=model.moments, gamma_moments=.1)
    model.to(cells.dtype)
    history = fit(model, step, reference.optimisers(model), cells, epochs, out, accelerator="cpu", devices=devices, show=False, **more)
    return model, history


def differ(one, two):
    "Largest relative difference of each loss over the epochs"
    losses = [c for c in one if c.startswith("loss")]
    return ((two[losses] - one[losses]).abs()/one[losses].abs()).max()


def furthest(one, two):
    "Largest difference of a tensor, relative to its largest value"
    assert one.keys() == two.keys()
    return max(((a - two[k]).abs().max()/a.abs().max().clamp(min=1e-6)).item() for k, a in one.items())


def kept(out, name="checkpoint.safetensors"): return {k: v for k, v in load_file(Path(out)/name).items() if not k.startswith("random/")}


@pytest.fixture(scope="module", params=["reference", "conditional"])
def alone(request, tmp_path_factory):
    "What one process does: phase, folder, model, history"
    out = tmp_path_factory.mktemp(request.param)
    return request.param, out, *train(request.param, out)


def test_two_processes_do_what_one_does(alone, tmp_path):
    phase, out, model, history = alone
    two, said = train(phase, tmp_path, devices=2)
    assert len(said) == 3 and (differ(history, said) < 1e-6).all()  # losses are kept in single precision
    a, b = kept(out), kept(tmp_path)
    assert any("running_var" in k for k in a) and any("exp_avg_sq" in k for k in a) and furthest(a, b) < 1e-6
    assert furthest(kept(out, "model.safetensors"), two.state_dict()) < 1e-6 and not two.training
    same = [load_file(f/"checkpoint.safetensors")["random/torch"] for f in (out, tmp_path)]
    assert same[0].equal(same[1])


def test_in_single_precision_two_differ_from_one_as_one_does_after_the_smallest_nudge(tmp_path):
    _, one = train("conditional", tmp_path/"1", cells=Cells("float32"))
    _, two = train("conditional", tmp_path/"2", devices=2, cells=Cells("float32"))
    _, nudged = train("conditional", tmp_path/"3", cells=Cells("float32", 1 + 2**-23))
    by_two, by_nudge = differ(one, two), differ(one, nudged)
    assert (by_two[["loss_x_rs", "loss_z_r", "loss_y"]] < 1e-3).all() and (by_two < .1).all(), by_two
    assert by_two.max() < 100*by_nudge.max(), (by_two, by_nudge)  # an adversary's loss makes much of the last bit


def test_a_killed_run_of_two_goes_on_with_one_and_then_with_two(alone, tmp_path):
    phase, out, model, history = alone
    code = f"{IMPORT}; train({phase!r}, {str(tmp_path)!r}, devices=2, cells=Cells(pause=.2), save_every_s=0)"
    process = subprocess.Popen([sys.executable, "-c", code], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    began = time.monotonic()
    while not (tmp_path/"checkpoint.safetensors").exists() and time.monotonic() < began + 60: time.sleep(.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _, place = _read_tensors(tmp_path/"checkpoint.safetensors", "checkpoint")
    assert (place["epoch"], place["batch"]) == (0, 8)  # within the first epoch
    train(phase, tmp_path, epochs=2)
    assert not (tmp_path/"checkpoint.old.safetensors").exists() and pd.read_csv(tmp_path/"history.csv").epoch.tolist() == [0, 1]
    train(phase, tmp_path, devices=2, epochs=3)
    assert furthest(kept(out), kept(tmp_path)) < 1e-6 and (differ(history, pd.read_csv(tmp_path/"history.csv")) < 1e-6).all()
    assert not (tmp_path/"checkpoint.old.safetensors").exists()


def test_several_devices_watch_stop_and_go_further_as_one(tmp_path):
    def watch(model): return torch.rand(1).item()*0 + round(model.enc_r.heads[0].weight.abs().sum().item(), -1) + model.training
    plan, ends = dict(watch=watch, anneal=.5, patience=.1, epochs=10), []
    for devices in (1, 2):
        out = tmp_path/str(devices)
        with pytest.raises(BadInput, match="could be trained 2 epochs further"): train("reference", out, devices, further=2, **plan)
        ends.append([train("reference", out, devices, further=further, **plan)[1] for further in (0, 2)])
    (alone, alone_on), (two, two_on) = ends
    assert len(alone) == len(two) < 10 and len(alone_on) == len(two_on) == len(two) + 2
    assert (differ(alone_on, two_on) < 1e-6).all() and alone_on.validation.equals(two_on.validation)
    assert furthest(kept(tmp_path/"1"), kept(tmp_path/"2")) < 1e-6


def test_what_one_device_alone_can_do_is_said(tmp_path):
    def own(nets, opts, batch, fabric): return {}
    model = reference.Reference((4, 8, 8), 4, 1/16)
    args = reference.optimisers(model), Cells("float32"), 1, tmp_path
    with pytest.raises(BadInput, match="the step of Reference draws its noise for one device alone; train it with devices=1"):
        fit(model, own, *args, accelerator="cpu", devices=2)
    with pytest.raises(BadInput, match="a batch of 5 cells cannot be shared by 6 devices; use at most 5"):
        fit(model, reference.step, *args, accelerator="cpu", devices=6, show=False)
    assert fit(model, reference.step, *args, accelerator="cpu", devices=0, show=False).epoch.tolist() == [0]  # all GPUs of a CPU: one process


CHAPTER = """
import sys
sys.path.insert(0, "TESTS")
import torch
from test_devices import Cells, train
from integrated_cell.training.train import end_others
model, history = train("reference", f"{results}/reference", devices, 1, Cells("float32"))
end_others()
""".replace("TESTS", str(HERE.parent))


def with_table(root):
    "The table of chapters, which a project has; here none follows from another"
    table = yaml.safe_load((HERE.parent.parent/"book/chapters.yaml").read_text())
    for chapter in table["chapters"].values(): chapter["follows"] = []
    (root/"book").mkdir()
    (root/"book/chapters.yaml").write_text(yaml.safe_dump(table))


@pytest.fixture
def chapter(tmp_path):
    with_table(tmp_path)
    write_chapter(tmp_path, "reference", CHAPTER, "factor = 2\ndevices = 0")
    set_config(tmp_path, chapters=["reference"])
    return tmp_path


def done(root):
    "The chapter stands once, whole, and nothing is left beside it"
    out = root/"results/toy/reference"
    names = {p.name.partition("-")[0] for p in out.iterdir()}
    assert names == {"checkpoint.safetensors", "history.csv", "metrics.json", "model.json", "model.safetensors", "notebook.ipynb",
                     "run.json", "tensorboard", "finished"}
    assert {p.name for p in root.iterdir()} == {"nbs", "config", "results", "book"} and json.loads((out/"metrics.json").read_text()) == {"factor": 2, "seed": 0}
    return pd.read_csv(out/"history.csv")


def test_torchrun_trains_a_chapter_in_two_processes(chapter, tmp_path):
    command = Path(sys.executable).parent/"integrated-cell"
    out, err = run(chapter, "torchrun", "--nproc-per-node", 2, command, "chapter", "reference", "--config", "config/toy.yaml")
    _, one = train("reference", tmp_path/"results/one", epochs=1, cells=Cells("float32"))
    assert "MEMBER" not in out and "Traceback" not in err and (differ(one, done(chapter)) < .05).all()


def srun(root, *command):
    "What Slurm does for `srun --ntasks-per-node 2`: the same command twice, told apart by the environment"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    said = dict(SLURM_JOB_ID="4321", SLURM_JOB_NAME="cells", SLURM_NTASKS="2", SLURM_STEP_NUM_TASKS="2", SLURM_NTASKS_PER_NODE="2", SLURM_NNODES="1",
                SLURM_STEP_NUM_NODES="1", SLURM_NODEID="0", SLURM_NODELIST="127.0.0.1", MASTER_PORT=str(port))
    both = [subprocess.Popen([str(c) for c in command], cwd=root, env=ENV | said | {"SLURM_PROCID": r, "SLURM_LOCALID": r}, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE) for r in "01"]
    return [(*p.communicate(timeout=120), p.returncode) for p in both]


def test_srun_trains_in_two_processes_and_the_first_goes_on(tmp_path):
    code = f"{IMPORT}; train('conditional', 'out', 0, 1); end_others(); print('the first')"
    (out, err, rc), (quiet, silent, rc1) = srun(tmp_path, sys.executable, "-c", code)
    assert (rc, rc1, out.strip(), quiet) == (0, 0, "the first", ""), err + silent
    _, one = train("conditional", tmp_path/"one", epochs=1)
    assert (differ(one, pd.read_csv(tmp_path/"out/history.csv")) < 1e-6).all() and sorted(p.name for p in tmp_path.iterdir()) == ["one", "out"]


def test_a_single_task_of_slurm_makes_its_own_processes(tmp_path, monkeypatch):
    for name in "NTASKS", "STEP_NUM_TASKS", "NTASKS_PER_NODE": monkeypatch.setenv(f"SLURM_{name}", "1")
    for name, value in ("PROCID", "0"), ("JOB_ID", "4321"): monkeypatch.setenv(f"SLURM_{name}", value)
    assert len(train("reference", tmp_path, devices=2, epochs=1)[1]) == 1


def test_the_other_processes_leave_a_chapter_alone_that_shares_no_training(tmp_path, monkeypatch):
    with_table(tmp_path)
    write_chapter(tmp_path, "data", "1 + 1")
    set_config(tmp_path, chapters=["data"])
    for name, value in dict(TORCHELASTIC_RUN_ID="a", RANK="1", WORLD_SIZE="2").items(): monkeypatch.setenv(name, value)
    run_chapter("data", tmp_path/"config/toy.yaml")
    assert not (tmp_path/"results").exists()


def test_a_fault_in_a_forked_process_is_one_sentence(tmp_path):
    with pytest.raises(BadInput) as e: train("reference", tmp_path, devices=2, cells=Cells("float32", float("nan")))
    assert "is nan at epoch 0, batch 0; no checkpoint was written yet" in str(e.value) and "\n" not in str(e.value)
