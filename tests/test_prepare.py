"Preparation: geometry against known shapes, files in every state, own images, and HeLa stacks from their originals"
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from bioio_ome_zarr.writers import Channel, OMEZarrWriter
from scipy import ndimage

from integrated_cell.data.cells import Cells
from integrated_cell.data.image import read_image
from integrated_cell.data.own import prepare_table
from integrated_cell.data.prepare import hela_cells, hela_stack
from integrated_cell.data.stack import DoesNotFit, _fill, pose, prepare_cell, subtract_background
from integrated_cell.data.workers import in_turn
from integrated_cell.results import BadInput

NAMES = ["membrane", "structure", "dna"]


def body(angle=0., voxel_um=(.5, .2, .2), shape=(21, 121, 121), shift=(0, 0, 0)):
    "A tapered ellipsoid with a nucleus, masks and image; half axes in micrometres 9 (along `angle`), 4.5, 3"
    z, y, x = np.meshgrid(*[(np.arange(n) - (n - 1)/2 - s)*v for n, v, s in zip(shape, voxel_um, shift)], indexing="ij")
    a = np.deg2rad(angle)
    u, w = np.cos(a)*x + np.sin(a)*y, -np.sin(a)*x + np.cos(a)*y
    cell = (u/9)**2 + (w/(4.5 - u/5))**2 + (z/3)**2 < 1
    nucleus = ((u - 1.5)/3)**2 + ((w - .3)/2)**2 + (z/1.5)**2 < 1
    protein = cell*np.exp(-((u - 4)**2 + (w - 1)**2)/4)
    return np.stack([cell*200, protein*200, nucleus*200]).round().astype(np.uint8), cell, nucleus


@pytest.mark.parametrize("angle", [0, 17, 45, 90, 133, 179])
def test_the_major_axis_and_the_centre_are_found(angle):
    _, cell, nucleus = body(angle)
    axes, centre = pose(cell, nucleus, (.5, .2, .2))
    found = np.rad2deg(np.arctan2(axes[2, 1], axes[2, 2])) % 180
    assert min(abs(found - angle), 180 - abs(found - angle)) < .5
    assert np.allclose(axes @ axes.T, np.eye(3)) and np.allclose(centre, np.argwhere(nucleus).mean(0))


@pytest.mark.parametrize("angle,shift", [(0, (0, 0, 0)), (30, (2, 10, -7)), (200, (-1, 5, 5)), (311, (0, -9, 3))])
def test_one_cell_in_any_position_is_one_cell_afterwards(angle, shift):
    def prepared(stack, *masks): return prepare_cell(stack, (.5, .2, .2), .4, (24, 32, 56), *masks, (0, 1, 2))
    first, other = prepared(*body()), prepared(*body(angle, shift=shift))
    off = np.abs(np.array(ndimage.center_of_mass(other[2] > 127)) - (11.5, 15.5, 27.5)).max()
    volume = (other[0]/255).sum()*.4**3/(body()[1].sum()*.5*.2*.2)
    assert off < .5 and abs(volume - 1) < .04
    assert np.corrcoef(first.ravel(), other.ravel())[0, 1] > .985
    at, weight = np.argwhere(other[0] > 127), (other[0]/255. + other[2]/255.)[other[0] > 127]
    skewness = np.average((at - np.average(at, axis=0, weights=weight))**3, axis=0, weights=weight)
    assert (skewness[1:] > 0).all(), "along Y and X it is positive"


def test_prepared_again_it_stays(tmp_path):
    stack, cell, nucleus = body(40)
    once = prepare_cell(stack, (.5, .2, .2), .4, (24, 32, 56), cell, nucleus, segmented=(0, 2))
    twice = prepare_cell(once, (.4, .4, .4), .4, (24, 32, 56), segmented=(0, 2))
    assert np.corrcoef(once.ravel(), twice.ravel())[0, 1] > .985


def test_in_the_plane():
    stack, cell, nucleus = body(60)
    flat = prepare_cell(stack.max(1), (.2, .2), .4, (32, 56), cell.any(0), nucleus.any(0), segmented=(0, 1, 2))
    assert flat.shape == (3, 32, 56)
    assert np.abs(np.array(ndimage.center_of_mass(flat[2] > 127)) - (15.5, 27.5)).max() < .5


