"""The store of cells: what it refuses, what it leaves behind, and batches that do not depend on how they are read."""
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from google_crc32c import value as crc32c

from integrated_cell.data import batches as batches_module
from integrated_cell.data.batches import Batches, ahead, read_images
from integrated_cell.data.cells import Cells, check_place, split_by_hash
from integrated_cell.integration.reference import Reference, optimisers, step
from integrated_cell.results import BadInput, whole
from integrated_cell.training.train import fit

CHANNELS = ("membrane", "structure", "dna")


def images(n=12, shape=(3, 4, 6, 8)): return np.random.default_rng(0).integers(0, 256, (n, *shape)).astype(np.uint8)
def table(n=12): return pd.DataFrame({"cell_id": [f"c{i}" for i in range(n)], "structure": ["a", "b"]*(n//2)})
def create(path, x=None, t=None, **k): return Cells.create(path, images() if x is None else x, table() if t is None else t, (.3,)*3, CHANNELS, {}, **k)


def as_before(path, **change):
    "Make of a store one of before there were sums"
    about = json.loads((path/"store.json").read_text()) | change
    (path/"store.json").write_text(json.dumps({k: v for k, v in about.items() if k not in ("sum", "sums")}))


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
    with pytest.raises(BadInput, match="store.json was changed .*its sum is another"): Cells.open(tmp_path/"cells")
    as_before(tmp_path/"cells", shape=[4, 6, 9])
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
    code = "from integrated_cell.data.cells import split_by_hash; print(''.join(s[1] for s in split_by_hash(['a']*50, range(50))))"
    here = "".join(s[1] for s in split_by_hash(["a"]*50, range(50)))
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == here


EVERY = dict(flip=True, flip_z=True, turn=25, shift=1, contrast=.2)


@pytest.mark.parametrize("moves", [{}, dict(flip=True), EVERY])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_do_not_depend_on_how_they_are_read(tmp_path, workers, moves):
    cells = create(tmp_path/"cells", x=images(70), t=table(70))
    rows = cells.rows("train")
    a, b = (cells.batches(rows, 8, seed=1, resident=r, workers=workers, **moves) for r in (True, False))
    for e in range(2):
        for p, q in zip(a.epoch(e), b.epoch(e), strict=True): assert all(torch.equal(p[k], q[k]) for k in p)
    assert [p["rows"].tolist() for p in b.epoch(1, start=3)] == [p["rows"].tolist() for p in a.epoch(1)][3:]
    for rank in range(3):
        for whole_batch, p, q in zip(a.epoch(1), a.epoch(1, share=(rank, 3)), b.epoch(1, share=(rank, 3)), strict=True):
            assert len(p["y"]) == (3, 3, 2)[rank] and all(torch.equal(p[k], q[k]) and torch.equal(p[k], whole_batch[k][rank::3]) for k in p)


def test_training_does_not_depend_on_how_batches_are_read(tmp_path):
    cells, weights = create(tmp_path/"cells", x=images(24, (3, 8, 8, 8)), t=table(24)), []
    for resident in (True, False):
        torch.manual_seed(0)
        model = Reference(cells.shape, 8, .05)
        batches = cells.batches(cells.rows("train"), 6, flip=True, resident=resident)
        fit(model, step, optimisers(model), batches, 2, tmp_path/str(resident), accelerator="cpu", show=False)
        weights.append(model.state_dict())
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())


def test_what_fits_stays_and_what_does_not_is_streamed(tmp_path, monkeypatch, capsys):
    cells = create(tmp_path/"cells", x=images(70), t=table(70))
    rows, free = np.resize(cells.rows("train"), 150), 2*cells.rows("train").size*576  # a cell that is met twice is kept once
    found = []
    for bytes_free, says in ((free, "they stay there"), (free - 1, "they are read as they are needed, 4 batches ahead")):
        monkeypatch.setattr(batches_module, "_free_bytes", lambda device: bytes_free)
        batches = cells.batches(rows, 8, seed=1)
        found.append([b["x"] for e in range(2) for b in batches.epoch(e)])
        said = capsys.readouterr().out
        assert says in said and said.count("\n") == 1 and batches.resident == (says == "they stay there")
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))
    monkeypatch.setattr(batches_module, "_free_bytes", lambda device: 100)
    with pytest.raises(BadInput, match="cannot stay there; leave `resident` out"): next(cells.batches(rows, 8, resident=True).epoch(0))
    next(cells.batches(rows, 8).epoch(0, share=(1, 2)))
    assert not capsys.readouterr().out, "only the first of several processes says it"


