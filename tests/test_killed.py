"Preparing and a chapter, killed at 10 random moments: a place holds what was whole or nothing, and the next run gives the same bits"
import contextlib
import json
import multiprocessing
import os
import random
import signal
import time

import pytest
from test_prepare import contents, own_images

TIMES = 10


@pytest.fixture(scope="module")
def context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["papermill", "integrated_cell.workflow", "integrated_cell.data.own"])
    return context


def prepare(folder):
    from integrated_cell.data.own import prepare_table
    prepare_table(folder/"cells.csv", folder/"store"/"cells", .4, (24, 32, 56), workers=1)


def chapter(study):
    os.setsid()  # the kernel is of its group and is killed with it
    os.chdir(study)
    from integrated_cell.workflow import run_chapter
    run_chapter("data", "config/toy.yaml")


def unbroken(context, work, folder):
    "Seconds that it takes"
    process, began = context.Process(target=work, args=(folder,)), time.perf_counter()
    process.start(); process.join(120)
    assert process.exitcode == 0
    return time.perf_counter() - began


def killed(context, work, folder, seconds, group=False):
    "The number of each attempt that is killed, the first early and the last late; `seconds` shrink to what an attempt took that was over before"
    moment, n = random.Random(0), 0
    for _ in range(3*TIMES):
        process, began = context.Process(target=work, args=(folder,)), time.perf_counter()
        process.start()
        process.join(seconds*(n + moment.random())/TIMES)
        if process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):  # over just now
                alone = group and os.getpgid(process.pid) == process.pid
                os.killpg(process.pid, signal.SIGKILL) if alone else process.kill()
            process.join()
            yield n
            n += process.exitcode == -signal.SIGKILL  # or it was over just then
        else:
            assert process.exitcode == 0
            seconds = min(seconds, time.perf_counter() - began)
        if n == TIMES: break
    assert n > TIMES/2, f"only {n} attempts were killed before they were over"


def test_preparing(context, tmp_path):
    own_images(tmp_path).to_csv(tmp_path/"cells.csv", index=False)
    unbroken(context, prepare, tmp_path)
    seconds, whole = unbroken(context, prepare, tmp_path), contents(tmp_path/"store")
    for k in killed(context, prepare, tmp_path, seconds):
        found = contents(tmp_path/"store")
        assert {name: found[name] for name in whole} == whole, f"the earlier store is not what it was after kill {k}"
    unbroken(context, prepare, tmp_path)
    assert contents(tmp_path/"store") == whole


def test_a_chapter(context, study):
    unbroken(context, chapter, study)
    out, values = study/"results/toy/data", {"factor": 2, "seed": 0}
    seconds = unbroken(context, chapter, study)
    for k in killed(context, chapter, study, seconds, group=True):
        signs = list(out.glob("finished-*"))
        assert not signs or json.loads((out/"metrics.json").read_text()) == values, f"finished without its numbers after kill {k}"
        if (out/"metrics.json").exists(): assert json.loads((out/"metrics.json").read_text()) == values
    unbroken(context, chapter, study)
    assert len(list(out.glob("finished-*"))) == 1 and json.loads((out/"metrics.json").read_text()) == values
    assert not [p.name for p in out.iterdir() if p.name.endswith(".part")]