def test_masks_are_found_in_a_noisy_stack():
    stack, cell, nucleus = body(25)
    shell = cell & ~ndimage.binary_erosion(cell, iterations=2)
    raw = np.random.default_rng(0).poisson(100 + np.stack([shell*150., stack[1]*1., nucleus*200.]))
    given, found = [prepare_cell(raw, (.5, .2, .2), .4, (28, 36, 60), *masks) for masks in ((cell, nucleus), ())]
    assert np.corrcoef(given[::2].ravel(), found[::2].ravel())[0, 1] > .9


@pytest.mark.parametrize("shape", [(12, 20, 30), (30, 40), (1, 9, 9)])
def test_holes_are_those_of_scipy(shape):
    rng = np.random.default_rng(0)
    for share in (.2, .5, .8):
        x = ndimage.gaussian_filter(rng.random(shape), .8)
        mask = x > np.quantile(x, share)
        planes = np.stack([ndimage.binary_fill_holes(p) for p in mask.reshape(-1, *shape[-2:])]).reshape(shape)
        assert np.array_equal(_fill(mask, (-2, -1)), planes)
        assert np.array_equal(_fill(planes, range(len(shape))), ndimage.binary_fill_holes(planes))


def test_what_does_not_fit_is_not_cropped():
    stack, cell, nucleus = body()
    with pytest.raises(DoesNotFit, match=r"needs a shape of \((\d+), (\d+), (\d+)\).*the shape is \(24, 32, 40\)") as e:
        prepare_cell(stack, (.5, .2, .2), .4, (24, 32, 40), cell, nucleus, segmented=(0, 1, 2))
    needed = eval(str(e.value).split("shape of ")[1].split(" voxels")[0])
    fits = prepare_cell(stack, (.5, .2, .2), .4, needed, cell, nucleus, segmented=(0, 1, 2))
    roomy = prepare_cell(stack, (.5, .2, .2), .4, [n + 20 for n in needed], cell, nucleus, segmented=(0, 1, 2))
    assert fits.astype(float).sum() == pytest.approx(roomy.astype(float).sum(), rel=.01)


@pytest.mark.parametrize("change,said", [
    (lambda s, c, n: (s, c*0, n), "cell mask has no voxel"), (lambda s, c, n: (s, c, n*0), "nucleus mask has no voxel"),
    (lambda s, c, n: (s, c[:5], n), "must agree"), (lambda s, c, n: (s[:, 0], c, n), "do not go together"),
    (lambda s, c, n: (s*np.array([1, 0, 1]).reshape(3, 1, 1, 1), c, n), "constant"),
    (lambda s, c, n: (np.where(s > 100, np.nan, s), c, n), "not finite")])
def test_bad_input_is_told(change, said):
    stack, cell, nucleus = change(*body())
    with pytest.raises(BadInput, match=said): prepare_cell(stack, (.5, .2, .2), .4, (24, 32, 56), cell, nucleus)


@pytest.mark.parametrize("to_voxel_um", [float("nan"), float("inf"), 0, -1.3, (.1, .2), (.4, .4, -1), None, "0.4", True])
def test_a_voxel_that_cannot_be_is_told_before_any_image_is_read(to_voxel_um):
    table = pd.DataFrame([dict(path="/", structure="a")])
    with pytest.raises(BadInput, match="^to_voxel_um .* is no size of a voxel; give micrometres above 0"):
        prepare_table(table, None, to_voxel_um, (24, 32, 56), test_fraction=0)
    with pytest.raises(BadInput, match="is no number of voxels"): prepare_table(table, None, .4, (24, 0, 56), test_fraction=0)


def test_the_most_populous_intensity_goes():
    camera = np.random.default_rng(0).normal(100., 2., (40, 50)); camera[5:9, 5:9] = 300
    assert subtract_background(camera).max() == 1 and np.median(subtract_background(camera)) < .02
    with pytest.raises(BadInput, match="constant"): subtract_background(np.full((3, 3), 7))
    with pytest.raises(BadInput, match="most populous"): subtract_background(np.array([9, 9, 9, 1]))


@pytest.fixture
def stack(): return body()[0]


def ome(path, stack, **meta):
    tifffile.imwrite(path, stack, metadata={"axes": "CZYX", **meta})
    return path


def imagej(path, stack, **meta):
    tifffile.imwrite(path, stack.swapaxes(0, 1), imagej=True, resolution=(5, 5), metadata={"axes": "ZCYX", **meta})


