"A person's files are inputs: what of them changed is read anew, by content, and what did not costs a second"
import json
import os
import time

import numpy as np
import pytest
from conftest import one_sentence, run, set_config, write_chapter
from test_workflow import everything, execute, planned

from integrated_cell import workflow
from integrated_cell.results import BadInput

ALL = ["data", "reference", "conditional", "classification"]


@pytest.fixture
def mine(study):
    "The toy study, whose first chapter reads a csv and the files that it names"
    write_chapter(study, "data", "factor = sum(Path(source).parent.joinpath(r.split(',')[0]).read_bytes()[0] for r in open(source).readlines()[1:])",
                  parameters='source = "simulated"  # or a csv\nfactor = 0')
    (study/"my_cells").mkdir()
    for name in "ab": (study/f"my_cells/{name}.tif").write_bytes(name.encode()*9)
    (study/"my_cells/cells.csv").write_text("path,structure\na.tif,A\nb.tif,B\n")
    set_config(study, chapters=ALL, data={"source": "my_cells/cells.csv"})
    return study


def factor(root):
    return json.loads((root/"results/toy/data/metrics.json").read_text())["factor"]


def test_what_changed_of_a_persons_files_is_read_again(mine):
    assert planned(mine) == ALL and not (mine/"results").exists(), "a dry run changes nothing"
    execute(mine)
    assert planned(mine) == [] and factor(mine) == ord("a") + ord("b")
    os.utime(mine/"my_cells/a.tif")
    (mine/"my_cells/cells.csv").write_text((mine/"my_cells/cells.csv").read_text())
    before = everything(mine)
    assert planned(mine) == [] and everything(mine) == before, "touched and written again: the content decides"
    (mine/"my_cells/a.tif").write_bytes(b"c"*9)  # of the same size
    assert planned(mine) == ALL and everything(mine) == before
    execute(mine)
    assert planned(mine) == [] and factor(mine) == ord("c") + ord("b")
    (mine/"my_cells/cells.csv").write_text("path,structure\na.tif,A\n")
    assert planned(mine) == ALL
    (mine/"my_cells/cells.csv").write_text("path,structure\na.tif,A\nlost.tif,B\n")
    out, err = run(mine, "snakemake", "--quiet", "all", "--cores", 1, "--config", "run=toy", rc=2)
    assert one_sentence(err) and "row 2 of my_cells/cells.csv: my_cells/lost.tif does not exist" in err


@pytest.mark.parametrize("ask", ["again", "delete"])
def test_data_are_made_anew_when_asked(mine, ask):
    make = "integrated-cell", "chapter", "data", "--config", "config/toy.yaml"
    run(mine, *make)
    assert planned(mine) == ALL[1:] and factor(mine) == ord("a") + ord("b")
    if ask == "again": run(mine, "integrated-cell", "again", "data", "--config", "config/toy.yaml")
    else: (mine/"results/toy/data/metrics.json").unlink()
    (mine/"my_cells/a.tif").write_bytes(b"c"*9)
    run(mine, *make)
    assert planned(mine) == ALL[1:] and factor(mine) == ord("c") + ord("b")


def test_what_changes_while_a_chapter_runs_is_told(mine):
    write_chapter(mine, "data", "Path('my_cells/a.tif').write_bytes(b'c')", parameters='source = "simulated"\nfactor = 0')
    out, err = run(mine, "integrated-cell", "chapter", "data", "--config", "config/toy.yaml", rc=2)
    assert "my_cells/a.tif was changed while the chapter data ran; run it again" in err and "Traceback" not in err
    assert not (mine/"results/toy/data/metrics.json").exists() and not list((mine/"results/toy/data").glob("finished-*"))


@pytest.mark.parametrize("chapter, parameter", [("yeast", "archive"), ("screen", "folder")])
def test_folders_of_pairs_and_plates_are_inputs_too(study, chapter, parameter):
    write_chapter(study, chapter, "", parameters=f'{parameter} = ""  # of the toy\nfactor = 2')
    set_config(study, chapters=[chapter], **{chapter: {parameter: "mine"}})
    def sign(): return workflow.sign(workflow.read_config(study/"config/toy.yaml"), chapter)
    with pytest.raises(BadInput, match="mine: no such file or folder"): sign()
    for k, name in enumerate(["mine/a/1.png", "mine/a/2.png", "mine/.hidden", "mine/.zattrs"]):
        (study/name).parent.mkdir(parents=True, exist_ok=True)
        (study/name).write_text("old")
    first = sign()
    run(study, "integrated-cell", "chapter", chapter, "--config", "config/toy.yaml")
    assert sign() == first and (study/f"results/toy/{chapter}/{first}").exists()
    (study/"mine/a/.DS_Store").write_text("a file manager was here")
    assert sign() == first
    for change in (lambda: (study/"mine/a/2.png").write_text("new"), lambda: (study/"mine/a/3.png").write_text("more"),
                   lambda: (study/"mine/a/1.png").unlink()):
        change()
        assert sign() != first


def test_ten_thousand_images_are_looked_at_in_a_second(mine):
    rows = ["path,structure"]
    for i in range(10_000):
        (mine/f"my_cells/{i}.tif").write_bytes(b"%d" % i)
        rows.append(f"{i}.tif,A")
    (mine/"my_cells/cells.csv").write_text("\n".join(rows))
    config = workflow.read_config(mine/"config/toy.yaml")
    out, values = mine/"results/toy/data", workflow.parameters(config, "data")
    began = workflow.files_of(mine, mine, out, values)
    out.mkdir(parents=True)
    done = workflow.finish(out, time.time() + 60, mine, values, began, mine)  # as if they had been there for a minute
    took = []
    for _ in range(3):
        t = time.process_time()
        assert workflow.sign(config, "data") == done.name
        took.append(time.process_time() - t)
    assert min(took) < 1, took


def test_a_training_never_goes_on_from_other_cells(tmp_path, capsys):
    "An image that is not in the first batch changed: nothing but the sum of the store tells"
    import torch
    from integrated_cell.data.cells import Cells
    from integrated_cell.integration import reference
    from integrated_cell.training.train import fit
    x = np.random.default_rng(0).integers(0, 256, (24, 3, 8, 12, 16), np.uint8)
    table = dict(cell_id=[str(i) for i in range(24)], structure=["A", "B"]*12)

    def trained(x, n_epochs):
        torch.manual_seed(0)
        cells = Cells.create(tmp_path/"cells", x, table, (1, 1, 1), ["membrane", "structure", "dna"], {"source": "own images"})
        batches = cells.batches(cells.rows("train"), 4)
        model = reference.Reference((8, 12, 16), 4, 1/16)
        history = fit(model, reference.step, reference.optimisers(model), batches, n_epochs, tmp_path/"out",
                      settings=dict(data=cells.provenance), show=False)
        return len(history), capsys.readouterr().out, cells.rows("train")[batches.order(0)[-1][0]]
    _, said, late = trained(x, 1)
    assert "anew" not in said
    assert "anew" not in trained(x, 2)[1], "the same cells, made again: it goes on"
    x[late] //= 2
    n, said, _ = trained(x, 3)
    assert n == 3 and "Training starts anew" in said and "content" in said