def test_memory_of_a_stream_does_not_grow_with_the_store(tmp_path):
    x, peaks = images(64, (3, 8, 24, 32)), []
    for n in (640, 12800):
        array = zarr.create_array(tmp_path/f"{n}.zarr", shape=(n, *x.shape[1:]), dtype="uint8", chunks=(1, *x.shape[1:]), shards=x.shape)
        array[:64] = x
        file = tmp_path/f"{n}.zarr/c/0/0/0/0/0"
        for k in range(1, n//64):
            (tmp_path/f"{n}.zarr/c/{k}/0/0/0").mkdir(parents=True)
            os.link(file, tmp_path/f"{n}.zarr/c/{k}/0/0/0/0")
        batches = Batches(array, np.zeros(n, np.int64), np.arange(n), 8, resident=False, workers=2)
        tracemalloc.start()
        for _, b in zip(range(40), batches.epoch(0)): assert np.array_equal(np.rint(b["x"].numpy()*255), x[b["rows"].numpy() % 64])
        peaks.append(tracemalloc.get_traced_memory()[1]); tracemalloc.stop()
    assert peaks[1] - peaks[0] < 12800*60 < x[0].nbytes*12800/200, "a cell more costs its place in the order, not its image"


def test_reading_stops_with_the_reader():
    before, results = threading.active_count(), ahead(lambda k: k, range(100), 3)
    assert next(results) == 0 and threading.active_count() > before
    results.close()
    assert threading.active_count() == before
    def fail(k): raise BadInput(f"{k} is torn")
    with pytest.raises(BadInput, match="0 is torn"): list(ahead(fail, range(9), 3))
    assert threading.active_count() == before


def test_damage_is_told(tmp_path):
    x = images(70); x[3] = 0
    cells = create(tmp_path/"cells", x=x, t=table(70))
    file = tmp_path/"cells/images.zarr/c/0/0/0/0/0"
    assert np.array_equal(read_images(cells.images, [3, 69]), x[[3, 69]]) and np.array_equal(cells[2:5], x[2:5]) and np.array_equal(cells[-1], x[-1])
    with pytest.raises(IndexError): cells[70]
    good = file.read_bytes()
    for bad in (good[:-1], good[:100], good[:-1] + b"x", b"xxxxxxxxx" + good[9:]):
        file.write_bytes(bad)
        with pytest.raises(BadInput, match="c/0/0/0/0/0 cannot be read .* make the store again"): read_images(cells.images, [0])
    file.unlink()
    with pytest.raises(BadInput, match="No such file.* make the store again"): read_images(cells.images, [0])


@pytest.mark.parametrize("change", ["a bit of a cell", "a cell that is left out"])
def test_damage_to_one_cell_is_told_by_us_and_by_zarr(tmp_path, change):
    x = images(70)
    cells = create(tmp_path/"cells", x=x, t=table(70))
    file = tmp_path/"cells/images.zarr/c/0/0/0/0/0"
    data = bytearray(file.read_bytes())
    if change == "a cell that is left out":  # with an index that is whole
        data[-64*16 - 4:-64*16 + 12] = b"\xff"*16
        data[-4:] = crc32c(bytes(data[-64*16 - 4:-4])).to_bytes(4, "little")
    else: data[50] ^= 16
    file.write_bytes(data)
    with pytest.raises(BadInput, match="c/0/0/0/0/0 cannot be read .*a cell"): cells[0]
    with pytest.raises(BadInput, match="make the store again"): np.asarray(cells.images)
    with pytest.raises(BadInput, match="make the store again"): next(cells.batches(np.arange(70), 8).epoch(0))
    assert np.array_equal(cells[1:64], x[1:64]) and np.array_equal(cells.images[64:, 1], x[64:, 1]), "the others are read"
    if change == "a bit of a cell":
        with pytest.raises(ValueError, match="checksum"): cells.images.array[0]


@pytest.mark.parametrize("name", ["store.json", "cells.parquet", "images.zarr/zarr.json"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_damaged_part_is_told(tmp_path, name, kept):
    create(tmp_path/"cells", x=images(70), t=table(70))
    if not kept: as_before(tmp_path/"cells")
    file = tmp_path/"cells"/name
    good = file.read_bytes()
    for bad in (b"", good[:len(good)//2], b"\xff\xfe" + good, b"[]", b"{}", b"["*10**5, b'{"zarr_format": 3}'):
        file.write_bytes(bad)
        with pytest.raises(BadInput, match=f"{file.name} was changed or damaged .* make the store again") as e: Cells.open(tmp_path/"cells")
        assert "\n" not in str(e.value) and len(str(e.value)) < 500
    file.unlink()
    with pytest.raises(BadInput): Cells.open(tmp_path/"cells")


def test_a_file_of_images_that_is_missing_is_no_black_cell(tmp_path):
    create(tmp_path/"cells", x=images(70), t=table(70))
    (tmp_path/"cells/images.zarr/c/1/0/0/0/0").unlink()
    with pytest.raises(BadInput, match="c/1/0/0/0/0 was changed .*the file is missing"): Cells.open(tmp_path/"cells")


def test_a_store_of_before_there_were_sums_is_read(tmp_path):
    x = images(70)
    create(tmp_path/"cells", x=x, t=table(70))
    as_before(tmp_path/"cells")
    shutil.rmtree(tmp_path/"cells/images.zarr")
    layout = dict(chunks=(1, *x.shape[1:]), shards=(64, *x.shape[1:]), config={"write_empty_chunks": True})
    zarr.create_array(tmp_path/"cells/images.zarr", shape=x.shape, dtype="uint8", **layout)[:] = x
    cells = Cells.open(tmp_path/"cells")
    assert np.array_equal(cells[:], x) and np.array_equal(read_images(cells.images, [69, 3]), x[[69, 3]])


def test_classes_may_be_numbers(tmp_path):
    cells = create(tmp_path/"cells", t=table().assign(structure=[1, 2]*6))
    assert cells.classes == ["1", "2"] and len(cells.rows("train", "1")) and list(cells.table.structure[:2]) == ["1", "2"]


def test_black_cells_are_no_damage(tmp_path):
    cells = create(tmp_path/"cells", x=(x := np.zeros_like(images(70))), t=table(70))
    assert np.array_equal(read_images(cells.images, range(70)), x)


@pytest.mark.parametrize("layout", [dict(chunks=(5, 3, 4, 6, 8)), dict(chunks=(1, 3, 4, 6, 8), shards=(20, 3, 4, 6, 8), compressors=None)])
def test_another_layout_is_read_by_zarr(tmp_path, layout):
    array = zarr.create_array(tmp_path/"x.zarr", shape=(40, 3, 4, 6, 8), dtype="uint8", **layout)
    array[:] = images(40)
    assert np.array_equal(read_images(array, [39, 0, 5]), images(40)[[39, 0, 5]])


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


# Moves and the third split

@pytest.mark.parametrize("move, says", [
    (dict(turn=181), "turn = 181: give degrees"), (dict(shift=4), "can be shifted by 0 to 3 voxels"), (dict(shift=-1), "shift = -1"),
    (dict(contrast=1.), "contrast = 1.0: give a share"), (dict(turn=float("nan")), "turn = nan")])
def test_a_move_that_cannot_be(move, says):
    with pytest.raises(BadInput, match=says): create(None).batches([0, 1], 2, **move)
    with pytest.raises(TypeError): create(None).batches([0, 1], 2, spin=3)


def test_moves_are_those_of_epoch_and_place_alone():
    x = np.repeat(images(1), 12, 0)
    def seen(e, **how): return torch.cat([b["x"] for b in Batches(x, np.zeros(12), np.arange(12), 6, seed=4, **EVERY, **how).epoch(e)])
    assert torch.equal(seen(0), seen(0, resident=False, workers=0)) and not torch.equal(seen(0), seen(1))
    assert len({tuple(one.flatten().tolist()) for one in seen(0)}) == 12, "one cell, shown twelve times: never alike"


def test_a_turn_knows_the_size_of_a_pixel():
    "A line along X, of pixels twice as high as wide, turned by 90 degrees is half as many pixels along Y"
    x = np.zeros((1, 1, 41, 41), np.uint8); x[..., 20, 10:31] = 240
    from integrated_cell.data.batches import turned
    tall, square = (turned(x, np.array([90.]), voxel)[0, 0, :, 20] for voxel in ((2., 1.), None))
    assert (square > 120).sum() == 21 and (tall > 60).sum() in (10, 11)


@pytest.mark.parametrize("published", [False, True])
def test_validation_cells_come_out_of_training_cells(published):
    t = table(200).assign(field=[f"f{i//5}" for i in range(200)])
    if published: t["split"] = ["test" if i % 5 == 0 else "train" for i in range(200)]
    how = dict(group=None if published else "field", test_fraction=.2)
    with_none, some = (create(None, images(200), t, validation_fraction=f, **how) for f in (0., .25))
    assert (with_none.rows("test") == some.rows("test")).all() and not len(with_none.rows("validation"))
    assert set(with_none.rows("train")) == set(some.rows("train")) | set(some.rows("validation"))
    assert abs(len(some.rows("validation"))/len(with_none.rows("train")) - .25) < .05
    if not published: assert (some.table.groupby("field").split.nunique() == 1).all()
    more = create(None, images(240), pd.concat([t, table(40).assign(cell_id=[f"n{i}" for i in range(40)], field="new", split="train")]),
                  validation_fraction=.25, **how) if published else some
    assert ((more.table.split[:200] == "validation") != (some.table.split == "validation")).sum() <= 12, "adding cells moves few"


@pytest.mark.parametrize("fraction, says", [(1., "validation_fraction = 1.0: give a share"), (-.1, "give a share"), (.5, "class 'a' has 2 cells of a single group")])
def test_a_validation_share_that_cannot_be(fraction, says):
    t = table(8).assign(group=["x", "y", "x", "z", "u", "v", "u", "w"])
    with pytest.raises(BadInput, match=says): create(None, images(8), t, group="group", test_fraction=.5, validation_fraction=fraction)