def zarr(path, stack, **about):
    axes = dict(axes_names=list("czyx"), axes_types=["channel"] + ["space"]*3)
    writer = OMEZarrWriter(str(path), level_shapes=stack.shape, dtype="uint8", **axes, **about)
    writer.write_full_volume(stack)


UM = dict(PhysicalSizeZ=.5, PhysicalSizeY=.2, PhysicalSizeX=.2)


def test_sizes_and_names_come_from_the_file(tmp_path, stack):
    nm = {k: v*1000 for k, v in UM.items()} | {f"{k}Unit": "nm" for k in UM}
    ome(tmp_path/"a.ome.tif", stack, **UM, Channel={"Name": NAMES}); ome(tmp_path/"b.ome.tif", stack, **nm)
    imagej(tmp_path/"c.tif", stack, spacing=.5, unit="um")
    zarr(tmp_path/"d.ome.zarr", stack, axes_units=[None] + ["micrometer"]*3, physical_pixel_size=[1, .5, .2, .2],
         channels=[Channel(label=n, color="FFFFFF") for n in NAMES])
    for name in ("a.ome.tif", "b.ome.tif", "c.tif", "d.ome.zarr"):
        x, voxel_um, _ = read_image(tmp_path/name)
        assert np.array_equal(x, stack) and np.allclose(voxel_um, (.5, .2, .2)), name
    for name in ("a.ome.tif", "d.ome.zarr"):
        x, _, names = read_image(tmp_path/name, channels=["dna", "membrane"])
        assert np.array_equal(x, stack[[2, 0]]) and names == ["dna", "membrane"]
    flat = ome(tmp_path/"e.ome.tif", stack[:, 10], axes="CYX", PhysicalSizeY=.2, PhysicalSizeX=.2)
    assert read_image(flat)[0].shape == (3, 121, 121) and np.allclose(read_image(flat)[1], (.2, .2))


def test_a_size_without_unit_is_no_size(tmp_path, stack):
    tifffile.imwrite(tmp_path/"plain.tif", stack, metadata=dict(axes="CZYX"))
    ome(tmp_path/"n.ome.tif", stack)
    imagej(tmp_path/"ij.tif", stack, unit="pixel")
    zarr(tmp_path/"z.ome.zarr", stack)
    for name in ("plain.tif", "n.ome.tif", "ij.tif", "z.ome.zarr"):
        with pytest.raises(BadInput, match="how large a voxel is along Z, Y, X"): read_image(tmp_path/name)
        assert read_image(tmp_path/name, voxel_um=(.5, .2, .2))[1] == (.5, .2, .2)


@pytest.mark.parametrize("share", [0, .1, .5, .9, .99])
@pytest.mark.parametrize("kind", ["ome", "imagej", "zlib"])
def test_truncated(tmp_path, stack, share, kind):
    path = tmp_path/"a.tif"
    if kind == "ome": ome(path, stack, **UM)
    elif kind == "imagej": tifffile.imwrite(path, stack.swapaxes(0, 1), imagej=True, metadata=dict(axes="ZCYX"))
    else: tifffile.imwrite(path, stack, compression="zlib")
    data = path.read_bytes(); path.write_bytes(data[:int(share*len(data))])
    with pytest.raises(BadInput, match="a.tif"): read_image(path, voxel_um=(.5, .2, .2))


def test_corrupt_constant_nan_and_wrong_channels(tmp_path, stack):
    (tmp_path/"noise.tif").write_bytes(os.urandom(5000)); (tmp_path/"folder.zarr").mkdir()
    for name in ("noise.tif", "folder.zarr"):
        with pytest.raises(BadInput, match="cannot be read as TIFF"): read_image(tmp_path/name)
    with pytest.raises(BadInput, match="does not exist"): read_image(tmp_path/"nothing.tif")
    with pytest.raises(BadInput, match="dna is constant"):
        read_image(ome(tmp_path/"c.ome.tif", np.concatenate([stack[:2], stack[:1]*0]), **UM), channels=NAMES)
    with pytest.raises(BadInput, match="not finite"):
        read_image(ome(tmp_path/"n.ome.tif", np.where(stack > 100, np.nan, stack).astype(np.float32), **UM))
    with pytest.raises(BadInput, match="which of its 2 channels .* is membrane"):
        read_image(ome(tmp_path/"w.ome.tif", stack[:2], **UM), channels=NAMES)
    with pytest.raises(BadInput, match="2 time points"):
        read_image(ome(tmp_path/"t.ome.tif", np.stack([stack, stack]), axes="TCZYX", **UM))
    with pytest.raises(BadInput, match="names 2"): read_image(tmp_path/"c.ome.tif", voxel_um=(.2, .2))


