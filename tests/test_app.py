"The command line on image files: Algorithm 3 from a person's own pictures"
import re
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from bioio import BioImage
from conftest import PROJECT, one_sentence, run
from scipy import ndimage

from integrated_cell.app import main
from integrated_cell.data.image import image_name
from integrated_cell.data.plates import luminance
from integrated_cell.integration.conditional import Conditional
from integrated_cell.integration.flow_matching import FlowMatching, draw
from integrated_cell.integration.integrate import decode, integrate
from integrated_cell.integration.frame import write_ome
from integrated_cell.integration.prior import Normal
from integrated_cell.integration.reference import Reference
from integrated_cell.models import open_model
from integrated_cell.profiling.cytogan import profile_cells
from integrated_cell.simulation.screen import simulate_screen
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
    out, err = run(tmp_path, "integrated-cell", "integrate", model, "a.ome.tif", "--out", "out", "--frame", "model")
    assert out.split() == ["out/a.integrated.ome.tif"]
    monkeypatch.chdir(tmp_path)
    assert main(["integrate", str(model), "b.tif", "--out", "out", "--channels", "membrane=0,dna=1", "--voxel-um", "0.25,0.15,0.15", "--frame", "model"]) == 0
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
        assert main(["integrate", str(model), str(tmp_path/"a.ome.tif"), "--out", str(tmp_path/out), "--frame", "model", *more]) == 0
    a, b = (BioImage(tmp_path/out/"a.integrated.ome.tif").data[0, 0] for out in ("as_said", "half"))
    assert (b > 127).sum() < .3*(a > 127).sum()


def test_masks_channels_axes_and_scenes_as_for_training(model, tmp_path, capsys):
    cell, voxel_um = one_cell(), (.25, .15, .15)
    there, masks = cell > 60, dict(cells="m.tif", nuclei="n.tif")
    def made(name, *more):
        code = main(["integrate", str(model), str(tmp_path/name), "--out", str(tmp_path/"out"), "--frame", "model", *more])
        label = f"_{more[more.index('--label') + 1]}" if "--label" in more else ""
        return BioImage(tmp_path/f"out/{image_name(name)}{label}.integrated.ome.tif").data[0] if code == 0 else capsys.readouterr().err
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


# ------------------------------------------------------------------------------------------------ back to the image

UM = .25, .15, .15


def aslant(angle=35., shift=(1, 9, -12), shape=(20, 90, 110)):
    "A tapered cell, turned and off the middle: membrane and DNA with a texture, masks"
    z, y, x = np.meshgrid(*[(np.arange(n) - (n - 1)/2 - s)*v for n, v, s in zip(shape, UM, shift)], indexing="ij")
    a = np.deg2rad(angle)
    u, w = np.cos(a)*x + np.sin(a)*y, -np.sin(a)*x + np.cos(a)*y
    cell, nucleus = (u/4)**2 + (w/(2.5 - u/4))**2 + (z/1.7)**2 < 1, ((u - .5)/1.5)**2 + ((w - .2)/1.1)**2 + (z/.9)**2 < 1
    bright = ndimage.gaussian_filter(np.random.default_rng(0).random(shape), (2, 4, 4))
    bright = (bright - bright.min())/np.ptp(bright)
    light = np.stack([cell*(80 + 170*bright), nucleus*(100 + 150*bright)])
    return ndimage.gaussian_filter(light, (0, .5, 1, 1)).astype(np.uint8), cell, nucleus  # no microscope shows an edge


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    "A model whose cells have room for that one"
    path = tmp_path_factory.mktemp("wide")/"conditional"
    save(Conditional((20, 32, 48), ["LAMP2", "TOM20"], 4, 4, width=1/16, voxel_um=(.25, .25, .25)), path)
    return path


def put(folder, name, image, channels, voxel_um=UM): return str(write_ome(folder/name, image.astype(np.uint8), channels, voxel_um))


