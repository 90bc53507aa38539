"The command line on image files: Algorithm 3 from a person's own pictures"
import re

import numpy as np
import pytest
import tifffile
import torch
from bioio import BioImage
from conftest import PROJECT, one_sentence, run

from integrated_cell.app import main, write_ome
from integrated_cell.data.image import image_name
from integrated_cell.integration.conditional import Conditional
from integrated_cell.integration.integrate import integrate
from integrated_cell.training.train import load, save

SHAPE, VOXEL = (12, 20, 24), (.4, .4, .4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")/"conditional"
    save(Conditional(SHAPE, ["LAMP2", "TOM20"], 4, 4, width=1/16, voxel_um=VOXEL), path)
    return path


def ball(shape, voxel_um, radius_um, centre_um=(0, 0, 0)):
    "A filled ellipsoid, long in X, in 8 bit with a dim background"
    grid = np.meshgrid(*[(np.arange(n) - (n - 1)/2)*v for n, v in zip(shape, voxel_um)], indexing="ij")
    far = sum(((g - c)/(radius_um*s))**2 for g, c, s in zip(grid, centre_um, (.8, 1, 1.4)))
    return np.where(far < 1, 200 - 60*far, 10).astype(np.uint8)


def one_cell(shape=(16, 50, 60), voxel_um=(.25, .15, .15)):
    return np.stack([ball(shape, voxel_um, 2.), ball(shape, voxel_um, 1., (0, .2, .3))])


def test_own_images_become_all_structures(model, tmp_path, monkeypatch):
    cell = one_cell()
    write_ome(tmp_path/"a.ome.tif", cell[::-1], ["DNA", "membrane"], (.25, .15, .15))  # named in the file, in another order
    tifffile.imwrite(tmp_path/"b.tif", cell, metadata={"axes": "CZYX"})  # says nothing of itself
    out, err = run(tmp_path, "integrated-cell", "integrate", model, "a.ome.tif", "--out", "out")
    assert out.split() == ["out/a.integrated.ome.tif"]
    monkeypatch.chdir(tmp_path)
    assert main(["integrate", str(model), "b.tif", "--out", "out", "--channels", "membrane=0,dna=1", "--voxel-um", "0.25,0.15,0.15"]) == 0
    a, b = BioImage(tmp_path/"out/a.integrated.ome.tif"), BioImage(tmp_path/"out/b.integrated.ome.tif")
    assert a.channel_names == ["membrane", "dna", "LAMP2", "TOM20"] and a.data.shape == (1, 4, *SHAPE) and a.data.dtype == np.uint8
    assert np.allclose(a.physical_pixel_sizes, VOXEL)
    assert (a.data == b.data).all() and a.data[0, 0].max() == 255
    x_s = integrate(load(model, Conditional), torch.from_numpy(a.data[:, :2].astype(np.float32)/255))
    assert (np.rint(x_s.numpy()*255) == a.data[:, 2:]).all()


def test_an_image_of_the_models_shape_is_taken_as_it_is(model, tmp_path):
    cell = one_cell(SHAPE, VOXEL)
    write_ome(tmp_path/"a.ome.tif", cell, ["membrane", "dna"], VOXEL)
    assert main(["integrate", str(model), str(tmp_path/"a.ome.tif"), "--out", str(tmp_path/"out")]) == 0
    assert (BioImage(tmp_path/"out/a.integrated.ome.tif").data[0, :2] == cell).all()


@pytest.mark.parametrize("make, arguments, words", [
    (lambda p: write_ome(p, one_cell(), ["a", "b"], (.25, .15, .15)), [], ["which of its 2 channels (called a, b) is membrane"]),
    (lambda p: tifffile.imwrite(p, one_cell(), metadata={"axes": "CZYX"}), ["--channels", "membrane=0,dna=1"], ["a.ome.tif"]),
    (lambda p: write_ome(p, one_cell(), ["membrane", "dna"], (.25, .15, .15)), ["--channels", "membrane=0,dna=5"], ["no channel 5"]),
    (lambda p: write_ome(p, one_cell(), ["membrane", "dna"], (.25, .15, .15)), ["--channels", "membrane=first"], ["no channel first", "membrane, dna"]),
    (lambda p: write_ome(p, one_cell(), ["membrane", "dna"], (.25, .15, .15)), ["--channels", "membrane=1,dna=1"], ["both channel 1"]),
    (lambda p: write_ome(p, one_cell(), ["membrane", "dna"], (.25, .15, .15)), ["--voxel-um", "0,1,1"], ["above 0"]),
    (lambda p: write_ome(p, np.full((2, 8, 30, 30), 7, np.uint8), ["membrane", "dna"], (.25, .15, .15)), [], ["a.ome.tif", "constant"]),
    (lambda p: p.write_bytes(b"not a picture"), [], ["a.ome.tif"]),
    (lambda p: p.write_bytes(b""), [], ["a.ome.tif"]),
    (lambda p: None, [], ["a.ome.tif"]),
])
def test_bad_images_get_one_sentence_and_leave_nothing(model, tmp_path, monkeypatch, capsys, make, arguments, words):
    make(tmp_path/"a.ome.tif")
    monkeypatch.chdir(tmp_path)
    assert main(["integrate", str(model), "a.ome.tif", "--out", "out", *arguments]) == 2
    err = capsys.readouterr().err
    assert one_sentence(err) and all(w in err for w in words), err
    assert not (tmp_path/"out").exists()


def test_a_model_that_is_not_ours(tmp_path, capsys):
    write_ome(tmp_path/"a.ome.tif", one_cell(), ["membrane", "dna"], (.25, .15, .15))
    (tmp_path/"model").mkdir()
    (tmp_path/"model/model.json").write_text("{}")
    assert main(["integrate", str(tmp_path/"model"), str(tmp_path/"a.ome.tif"), "--out", str(tmp_path/"out")]) == 2
    err = capsys.readouterr().err
    assert one_sentence(err) and not (tmp_path/"out").exists()


def test_an_unknown_source(tmp_path):
    out, err = run(tmp_path, "integrated-cell", "fetch", "hela4d", rc=2)
    assert one_sentence(err) and "hela4d" in err


def test_the_lines_of_the_readme():
    said = {}
    for block in re.findall(r"```python\n(.*?)```", (PROJECT/"README.md").read_text(), re.S): exec(block, said)
    assert len(said["cells"]) == 100 and said["picture"].shape[-1] == 3
    assert said["other"][0] > said["same"][0] and said["accuracy"] > 2/12


def test_a_voxel_size_is_never_ignored(model, tmp_path):
    "An image of the model's shape at another voxel size is prepared, not taken as it is"
    write_ome(tmp_path/"a.ome.tif", one_cell(SHAPE, VOXEL), ["membrane", "dna"], VOXEL)
    for out, more in ("as_said", []), ("half", ["--voxel-um", ",".join(str(v/2) for v in VOXEL)]):
        assert main(["integrate", str(model), str(tmp_path/"a.ome.tif"), "--out", str(tmp_path/out), *more]) == 0
    a, b = (BioImage(tmp_path/out/"a.integrated.ome.tif").data[0, 0] for out in ("as_said", "half"))
    assert (b > 127).sum() < .3*(a > 127).sum()


def test_masks_channels_axes_and_scenes_as_for_training(model, tmp_path, capsys):
    cell, voxel_um = one_cell(), (.25, .15, .15)
    there, masks = cell > 60, dict(cells="m.tif", nuclei="n.tif")
    def made(name, *more):
        code = main(["integrate", str(model), str(tmp_path/name), "--out", str(tmp_path/"out"), *more])
        return BioImage(tmp_path/f"out/{image_name(name)}.integrated.ome.tif").data[0] if code == 0 else capsys.readouterr().err
    write_ome(tmp_path/"right.ome.tif", cell, ["membrane", "dna"], voxel_um)
    for k, (file, x) in enumerate(zip(masks.values(), there)): tifffile.imwrite(tmp_path/file, np.concatenate([x*0, x*(k + 3)], 2).astype(np.uint8))
    masked = ("--mask", str(tmp_path/"m.tif"), "--nucleus-mask", str(tmp_path/"n.tif"), "--label", "3")
    right = made("right.ome.tif")
    write_ome(tmp_path/"2024.01.05_a.ome.tif", np.concatenate([cell[::-1, :, ::-1], cell[::-1]], 3), ["DAPI", "CMDRP"], voxel_um)
    assert "which of its 2 channels (called DAPI, CMDRP) is membrane and which dna" in made("2024.01.05_a.ome.tif", *masked)
    found = made("2024.01.05_a.ome.tif", "--channels", "membrane=cmdrp,dna=0", *masked)
    assert np.corrcoef(found[0].ravel(), right[0].ravel())[0, 1] > .9
    assert "has a label and no cell_mask" in made("2024.01.05_a.ome.tif", "--label", "3")
    assert "2 files of cell_mask and 1 images" in made("2024.01.05_a.ome.tif", *masked, "--mask", "x.tif")
    tifffile.imwrite(tmp_path/"plain.tif", cell.swapaxes(0, 1), photometric="minisblack")
    said = "--channels", "membrane=0,dna=1", "--voxel-um", "0.25,0.15,0.15"
    assert "does not say what its axes (16, 2, 50, 60) are" in made("plain.tif", *said)
    assert (made("plain.tif", *said, "--axes", "ZCYX") == right).all()
    with tifffile.TiffWriter(tmp_path/"two.ome.tif", ome=True) as f:
        for name, x in ("a", cell[::-1]), ("b", cell): f.write(x, photometric="minisblack", metadata=dict(axes="CZYX", Name=name))
    assert "holds 2 images (a, b)" in made("two.ome.tif", *said) and (made("two.ome.tif", *said, "--scene", "b") == right).all()


def test_the_other_images_go_on(model, tmp_path, capsys):
    (tmp_path/"bad.ome.tif").write_bytes(b"not a picture")
    write_ome(tmp_path/"good.ome.tif", one_cell(), ["membrane", "dna"], (.25, .15, .15))
    assert main(["integrate", str(model), str(tmp_path/"bad.ome.tif"), str(tmp_path/"good.ome.tif"), "--out", str(tmp_path/"out")]) == 2
    assert [p.name for p in (tmp_path/"out").iterdir()] == ["good.integrated.ome.tif"] and one_sentence(capsys.readouterr().err)


def test_out_must_be_a_folder(model, tmp_path, capsys):
    write_ome(tmp_path/"a.ome.tif", one_cell(), ["membrane", "dna"], (.25, .15, .15))
    assert main(["integrate", str(model), str(tmp_path/"a.ome.tif"), "--out", str(tmp_path/"a.ome.tif")]) == 2
    assert "is a file" in capsys.readouterr().err
