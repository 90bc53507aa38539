"Training: what a user can do to a run from outside (signals, full disk, foreign files, other settings)"
import json
import math
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from integrated_cell.results import BadInput
from integrated_cell.training.train import fit, load, save

bce = nn.functional.binary_cross_entropy_with_logits


class Toy(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.settings = {"width": width}
        self.gen = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 1))
        self.disc = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, 1))


class Points:
    def __init__(self, mean=1.): self.mean = mean
    def __len__(self): return 6
    def epoch(self, e, start=0):
        x = torch.randn(48, 1, generator=torch.Generator().manual_seed(e))*.1 + self.mean
        for b in range(start, 6): yield {"x": x[8*b:8*b + 8]}


def step(nets, opts, batch, fabric):
    "One round of a GAN"
    x = batch["x"]
    x_gen = nets["gen"](torch.randn(len(x), 2, device=x.device))
    real, fake = nets["disc"](x), nets["disc"](x_gen.detach())
    loss_disc = bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))
    fabric.backward(loss_disc)
    opts["disc"].step()
    fake = nets["disc"](x_gen)
    loss_gen = bce(fake, torch.ones_like(fake))
    fabric.backward(loss_gen)
    opts["gen"].step()
    return {"loss_disc": loss_disc, "loss_gen": loss_gen}


def run(out, n_epochs=2, lr=1e-2, width=4, batches=None, step=step, **kwargs):
    torch.manual_seed(0)
    toy = Toy(width)
    opts = {name: torch.optim.Adam(getattr(toy, name).parameters(), lr) for name in ["gen", "disc"]}
    return toy, fit(toy, step, opts, batches or Points(), n_epochs, out, **{"accelerator": "cpu", "show": False, **kwargs})


def interrupted(at, do):
    calls = []
    def interrupted_step(*args):
        calls.append(1)
        if len(calls) == at + 1: do()
        return step(*args)
    return interrupted_step


def counted(calls):
    def counted_step(*args):
        calls.append(1)
        return step(*args)
    return counted_step


def same(a, b): return all(v.equal(w) for v, w in zip(a.state_dict().values(), b.state_dict().values()))


def said(e):
    "The sentence, if it is one"
    text = str(e.value)
    assert "\n" not in text and len(text) < 500
    return text


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return run(out)[0], out


@pytest.fixture
def listening():
    "Ctrl-C is heard, as it is not by what a shell started in its background"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("number, error", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
@pytest.mark.parametrize("at", [0, 5, 8])
def test_a_signal_saves_and_the_run_goes_on(tmp_path, capsys, whole, number, error, at):
    with pytest.raises(error): run(tmp_path, step=interrupted(at, lambda: os.kill(os.getpid(), number)))
    assert "run the same again to go on" in capsys.readouterr().out
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)
    calls = []
    toy, history = run(tmp_path, step=counted(calls))
    assert same(toy, whole[0]) and len(calls) == 12 - at - 1
    assert pd.read_csv(tmp_path/"history.csv").epoch.tolist() == history.epoch.tolist() == [0, 1]