@pytest.mark.parametrize("angle, flip", [(0, 1), (35, 1), (35, -1), (160, 1), (260, -1)])
def test_there_and_back(wide, tmp_path, angle, flip):
    image, cell, nucleus = (a[..., ::flip, :] for a in aslant(angle))
    args = [put(tmp_path, "a.ome.tif", image, ["membrane", "dna"])]
    for option, mask in ("--mask", cell), ("--nucleus-mask", nucleus):
        args += [option, put(tmp_path, f"{option[2:]}.ome.tif", mask[None], ["mask"])]
    assert main(["integrate", str(wide), *args, "--out", str(tmp_path/"out")]) == 0
    made = BioImage(tmp_path/"out/a.integrated.ome.tif")
    found = made.data[0]
    assert found.shape == (4, *cell.shape) and np.allclose(made.physical_pixel_sizes, UM)
    for c in (0, 1): assert np.corrcoef(image[c][cell], found[c][cell])[0, 1] > .95
    assert not found[:, ~cell].any() and (found[2:][:, cell] > 0).mean() > .9


def test_a_flat_image_goes_there_and_back(tmp_path):
    save(Conditional((32, 48), ["LAMP2"], 4, 4, width=1/16, voxel_um=(.25, .25)), tmp_path/"model")
    image, cell, nucleus = (a.max(-3) for a in aslant())
    args = [put(tmp_path, "a.ome.tif", image, ["membrane", "dna"], UM[1:]), "--cells", put(tmp_path, "c.ome.tif", cell[None], ["c"], UM[1:])]
    assert main(["integrate", str(tmp_path/"model"), *args, "--out", str(tmp_path/"out")]) == 0
    found = BioImage(tmp_path/"out/a.integrated.ome.tif").data[0, :, 0]
    assert found.shape == (3, *cell.shape) and np.corrcoef(image[0][cell], found[0][cell])[0, 1] > .95 and not found[:, ~cell].any()


def test_a_field_becomes_one_image(wide, tmp_path, capsys):
    (image, cell, nucleus), (other, its, core) = aslant(), aslant(100, (0, -6, 8))
    far = np.concatenate([image, other, image[..., :60]], 3)
    labels, nuclei = np.concatenate([cell*3, its*7, cell[..., :60]*9], 2), np.concatenate([nucleus*2, core*1, nucleus[..., :60]*4], 2)
    args = [put(tmp_path, "f.ome.tif", far, ["membrane", "dna"]), "--cells", put(tmp_path, "c.ome.tif", labels[None], ["c"]),
            "--nuclei", put(tmp_path, "n.ome.tif", nuclei[None], ["n"])]
    assert main(["integrate", str(wide), *args, "--out", str(tmp_path/"out"), "--format", "ome.zarr"]) == 0
    assert "left out: " in (err := capsys.readouterr().err) and "cell 9: the border of the field cuts it" in err
    found, whole = BioImage(tmp_path/"out/f.integrated.ome.zarr").data[0], np.isin(labels, (3, 7))
    for k in (3, 7): assert np.corrcoef(far[0][labels == k], found[0][labels == k])[0, 1] > .95
    assert not found[:, ~whole].any() and (found[2:][:, whole] > 0).mean() > .9
    assert main(["integrate", str(wide), *args, "--out", str(tmp_path/"apart"), "--frame", "model"]) == 0
    assert sorted(p.name for p in (tmp_path/"apart").iterdir()) == [f"f_{k}.integrated.ome.tif" for k in (3, 7)]


def test_colours_that_a_viewer_shows(wide, tmp_path):
    import zarr
    from ome_types import validate_xml
    path = put(tmp_path, "a.ome.tif", aslant()[0], ["membrane", "dna"])
    for form in ("ome.tif", "ome.zarr"): assert main(["integrate", str(wide), path, "--out", str(tmp_path/"out"), "--format", form]) == 0
    made = BioImage(tmp_path/"out/a.integrated.ome.tif")
    validate_xml(tifffile.TiffFile(tmp_path/"out/a.integrated.ome.tif").ome_metadata)
    shown = [c.color.as_hex(format="long") for c in made.ome_metadata.images[0].pixels.channels]
    assert shown == ["#ff00ff", "#00ffff", "#ffff00", "#00ff00"]
    omero = zarr.open_group(tmp_path/"out/a.integrated.ome.zarr").attrs["ome"]["omero"]["channels"]
    assert [(c["label"], f"#{c['color'].lower()}") for c in omero] == list(zip(made.channel_names, shown))
    assert {(c["window"]["start"], c["window"]["end"]) for c in omero} == {(0, 255)}


