"""The store of cells: what it refuses, what it leaves behind, and batches that do not depend on workers."""
import errno
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from integrated_cell.cells import Cells, check_place, split_by_hash
from integrated_cell.results import BadInput, whole

CHANNELS = ("membrane", "structure", "dna")


def images(n=12, shape=(3, 4, 6, 8)): return np.random.default_rng(0).integers(0, 256, (n, *shape)).astype(np.uint8)
def table(n=12): return pd.DataFrame({"cell_id": [f"c{i}" for i in range(n)], "structure": ["a", "b"]*(n//2)})
def create(path, x=None, t=None, **k): return Cells.create(path, images() if x is None else x, table() if t is None else t, (.3,)*3, CHANNELS, {}, **k)


@pytest.mark.parametrize("change, says", [
    (lambda t: t.assign(cell_id="c1"), "'c1' appears 12 times"),
    (lambda t: t.assign(structure=["only"] + ["b"]*11), "class 'only' has one cell"),
    (lambda t: t.drop(columns="structure"), "no column 'structure'"),
    (lambda t: t.assign(structure=[None] + ["b"]*11), "has no structure"),
])
def test_bad_table(tmp_path, change, says):
    with pytest.raises(BadInput, match=says): create(tmp_path/"cells", t=change(table()))
    assert not list(tmp_path.iterdir())


def test_bad_images(tmp_path):
    with pytest.raises(BadInput, match="uint8 of"): create(tmp_path/"cells", x=[images()[0], images()[0].astype(float)]*6)
    with pytest.raises(BadInput, match="12 rows but 11 images"): create(tmp_path/"cells", x=iter(images(11)))
    assert not list(tmp_path.iterdir())


def test_store_of_another_shape(tmp_path):
    create(tmp_path/"cells")
    about = json.loads((tmp_path/"cells/store.json").read_text())
    (tmp_path/"cells/store.json").write_text(json.dumps({**about, "shape": [4, 6, 9]}))
    with pytest.raises(BadInput, match="inconsistent"): Cells.open(tmp_path/"cells")
    with pytest.raises(BadInput, match="not a store of cells"): Cells.open(tmp_path)


def test_full_disk_leaves_the_old_store(tmp_path, monkeypatch):
    old = create(tmp_path/"cells")
    def full(self, *a, **k): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(BadInput, match="disk is full"): create(tmp_path/"cells", x=255 - images())
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["cells"] and np.array_equal(Cells.open(tmp_path/"cells")[3], old[3])


def test_only_a_store_is_replaced(tmp_path):
    images_of = tmp_path/"mine"; images_of.mkdir(); (images_of/"a.tif").write_bytes(b"II")
    for place, says in ((images_of, "no store of cells, e.g. a.tif"), (images_of/"a.tif", "is a file"), (images_of/"a.tif"/"x"/"cells", "a.tif is a file")):
        with pytest.raises(BadInput, match=says): create(place)
    create(images_of/"cells"); create(images_of/"cells", x=255 - images())
    assert np.array_equal(Cells.open(images_of/"cells")[0], 255 - images()[0]) and (images_of/"a.tif").read_bytes() == b"II"
    (images_of/"cells"/"notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="more than a store of cells, e.g. notes.txt"): create(images_of/"cells")
    (tmp_path/"link").symlink_to(images_of/"cells"); (tmp_path/"empty").mkdir()
    with pytest.raises(BadInput, match="is a link"): create(tmp_path/"link")
    assert len(create(tmp_path/"empty")) == 12 and check_place(tmp_path/"new"/"cells") == tmp_path/"new"/"cells"


def test_groups_stay_together():
    split = split_by_hash(["a"]*40 + ["b"]*40, [f"g{i//4}" for i in range(80)], test_fraction=.2)
    assert all(len(set(split[i:i + 4])) == 1 for i in range(0, 80, 4))
    assert (split[:40] == "test").sum() == 8 and (split[40:] == "test").sum() == 8


def test_split_is_the_same_in_another_process():
    code = "from integrated_cell.cells import split_by_hash; print(''.join(s[1] for s in split_by_hash(['a']*50, range(50))))"
    here = "".join(s[1] for s in split_by_hash(["a"]*50, range(50)))
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == here


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_do_not_depend_on_workers(tmp_path, workers):
    cells = create(tmp_path/"cells", x=images(70), t=table(70))
    rows = cells.rows("train")
    a, b = cells.batches(rows, 8, seed=1, flip=True), cells.batches(rows, 8, seed=1, flip=True, resident=False, workers=workers)
    for e in range(2):
        for p, q in zip(a.epoch(e), b.epoch(e), strict=True): assert all(torch.equal(p[k], q[k]) for k in p)
    assert [p["rows"].tolist() for p in b.epoch(1, start=3)] == [p["rows"].tolist() for p in a.epoch(1)][3:]


def test_every_cell_once_an_epoch_when_not_shuffled(tmp_path):
    cells = create(None)
    seen = torch.cat([b["rows"] for b in cells.batches(np.arange(12), 5, shuffle=False).epoch(0)])
    assert seen.tolist() == list(range(12))


def test_a_flat_store(tmp_path):
    cells = Cells.create(tmp_path/"cells", images(shape=(2, 8, 10)), table(), (.1, .1), ("red", "green"), {})
    assert cells.shape == (8, 10) and next(iter(cells.batches([0, 1], 2).epoch(0)))["x"].shape == (2, 2, 8, 10)


def test_whole_removes_what_failed(tmp_path):
    with pytest.raises(RuntimeError):
        with whole(tmp_path/"a") as part: part.mkdir(); (part/"x").write_text("x"); raise RuntimeError
    assert not list(tmp_path.iterdir())