@pytest.mark.usefixtures("listening")
def test_a_signal_after_the_last_step_is_not_lost(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt): run(tmp_path, step=interrupted(11, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert same(run(tmp_path)[0], whole[0]) and (tmp_path/"model.json").exists()


def test_a_finished_run_returns_at_once_and_goes_on_when_asked(tmp_path, whole):
    toy, history = run(tmp_path)
    assert {"checkpoint.safetensors", "history.csv", "tensorboard", "model.safetensors", "model.json"} == {p.name for p in tmp_path.iterdir()}
    stamp = (tmp_path/"checkpoint.safetensors").stat().st_mtime_ns
    again, same_history = run(tmp_path, step=None)
    assert same(again, toy) and same_history.equals(history) and (tmp_path/"checkpoint.safetensors").stat().st_mtime_ns == stamp
    more, _ = run(tmp_path, n_epochs=3)
    straight, _ = run(tmp_path/"straight", n_epochs=3)
    assert same(more, straight) and len(list((tmp_path/"tensorboard").glob("events*"))) == 2


@pytest.mark.parametrize("change, name", [
    (dict(lr=1e-3), "Adam gen 0"), (dict(width=5), "width"), (dict(settings={"gamma": 1}), "gamma"), (dict(seed=1), "seed"),
    (dict(batches=Points(2.)), "first batch"), (dict(n_epochs=1), "2 epochs"), (dict(precision="bf16-mixed"), "precision")])
def test_other_settings_start_anew_and_keep_the_old(tmp_path, capsys, change, name):
    run(tmp_path)
    old = (tmp_path/"checkpoint.safetensors").read_bytes()
    toy, history = run(tmp_path, **change)
    out = capsys.readouterr().out
    assert "starts anew" in out and name in out and out.count("\n") == 1
    assert (tmp_path/"checkpoint.old.safetensors").read_bytes() == old
    assert same(toy, run(tmp_path/"fresh", **change)[0]) and len(history) == change.get("n_epochs", 2)


def test_loss_that_is_no_number_stops_with_the_last_good_checkpoint(tmp_path, whole):
    class Broken(Points):
        def epoch(self, e, start=0):
            for b, batch in enumerate(super().epoch(e, start), start): yield {"x": batch["x"]*(math.nan if (e, b) == (1, 2) else 1)}
    run(tmp_path, n_epochs=1)
    good = (tmp_path/"checkpoint.safetensors").read_bytes()
    with pytest.raises(BadInput) as e: run(tmp_path, batches=Broken())
    assert said(e).startswith("loss_disc is nan at epoch 1, batch 2; the last good checkpoint") and "lower the learning rate" in said(e)
    assert (tmp_path/"checkpoint.safetensors").read_bytes() == good
    with pytest.raises(BadInput): run(tmp_path, batches=Broken(), save_every_s=0)
    assert all(v.isfinite().all() for v in load_file(tmp_path/"checkpoint.safetensors").values())
    assert same(run(tmp_path)[0], whole[0])


def test_weight_that_is_no_number_is_never_saved(tmp_path):
    def poison(nets, opts, batch, fabric):
        losses = step(nets, opts, batch, fabric)
        with torch.no_grad(): nets["gen"].module[0].weight[0, 0] = math.nan
        return losses
    class One(Points):
        def __len__(self): return 1
    with pytest.raises(BadInput) as e: run(tmp_path, batches=One(), step=poison)
    assert "gen.0.weight is not finite before epoch 1, batch 0; no checkpoint was written yet" in said(e)
    assert not (tmp_path/"checkpoint.safetensors").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_keeps_the_last_good_checkpoint(tmp_path, whole):
    def fill(): (tmp_path/f".checkpoint.safetensors.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(BadInput) as e: run(tmp_path, step=interrupted(8, fill))
    assert "disk is full" in said(e)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors", "history.csv", "tensorboard"]
    calls = []
    assert same(run(tmp_path, step=counted(calls))[0], whole[0]) and len(calls) == 6


def damage(path, how):
    data = path.read_bytes()
    if how == "truncated": path.write_bytes(data[:len(data)//2])
    if how == "empty": path.write_bytes(b"")
    if how == "pickle": torch.save({"model": 1}, path)
    if how == "evil pickle": path.write_bytes(pickle.dumps(Evil(path)))
    if how == "foreign": save_file({"w": torch.ones(2)}, path)


class Evil:
    def __init__(self, path): self.path = path
    def __reduce__(self): return (os.remove, (str(self.path),))


DAMAGES = ["truncated", "empty", "pickle", "evil pickle", "foreign"]


@pytest.mark.parametrize("how", DAMAGES)
def test_checkpoint_that_is_not_ours(tmp_path, whole, how):
    path = tmp_path/"checkpoint.safetensors"
    path.write_bytes((whole[1]/path.name).read_bytes())
    damage(path, how)
    before = path.read_bytes()
    with pytest.raises(BadInput) as e: run(tmp_path)
    assert "checkpoint.safetensors is not a checkpoint that integrated_cell wrote" in said(e)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("how", DAMAGES)
def test_model_that_is_not_ours(tmp_path, how):
    save(Toy(), tmp_path)
    damage(tmp_path/"model.safetensors", how)
    with pytest.raises(BadInput) as e: load(tmp_path, Toy)
    assert "model.safetensors is not a model that integrated_cell wrote" in said(e) and (tmp_path/"model.safetensors").exists()


@pytest.mark.parametrize("text, sentence", [
    (None, "model.json is missing"), ("", "not a model description"), ("[1]", "not a model description"), ('{"model": "Toy"}', "not a model description"),
    ('{"model": "Other", "settings": {}}', "of class Other, not Toy"), ('{"model": "Toy", "settings": {"width": 9}}', "model.json says other settings than model.safetensors")])
def test_model_description_that_is_not_ours(tmp_path, text, sentence):
    save(Toy(), tmp_path)
    about = tmp_path/"model.json"
    about.unlink() if text is None else about.write_text(text)
    with pytest.raises(BadInput) as e: load(tmp_path, Toy)
    assert sentence in said(e)


@pytest.mark.parametrize("settings, sentence", [
    ({"depth": 3}, "no Toy can be built"), ({"width": "many"}, "no Toy can be built"), ({"width": 9}, "gen.0.weight is (4, 2) in the file and (9, 2) in the model"),
    ({"width": 10**18}, "and (1000000000000000000, 2) in the model")])
def test_settings_are_held_against_the_weights_before_anything_is_built(tmp_path, settings, sentence):
    toy = Toy()
    toy.settings = settings
    save(toy, tmp_path)
    with pytest.raises(BadInput) as e: load(tmp_path, Toy)
    assert sentence in said(e)


def test_a_voxel_too_many_is_refused_at_once(tmp_path):
    from integrated_cell.integration.reference import Reference
    model = Reference((8, 12, 16), 8, .05)
    for shape in (10**6, 10**6, 10**6), (8, 12, 32):
        model.settings |= {"shape": list(shape)}
        save(model, tmp_path)
        with pytest.raises(BadInput) as e: load(tmp_path, Reference)
        assert "model" in said(e)


def bits_fallen(data, n=40):
    "Copies of a file in each of which one bit is another"
    for at in np.random.default_rng(0).integers(0, 8*len(data), n).tolist():
        bad = bytearray(data)
        bad[at//8] ^= 1 << at % 8
        yield bytes(bad)


def test_no_fallen_bit_of_weights_is_read(tmp_path):
    save(Toy(), tmp_path)
    path = tmp_path/"model.safetensors"
    for bad in bits_fallen(path.read_bytes()):
        path.write_bytes(bad)
        with pytest.raises(BadInput) as e: load(tmp_path, Toy)
        assert "model.safetensors is not a model that integrated_cell wrote" in said(e)


def test_no_fallen_bit_of_a_checkpoint_is_read(tmp_path, whole):
    path = tmp_path/"checkpoint.safetensors"
    for bad in bits_fallen((whole[1]/path.name).read_bytes(), 10):
        path.write_bytes(bad)
        with pytest.raises(BadInput) as e: run(tmp_path)
        assert "checkpoint.safetensors is not a checkpoint that integrated_cell wrote" in said(e) and path.read_bytes() == bad


def test_two_trainings_in_one_folder(tmp_path):
    from integrated_cell.results import alone
    code = f"from integrated_cell.results import alone\nwith alone({str(tmp_path)!r}): print(1, flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdout.readline()
    with pytest.raises(BadInput) as e: run(tmp_path)
    assert f"process {other.pid} is at work there" in said(e) and [p.name for p in tmp_path.iterdir()] == [".lock"]
    other.kill(); other.wait()
    run(tmp_path)
    with alone(tmp_path): run(tmp_path)


def test_model_that_is_missing(tmp_path):
    with pytest.raises(BadInput) as e: load(tmp_path/"nowhere", Toy)
    assert "holds no trained model" in said(e)
    save(Toy(), tmp_path)
    (tmp_path/"model.safetensors").unlink()
    with pytest.raises(BadInput) as e: load(tmp_path, Toy)
    assert "model.safetensors does not exist" in said(e)


def test_saved_model_comes_back(tmp_path):
    toy = Toy(6)
    back = load(save(toy, tmp_path), Toy)
    assert same(toy, back) and not back.training
    about = json.loads((tmp_path/"model.json").read_text())
    assert about["model"] == "Toy" and about["settings"] == {"width": 6} and set(about) == {"model", "settings", "version"}


def test_bf16_trains_and_resumes(tmp_path):
    straight, history = run(tmp_path/"a", precision="bf16-mixed")
    with pytest.raises(KeyboardInterrupt): run(tmp_path/"b", precision="bf16-mixed", step=interrupted(7, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert same(run(tmp_path/"b", precision="bf16-mixed")[0], straight)
    assert straight.gen[0].weight.dtype == torch.float32 and not same(straight, run(tmp_path/"c")[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gpu_trains_and_resumes(tmp_path, precision):
    gpu = dict(accelerator="gpu", precision=precision)
    straight, history = run(tmp_path/"a", **gpu)
    with pytest.raises(KeyboardInterrupt): run(tmp_path/"b", step=interrupted(7, lambda: os.kill(os.getpid(), signal.SIGINT)), **gpu)
    resumed, again = run(tmp_path/"b", **gpu)
    assert all(torch.allclose(v, w, atol=1e-6) for v, w in zip(straight.state_dict().values(), resumed.state_dict().values()))
    assert next(straight.parameters()).is_cuda and load(tmp_path/"a", Toy).gen[0].weight.device.type == "cpu"


def test_other_frozen_weights_start_anew(tmp_path, capsys):
    def only_gen(nets, opts, batch, fabric):
        loss = toy.disc(nets["gen"](torch.randn(8, 2))).mean()
        fabric.backward(loss)
        opts["gen"].step()
        return {"loss": loss}
    for seed, n_said in [(0, 0), (0, 0), (1, 1)]:
        torch.manual_seed(seed)
        toy = Toy()
        fit(toy, only_gen, {"gen": torch.optim.SGD(toy.gen.parameters(), .1, momentum=.9)}, Points(), 1, tmp_path, accelerator="cpu", show=False)
        assert capsys.readouterr().out.count("weights not trained") == n_said


def test_history_holds_means_over_the_cells(tmp_path):
    class Uneven(Points):
        def __len__(self): return 2
        def epoch(self, e, start=0): yield from [{"x": torch.ones(6, 1)}, {"x": torch.zeros(2, 1)}][start:]
    def mean(nets, opts, batch, fabric): return {"loss_x": batch["x"].mean()}
    _, history = run(tmp_path, batches=Uneven(), step=mean)
    assert history.loss_x.tolist() == [.75, .75] and (history.cells_per_s > 0).all()


def test_progress_is_one_line(tmp_path, capsys):
    run(tmp_path, show=True)
    err = capsys.readouterr().err
    assert "12/12" in err and "loss_gen" in err and err.count("\n") == 1 and len(err) < 500


# Watching, stopping, going further

def nosy(values=None):
    "A watch that draws, switches the model and says one value an epoch; what it was asked of"
    seen = []
    def watch(model):
        torch.rand(9)
        model.train()
        seen.append(model.gen[0].weight.detach().clone())
        return float(seen[-1].square().mean()) if values is None else values[len(seen) - 1]
    return watch, seen


def test_watching_leaves_no_trace(tmp_path, whole):
    watch, seen = nosy()
    toy, history = run(tmp_path, watch=watch)
    assert same(toy, whole[0]) and len(seen) == 2 and history.validation.notna().all() and "validation" in pd.read_csv(tmp_path/"history.csv")
    _, rarely = run(tmp_path/"b", n_epochs=5, watch=watch, watch_every=2)
    assert rarely.validation.notna().tolist() == [False, True, False, True, True], "every second epoch, and the last"
    _, silent = run(tmp_path/"c", watch=lambda model: None)
    assert "validation" not in silent
    with pytest.raises(BadInput) as e: run(tmp_path/"d", watch=lambda model: math.nan)
    assert "the validation number is nan after epoch 0" in said(e)


FLAT = [5, 3, 2, 2, 2.5] + [3]*20


def test_a_plateau_ends_a_run_as_a_shorter_one(tmp_path):
    plan = dict(n_epochs=20, anneal=.5, patience=.1)  # nothing better for two epochs: known after the fifth, annealed over five more
    toy, history = run(tmp_path/"a", watch=nosy(FLAT)[0], **plan)
    short, _ = run(tmp_path/"b", n_epochs=10, anneal=.5)
    assert len(history) == 10 and same(toy, short)
    long, all_of_it = run(tmp_path/"c", watch=nosy()[0], **plan | dict(patience=1.))
    assert len(all_of_it) == 20 and not same(long, toy)
    at_once, cut = run(tmp_path/"d", watch=nosy(FLAT)[0], n_epochs=20, patience=.1)
    assert len(cut) == 5 and same(at_once, run(tmp_path/"e", n_epochs=5)[0]), "without annealing it just ends"


@pytest.mark.parametrize("at", [1, 20, 27, 33])
def test_a_plateau_survives_being_stopped(tmp_path, at):
    plan = dict(n_epochs=12, anneal=.5, patience=.2)
    def by_weight(model): return round(model.gen[0].weight.square().mean().item(), 1)  # flat soon, and a function of the weights alone
    straight, history = run(tmp_path/"a", watch=by_weight, **plan)
    assert len(history) < 12
    with pytest.raises(KeyboardInterrupt): run(tmp_path/"b", step=interrupted(at, lambda: os.kill(os.getpid(), signal.SIGINT)), watch=by_weight, **plan)
    resumed, again = run(tmp_path/"b", watch=by_weight, **plan)
    assert same(resumed, straight) and again.drop(columns=["seconds", "cells_per_s"]).equals(history.drop(columns=["seconds", "cells_per_s"]))
    calls = []
    assert same(run(tmp_path/"b", watch=by_weight, step=counted(calls), **plan)[0], straight) and not calls


@pytest.mark.parametrize("anneal", [0, .5])
@pytest.mark.parametrize("at", [0, 4, 17])
def test_further_epochs_go_on_from_the_weights_that_stand(tmp_path, anneal, at):
    first, _ = run(tmp_path/"a", anneal=anneal)
    run(tmp_path/"b", anneal=anneal)
    on = dict(further=3, anneal=.5)
    straight, history = run(tmp_path/"a", **on)
    assert len(history) == 5 and not same(straight, first)
    with pytest.raises(KeyboardInterrupt): run(tmp_path/"b", step=interrupted(at, lambda: os.kill(os.getpid(), signal.SIGINT)), **on)
    assert same(run(tmp_path/"b", **on)[0], straight)
    calls = []
    assert same(run(tmp_path/"b", step=counted(calls), **on)[0], straight) and not calls, "asked again, it is finished"
    more, history = run(tmp_path/"b", step=counted(calls), **on | dict(further=5))
    assert len(history) == 7 and len(calls) == 12


def test_further_finishes_what_was_stopped_first(tmp_path):
    run(tmp_path/"a", anneal=.5)
    straight, _ = run(tmp_path/"a", anneal=.5, further=2)
    with pytest.raises(KeyboardInterrupt): run(tmp_path/"b", anneal=.5, step=interrupted(3, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert same(run(tmp_path/"b", anneal=.5, further=2)[0], straight)


def test_further_epochs_may_be_of_another_precision_but_not_change_it_on_the_way(tmp_path):
    run(tmp_path)
    run(tmp_path, further=2, precision="bf16-mixed")
    with pytest.raises(BadInput) as e: run(tmp_path, further=4, precision="32-true")
    assert "precision was bf16-mixed and is 32-true" in said(e)
    run(tmp_path, further=4, precision="bf16-mixed")


def test_further_epochs_want_their_own_run(tmp_path, capsys):
    with pytest.raises(BadInput) as e: run(tmp_path, further=2)
    assert "no checkpoint of this run that could be trained 2 epochs further (there is none)" in said(e)
    run(tmp_path, further=0)
    before = (tmp_path/"checkpoint.safetensors").read_bytes()
    for change, name in ((dict(lr=1e-3), "Adam gen 0"), (dict(batches=Points(2.)), "first batch"), (dict(seed=1), "seed")):
        with pytest.raises(BadInput) as e: run(tmp_path, further=2, **change)
        assert name in said(e)
    assert (tmp_path/"checkpoint.safetensors").read_bytes() == before
    run(tmp_path, further=2)
    with pytest.raises(BadInput) as e: run(tmp_path, further=1)
    assert "it has had 4 epochs and 3 are asked for" in said(e)
    run(tmp_path)
    assert "starts anew" in capsys.readouterr().out, "a run without further epochs is another one"


def test_a_checkpoint_of_before_goes_on(tmp_path):
    "Checkpoints did not know of legs"
    from safetensors import safe_open
    run(tmp_path, anneal=.5)
    path = tmp_path/"checkpoint.safetensors"
    with safe_open(path, "pt") as f: meta = json.loads(f.metadata()["integrated_cell"])
    for k in ("begin", "end", "asked", "further", "sum"): del meta[k]
    save_file(load_file(path), path, {"integrated_cell": json.dumps(meta)})
    calls = []
    assert len(run(tmp_path, anneal=.5, step=counted(calls))[1]) == 2 and not calls
    assert len(run(tmp_path, anneal=.5, further=2)[1]) == 4


@pytest.mark.parametrize("change, sentence", [
    (dict(n_epochs=0), "n_epochs = 0: give a number of at least 1"), (dict(further=-1), "further = -1"), (dict(anneal=2), "anneal = 2: give a number from 0 to 1"),
    (dict(patience=.2), "there are no validation cells to watch"), (dict(watch_every=0), "watch_every = 0"), (dict(devices=-1), "devices = -1"),
    (dict(precision="8-bit"), "precision '8-bit' is unknown")])
def test_a_plan_that_cannot_be(tmp_path, change, sentence):
    with pytest.raises(BadInput) as e: run(tmp_path, **change)
    assert sentence in said(e)