def own_images(folder):
    rows = []
    for i, angle in enumerate((0, 50, 100, 150)):
        stack, cell, nucleus = body(angle)
        ome(folder/f"{i}.ome.tif", stack, **UM)
        tifffile.imwrite(folder/f"{i}_cell.tif", cell.astype(np.uint8))
        tifffile.imwrite(folder/f"{i}_nucleus.tif", nucleus.astype(np.uint8))
        masks = dict(cell_mask=f"{i}_cell.tif", nucleus_mask=f"{i}_nucleus.tif")
        rows.append(dict(path=f"{i}.ome.tif", structure="ab"[i % 2], **masks))
    return pd.DataFrame(rows)


def test_a_table_of_own_images_becomes_a_store(tmp_path):
    table = own_images(tmp_path); table.to_csv(tmp_path/"cells.csv", index=False)
    big = np.pad(body()[0].repeat(2, 2).repeat(2, 3), ((0, 0), (0, 0), (1, 1), (1, 1)))
    ome(tmp_path/"big.ome.tif", big, **UM)
    too_big = pd.DataFrame([dict(path="big.ome.tif", structure="a")])
    pd.concat([table, too_big]).to_csv(tmp_path/"cells.csv", index=False)
    cells = prepare_table(tmp_path/"cells.csv", tmp_path/"cells", .4, (24, 32, 56))
    assert len(cells) == 4 and [left["cell_id"] for left in cells.provenance["left_out"]] == ["big"]
    assert "needs a shape" in cells.provenance["left_out"][0]["why"]
    assert np.corrcoef(cells[0].ravel(), cells[2].ravel())[0, 1] > .98
    assert Cells.open(tmp_path/"cells").table.equals(cells.table)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_any_number_of_processes_makes_the_same_store(tmp_path, monkeypatch):
    table = own_images(tmp_path)
    for name in ("big", "too"): ome(tmp_path/f"{name}.ome.tif", body()[0], **{k: 2*v for k, v in UM.items()})
    big, too = (pd.DataFrame([dict(path=f"{name}.ome.tif", structure="a")]) for name in ("big", "too"))
    monkeypatch.chdir(tmp_path)
    table = pd.concat([table[:1], big, table[1:], too], ignore_index=True).assign(cell_id=list("uvwxyz"))
    one, two = (prepare_table(table, tmp_path/f"store{n}", .4, (24, 32, 56), workers=n) for n in (1, 2))
    assert [left["cell_id"] for left in two.provenance["left_out"]] == ["v", "z"]
    assert list(two.table.cell_id) == list("uwxy")
    assert contents(tmp_path/"store1") == contents(tmp_path/"store2"), "order, bytes and what is left out"
    with pytest.raises(BadInput, match="workers = 0"): prepare_table(table, None, .4, (24, 32, 56), workers=0)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_fault_in_the_table_is_the_one_that_is_told(tmp_path, monkeypatch, workers):
    table = own_images(tmp_path).assign(cell_id=list("wxyz"))
    tifffile.imwrite(tmp_path/"1_cell.tif", np.zeros((21, 121, 121), np.uint8))
    (tmp_path/"2.ome.tif").write_bytes(b"")  # found sooner, told later
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    with pytest.raises(BadInput, match="^cell 'x': 1_cell.tif: the mask has no voxel") as e:
        prepare_table(table, "store", .4, (24, 32, 56), workers=workers)
    assert "\n" not in str(e.value) and set(tmp_path.iterdir()) == before


def test_a_process_that_is_ended_is_told(capfd):
    with pytest.raises(BadInput, match="one of 2 processes was ended"): list(in_turn(os._exit, [(9,)]*4, 2))
    assert list(in_turn(pow, [(2, 3)], 2)) == [8] and not capfd.readouterr().err


