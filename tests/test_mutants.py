"""Damaged files of every kind, made with a fixed seed: each ends in one sentence of BadInput, or in what the whole file gives.

200 of each kind; MUTANTS=2000 pytest tests/test_mutants.py makes more."""
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from integrated_cell.data.cells import Cells
from integrated_cell.integration.reference import Reference
from integrated_cell.profiling.profiles import read_profiles, write_profiles
from integrated_cell.results import BadInput
from integrated_cell.training.train import load, save
from integrated_cell.workflow import parameters, read_config

N = int(os.environ.get("MUTANTS", 200))  # of each kind


def one_bit(data, rng): at = rng.integers(len(data)); return data[:at] + bytes([data[at] ^ 1 << rng.integers(8)]) + data[at + 1:]
def some_bytes(data, rng): at = rng.integers(len(data)); return data[:at] + rng.bytes(int(rng.integers(1, 9))) + data[at + 8:]
def cut(data, rng): return data[:rng.integers(len(data))]
def put_in(data, rng): at = rng.integers(len(data)); return data[:at] + rng.bytes(3) + data[at:]
def left_out(data, rng): at = rng.integers(len(data)); return data[:at] + data[at + rng.integers(1, 64):]
def twice(data, rng): at = rng.integers(len(data)); return data[:at] + data[rng.integers(len(data)):]
def another_number(data, rng):
    digits = [i for i, c in enumerate(data) if 48 <= c < 58] or [0]
    at = digits[rng.integers(len(digits))]
    return data[:at] + rng.choice([b"9", b"-1", b"1e9", b"null", b"1000000000000000000"]) + data[at + 1:]
def other_encoding(data, rng): return data.decode("latin-1").encode(rng.choice(["utf-16", "utf-32", "utf-7"]))


CHANGES = [one_bit, some_bytes, cut, put_in, left_out, twice, another_number, other_encoding]


def mutants(folder, names, read, same):
    "Change one file of a folder at a time; the faults, in words"
    rng, faults, whole = np.random.default_rng(0), [], read()
    for k in range(N):
        name, change = names[k % len(names)], CHANGES[k // len(names) % len(CHANGES)]
        good = (folder/name).read_bytes()
        (folder/name).write_bytes(change(good, rng))
        try:
            found = read()
            if not same(found, whole): faults.append(f"{k}: {change.__name__} of {name} was read as if it were whole")
        except BadInput as e:
            if "\n" in str(e) or len(str(e)) > 700: faults.append(f"{k}: {change.__name__} of {name}: {e} is no sentence")
        except Exception as e: faults.append(f"{k}: {change.__name__} of {name}: {type(e).__name__}: {str(e)[:200]}")
        (folder/name).write_bytes(good)
    return faults


@pytest.fixture
def store(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (130, 3, 4, 6, 8)).astype(np.uint8)
    table = pd.DataFrame({"cell_id": [f"c{i}" for i in range(130)], "structure": ["a", "b"]*65, "day": range(130)})
    Cells.create(tmp_path/"cells", x, table, (.3,)*3, ("membrane", "structure", "dna"), {"source": "mutants"})
    return tmp_path/"cells"


def test_stores(store):
    def read():
        cells = Cells.open(store)
        return cells[:], np.asarray(cells.images[::7]), cells.table, cells.voxel_um, cells.channels, cells.classes
    def same(a, b): return all(np.array_equal(p, q) for p, q in zip(a[:2], b[:2])) and a[2].equals(b[2]) and a[3:] == b[3:]
    parts = ["images.zarr/zarr.json", "cells.parquet", "store.json", "images.zarr/c/0/0/0/0/0", "images.zarr/c/2/0/0/0/0"]
    assert not mutants(store, parts, read, same)


def test_files_of_a_store_that_are_gone_or_another_cells(store):
    for p in [p for p in store.rglob("*") if p.is_file()]:
        p.rename(store.parent/"away")
        with pytest.raises(BadInput): Cells.open(store)[:]
        (store.parent/"away").rename(p)
    shutil.rmtree(store/"images.zarr/c/1")
    with pytest.raises(BadInput): Cells.open(store)


def test_models(tmp_path):
    torch.manual_seed(0)
    save(Reference((8, 12, 16), 8, .05), tmp_path)
    def same(a, b): return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items()) and a.settings == b.settings
    assert not mutants(tmp_path, ["model.json", "model.safetensors"], lambda: load(tmp_path, Reference), same)


def test_configs(study):
    "A changed number is another run, not damage: a sentence, or parameters of the declared types"
    said = {"chapters": ["data", "reference"], "all": {"seed": 1}, "data": {"factor": 3}, "reference": {"factor": 12}}
    (study/"config/toy.yaml").write_text("# größer als gewöhnlich\n" + yaml.safe_dump(said), encoding="utf-8")
    def read():
        config = read_config(study/"config/toy.yaml")
        return [v for c in config["chapters"] for k, v in parameters(config, c).items() if k != "results"]
    def same(a, b): return all(type(v) is int and v >= 0 for v in a)
    assert not mutants(study/"config", ["toy.yaml"], read, same)


@pytest.mark.parametrize("ending", ["parquet", "csv", "csv.gz"])
def test_profiles(tmp_path, ending):
    "A csv has no sum: a changed number is another profile, so only what is not read as one is asked"
    rng, path = np.random.default_rng(0), tmp_path/f"p.{ending}"
    write_profiles(path, pd.DataFrame(rng.normal(size=(12, 4))), pd.DataFrame({"compound": list("aabbccddeeff"), "moa": list("uuuuuuvvvvvv")}))
    assert not mutants(tmp_path, [path.name], lambda: read_profiles(path), lambda a, b: True)


def test_metrics_and_notebooks(study):
    from integrated_cell.parameters import declared
    path = study/"nbs/experiments/data.ipynb"
    assert not mutants(path.parent, [path.name], lambda: declared(path), lambda a, b: True)
    assert json.loads(path.read_text())