# ------------------------------------------------------------------------------------------------ encode, decode, variation, draw

def test_codes_and_back(wide, tmp_path, capsys):
    image, cell, nucleus = aslant()
    three = np.stack([image[0], image[1]//2 + 1, image[1]])
    path = put(tmp_path, "a.ome.tif", three, ["membrane", "structure", "dna"])
    two = put(tmp_path, "b.ome.tif", image, ["membrane", "dna"])
    codes = str(tmp_path/"codes.parquet")
    assert main(["encode", str(wide), path, two, "--out", codes]) == 0
    table = pd.read_parquet(codes)
    assert list(table.cell) == ["a", "b"] and list(table.path) == [path, two] and set(table.model) == {str(wide)}
    assert table.weights.str.fullmatch("[0-9a-f]{8}").all() and {"commit", "frame_x", "frame_turn_deg", "z_r_3", "z_s_3", "p_1"} <= set(table)
    assert table.z_s_0.notna().tolist() == [True, False] and np.allclose(table.p_0[0] + table.p_1[0], 1)
    assert np.allclose(table.filter(regex="z_r").iloc[0], table.filter(regex="z_r").iloc[1], atol=1e-4), "the shape is the same"
    assert main(["decode", str(wide), codes, "--out", str(tmp_path/"out")]) == 0
    names = {k: BioImage(tmp_path/f"out/{k}.decoded.ome.tif").channel_names for k in "ab"}
    assert names["a"] in (["membrane", "LAMP2", "dna"], ["membrane", "TOM20", "dna"]) and names["b"] == ["membrane", "dna", "LAMP2", "TOM20"]
    capsys.readouterr()
    save(Conditional((20, 32, 48), ["LAMP2", "TOM20"], 4, 4, width=1/16, voxel_um=(.25, .25, .25)), tmp_path/"other")
    for args, words in (
            (["decode", str(tmp_path/"other"), codes, "--out", str(tmp_path/"out")], "codes mean something to their own model alone"),
            (["decode", str(wide), two, "--out", str(tmp_path/"out")], "is no parquet of codes"),
            (["decode", str(wide), str(tmp_path/"no.parquet"), "--out", str(tmp_path/"out")], "does not exist"),
            (["integrate", str(wide), str(tmp_path/"no.npy"), "--out", str(tmp_path/"out")], "no.npy"),
            (["encode", str(wide), two, "--out", str(tmp_path/"codes.csv")], "end its name in .parquet")):
        assert main(args) == 2
        assert one_sentence(err := capsys.readouterr().err) and words in err, err


def test_a_place_that_cannot_be_and_codes_that_are_not_there(wide, tmp_path, capsys):
    assert main(["draw", str(wide), "--out", "/proc/of_nobody", "-n", "1"]) == 2
    assert one_sentence(err := capsys.readouterr().err) and "/proc/of_nobody cannot be made; give another place" in err, err
    assert main(["decode", str(wide), str(tmp_path/"z.npy"), "--out", str(tmp_path/"d")]) == 2
    assert one_sentence(err := capsys.readouterr().err) and "z.npy: no such file" in err, err
    assert main(["chapter", "data", "--config", "config/quick.yaml", "-p", "seed=1", "-p", "seed=2"]) == 2
    assert one_sentence(err := capsys.readouterr().err) and "-p seed is given twice" in err, err


def test_codes_of_a_path_without_images(wide, tmp_path):
    np.save(tmp_path/"walk.npy", np.zeros((2, 4)))
    assert main(["decode", str(wide), str(tmp_path/"walk.npy"), "--out", str(tmp_path/"out")]) == 0
    seen = BioImage(tmp_path/"out/walk.1.decoded.ome.tif")
    assert seen.channel_names == ["membrane", "dna", "LAMP2", "TOM20"] and seen.data.shape == (1, 4, 20, 32, 48)


def test_variation_is_mean_and_deviation_of_draws(wide, tmp_path):
    path = put(tmp_path, "a.ome.tif", aslant()[0], ["membrane", "dna"])
    assert main(["variation", str(wide), path, "--out", str(tmp_path/"out"), "-n", "3", "--frame", "model"]) == 0
    made = BioImage(tmp_path/"out/a.variation.ome.tif")
    assert made.channel_names == ["membrane", "dna", "LAMP2 mean", "LAMP2 sd", "TOM20 mean", "TOM20 sd"]
    model, rng = load(wide, Conditional), torch.Generator().manual_seed(0)
    z_r = model.enc_r(torch.from_numpy(made.data[:, :2].astype(np.float32)/255))
    x = np.stack([decode(model, Normal(), z_r, torch.tensor([1]), u[None])[0].numpy() for u in torch.randn(3, 4, generator=rng)])
    for expected, found in ((x.mean(0), made.data[0, 4]), (x.std(0), made.data[0, 5])):
        assert np.abs(255*expected - found).max() < .501, "the nearest grey value, either of two where both are as near"


def test_flow_matching_goes_through_the_same_doors(tmp_path, capsys):
    flows = FlowMatching(SHAPE, ["LAMP2", "TOM20"], width=4, depth=2, voxel_um=VOXEL).eval()
    save(flows, tmp_path/"flow"); save(FlowMatching(SHAPE, ["DMSO"], 3, 0, width=4, depth=2), tmp_path/"screen")
    path = str(tmp_path/"a.ome.tif")
    write_ome(path, cell := one_cell(SHAPE, VOXEL), ["membrane", "dna"], VOXEL)
    for command in (["integrate"], ["variation", "-n", "2"]):
        assert main([*command, str(tmp_path/"flow"), path, "--out", str(tmp_path/"out")]) == 0
        assert main([*command, str(tmp_path/"screen"), path, "--out", str(tmp_path/"out")]) == 2
        assert one_sentence(err := capsys.readouterr().err) and "draws 3 channels, given 0" in err
    assert main(["draw", str(tmp_path/"screen"), "-n", "1", "--structure", "DMSO", "--out", str(tmp_path/"new")]) == 0
    assert BioImage(tmp_path/"new/DMSO_0.drawn.ome.tif").channel_names == ["dna", "tubulin", "actin"]
    for of, more, words in (("screen", ["--structure", "taxol"], "choose from DMSO"), ("flow", [], "given 2 channels")):
        assert main(["draw", str(tmp_path/of), *more, "--out", str(tmp_path/"new")]) == 2
        assert one_sentence(err := capsys.readouterr().err) and words in err
    made = BioImage(tmp_path/"out/a.integrated.ome.tif").data[0]
    x_r = torch.from_numpy(cell[None].astype(np.float32)/255)
    own = torch.Generator().manual_seed(crc32(x_r.numpy().tobytes()))  # noise of this cell, a draw of it a structure
    x_s = draw(flows, x_r, torch.tensor([1]), torch.randn(2, 1, *SHAPE, generator=own)[1:])
    assert np.abs(255*x_s[0, 0].numpy() - made[3]).max() < .501


def test_a_kept_model_does_all_of_it(tmp_path):
    cell = aslant(35, (0, 0, 0), (16, 64, 96))[0]
    path = put(tmp_path, "a.ome.tif", cell, ["membrane", "dna"], (.65, .65, .65))
    for args in (["encode", "hela3d", path, "--out", str(tmp_path/"codes.parquet")], ["decode", "hela3d", str(tmp_path/"codes.parquet")],
                 ["variation", "hela3d", path, "-n", "2"], ["integrate", "hela3d", path], ["draw", "hela3d", "-n", "1"],
                 ["draw", "hela3d", "-n", "1", "--structure", "nucleolin", "--seed", "1"]):
        assert main([*args, *([] if "--out" in args else ["--out", str(tmp_path/"out")])]) == 0
    table = pd.read_parquet(tmp_path/"codes.parquet")
    assert table.model[0] == "hela3d" and table.commit[0] and len(table.weights[0]) == 8
    assert BioImage(tmp_path/"out/cell_0.drawn.ome.tif").channel_names == ["membrane", "dna", "nucleolin"]


def test_a_screens_model_turns_crops_into_profiles(tmp_path, capsys):
    cells, out = simulate_screen(2, (68, 68), test_fraction=0), str(tmp_path/"profiles.parquet")
    for i in range(2): tifffile.imwrite(tmp_path/f"crop_{i}.tif", cells[i], photometric="minisblack", metadata={"axes": "CYX"})
    paths, said = [str(tmp_path/f"crop_{i}.tif") for i in range(2)], ["--channels", "dna=0,tubulin=1,actin=2"]
    assert main(["encode", "mcf7", *paths, *said, "--out", out]) == 0
    table = pd.read_parquet(out)
    of_store = profile_cells(open_model("mcf7")["vae"], np.stack([luminance(x) for x in cells[:]]), np.arange(2))
    assert np.allclose(table.filter(like="profile_"), of_store, atol=1e-5)
    assert table.cell.tolist() == ["crop_0", "crop_1"] and table.model[0] == "mcf7" and table.commit[0]
    assert f"as {of_store.shape[1]} numbers" in open_model("mcf7").about.title
    for more, words in ((["--mask", "a.tif"], "leave --mask out"), (["--voxel-um", "1,1"], "leave --voxel-um out"),
                        (["--channels", "membrane=0"], "write dna=0,tubulin=1,actin=2")):
        assert main(["encode", "mcf7", *paths, "--out", out, *more]) == 2
        assert one_sentence(err := capsys.readouterr().err) and words in err, err
        assert pd.read_parquet(out).equals(table), "nothing is lost"
    tifffile.imwrite(tmp_path/"wide.tif", cells[0][:, :60], photometric="minisblack", metadata={"axes": "CYX"})
    assert main(["encode", "mcf7", paths[0], str(tmp_path/"wide.tif"), *said, "--out", out]) == 2
    assert "60 x 68 pixels" in capsys.readouterr().err and len(pd.read_parquet(out)) == 1, "the other crop is not lost"


def test_a_model_that_cannot_says_so(tmp_path, capsys):
    save(Reference((16, 24, 40), 4, width=1/16, voxel_um=(.3, .3, .3)), tmp_path/"reference")
    path = put(tmp_path, "a.ome.tif", aslant()[0], ["membrane", "dna"])
    for command in ("integrate", "variation", "encode"):
        out = "x.parquet" if command == "encode" else "out"
        assert main([command, str(tmp_path/"reference"), path, "--out", str(tmp_path/out)]) == 2
        assert one_sentence(err := capsys.readouterr().err) and "cannot" in err and "it holds reference; give one with 'conditional'" in err
    assert main(["draw", str(tmp_path/"reference"), "--out", str(tmp_path/"out"), "-n", "1"]) == 0
    assert BioImage(tmp_path/"out/cell_0.drawn.ome.tif").channel_names == ["membrane", "dna"]
    assert main(["draw", str(tmp_path/"reference"), "--out", str(tmp_path/"out"), "--structure", "LAMP2"]) == 2
    assert main(["draw", "hela9d", "--out", str(tmp_path/"out")]) == 2
    assert "hela3d, " in capsys.readouterr().err.split("; there are ")[1]


def test_a_file_a_channel_and_tables(wide, tmp_path, capsys, monkeypatch):
    image, cell, nucleus = aslant()
    for k in (1, 2):
        for name, x in zip(("w1", "w2"), image): put(tmp_path, f"c_{k}_{name}.ome.tif", x[None], [name])
    monkeypatch.chdir(tmp_path)
    args = "--out", "out", "--channels", "membrane=w1,dna=w2"
    assert main(["integrate", str(wide), "{cell}_{channel}.ome.tif", *args]) == 0
    (tmp_path/"t").mkdir()
    (tmp_path/"t/cells.csv").write_text("membrane_path,dna_path\n../c_1_w1.ome.tif,../c_1_w2.ome.tif\n")
    assert main(["integrate", str(wide), "t/cells.csv", "--out", "out"]) == 0
    files = sorted(p.name for p in (tmp_path/"out").iterdir())
    assert files == ["c_1.integrated.ome.tif", "c_1_w1.integrated.ome.tif", "c_2.integrated.ome.tif"]
    assert (BioImage(tmp_path/"out"/files[0]).data == BioImage(tmp_path/"out"/files[1]).data).all()
    capsys.readouterr()
    (tmp_path/"c_2_w2.ome.tif").unlink()
    assert main(["integrate", str(wide), "{cell}_{channel}.ome.tif", *args]) == 2
    assert "c_2_w2.ome.tif, the dna of its image, is not there" in capsys.readouterr().err