def test_one_cell_of_a_label_image(tmp_path):
    (stack, cell, nucleus), (other, cell_2, nucleus_2) = body(), body(90)
    tifffile.imwrite(tmp_path/"labels.tif", np.concatenate([cell*1, cell_2*2], 2).astype(np.uint8))
    tifffile.imwrite(tmp_path/"nuclei.tif", np.concatenate([nucleus*1, nucleus_2*2], 2).astype(np.uint8))
    ome(tmp_path/"field.ome.tif", np.concatenate([stack, other], 3), **UM)
    field = dict(path="field.ome.tif", cell_mask="labels.tif", nucleus_mask="nuclei.tif")
    rows = [dict(field, structure="a", label=l) for l in (1, 2)]
    pd.DataFrame(rows).to_csv(tmp_path/"cells.csv", index=False)
    cells = prepare_table(tmp_path/"cells.csv", None, .4, (24, 32, 56), test_fraction=0)
    alone = prepare_cell(stack, (.5, .2, .2), .4, (24, 32, 56), cell, nucleus)
    assert np.corrcoef(cells[0].ravel(), cells[1].ravel())[0, 1] > .98
    assert np.abs(cells[0].astype(int) - alone).max() <= 1
    pd.DataFrame([dict(rows[0], label=7)]).to_csv(tmp_path/"cells.csv", index=False)
    with pytest.raises(BadInput, match="no voxel of label 7"):
        prepare_table(tmp_path/"cells.csv", tmp_path/"store", .4, (24, 32, 56), test_fraction=0)


@pytest.mark.parametrize("spoil,said", [
    (lambda t, f: t.assign(cell_id="x"), "cell id 'x'"),
    (lambda t, f: t.drop(columns="structure"), "no column 'structure'"),
    (lambda t, f: t.assign(structure=list("aabc")), "class 'b' has one cell"),
    (lambda t, f: (tifffile.imwrite(f/"2_cell.tif", np.zeros((21, 121, 121), np.uint8)), t)[1], "mask has no voxel"),
    (lambda t, f: ((f/"3.ome.tif").write_bytes((f/"3.ome.tif").read_bytes()[:900]), t)[1], "truncated"),
    (lambda t, f: t.assign(path="nothing.tif", cell_id=list("abcd")), "does not exist")])
def test_a_bad_table_leaves_no_store(tmp_path, spoil, said):
    spoil(own_images(tmp_path), tmp_path).to_csv(tmp_path/"cells.csv", index=False)
    before = set(tmp_path.iterdir())
    with pytest.raises(BadInput, match=said): prepare_table(tmp_path/"cells.csv", tmp_path/"store", .4, (24, 32, 56))
    assert set(tmp_path.iterdir()) == before, "nothing half written"


MIRROR = os.environ.get("INTEGRATED_CELL_MIRROR")
here = bool(MIRROR) and (Path(MIRROR)/"hela3d").is_dir()
real = pytest.mark.skipif(not here, reason="INTEGRATED_CELL_MIRROR has no hela3d")


@real
@pytest.mark.parametrize("name", ["LAM_cell1", "Mit_cell1", "Nuc_cell1", "TfR_cell1"])
def test_hela_stacks_come_from_their_originals_bit_for_bit(name):
    folder = Path(MIRROR)/"hela3d"
    derived = hela_stack(*(tifffile.imread(folder/"original_examples"/f"{name}_ch{k}_t1.tif") for k in range(3)))
    assert np.array_equal(derived.swapaxes(0, 1), tifffile.imread(folder/"stacks"/f"{name}.tif"))


@real
def test_hela_from_stacks_and_from_originals_are_one(tmp_path):
    folder = Path(MIRROR)/"hela3d"
    for of in ("stacks", "images"): (tmp_path/of/of).mkdir(parents=True)
    for p in ("Mit", "TfR"):
        shutil.copy(folder/"stacks"/f"{p}_cell1.tif", tmp_path/"stacks"/"stacks")
        shutil.copy(folder/"stacks"/f"{p}_cell1.tif", tmp_path/"stacks"/"stacks"/f"{p}_cell2.tif")
        for k in range(3):
            original = folder/"original_examples"/f"{p}_cell1_ch{k}_t1.tif"
            for n in (1, 2): (tmp_path/"images"/"images"/f"{p}_cell{n}_ch{k}_t1.tif").symlink_to(original)
    stacks, originals = [hela_cells(tmp_path/of) for of in ("stacks", "images")]
    assert len(stacks) == 4 and np.array_equal(stacks.images, originals.images) and stacks.table.equals(originals.table)
    assert stacks.classes == ["mitochondria", "transferrin receptor"] and stacks.shape == (16, 64, 96)
