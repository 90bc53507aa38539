"Real two-channel cells: archives not to be trusted, pictures of every kind, and yeast_paired against its originals"
import hashlib
import io
import tarfile
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from integrated_cell.data.archive import Archive
from integrated_cell.data.cells import Cells
from integrated_cell.data.manifest import fetch, read_source
from integrated_cell.data.pairs import lin_cells, paired_cells, paired_images, plain_features, stretch
from integrated_cell.results import BadInput

PAIR = ("Tea1", "Arp3")
MIRROR = os.environ.get("INTEGRATED_CELL_MIRROR")
here = bool(MIRROR) and (Path(MIRROR)/"yeast_paired").is_dir()
real = pytest.mark.skipif(not here, reason="INTEGRATED_CELL_MIRROR has no yeast_paired")


def picture(seed=0, shape=(48, 80), mode="RGB", format="PNG"):
    x = np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)
    file = io.BytesIO(); Image.fromarray(x).convert(mode).save(file, format)
    return file.getvalue()


def tiff(x, **more):
    file = io.BytesIO(); tifffile.imwrite(file, x, **more)
    return file.getvalue()


def layout(proteins=PAIR, n=(3, 2), top="", size="48-80"):
    "Names and contents of a small LIN"
    files, shape = {}, tuple(map(int, size.split("-")))
    for j, (part, m) in enumerate(zip(("train", "test"), n)):
        for k, p in enumerate(proteins):
            home = f"{top}LIN_Normalized_WT_size-{size}_{part}/{p}"
            files |= {f"{home}/{p}_{i}.png": picture(100*k + 10*j + i, shape) for i in range(m)}
    return files


def packed(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in files.items(): z.writestr(name, content)
    return path


def unpacked(folder, files):
    for name, content in files.items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True); (folder/name).write_bytes(content)
    return folder


def refused(tmp_path, archive, says, proteins=PAIR, **k):
    with pytest.raises(BadInput, match=says) as e: lin_cells(archive, tmp_path/"store", proteins, **k)
    assert "\n" not in str(e.value) and not (tmp_path/"store").exists() and not list(tmp_path.glob("*store*"))


@pytest.mark.parametrize("top", ["", "./", "LIN/", "a/b/"])
def test_zip_and_folder_give_the_same_cells_with_the_published_split(tmp_path, top):
    train = f"{top}LIN_Normalized_WT_size-48-80_train"
    debris = {f"{top}README.txt": b"?", "__MACOSX/LIN_size-48-80_train/Tea1/._a.png": b"?"}
    files = layout(top=top) | debris | {f"{train}/Tea1/.DS_Store": b"?", f"{train}/Other/a.png": b"not looked at"}
    a = lin_cells(packed(tmp_path/"LIN_Normalized_WT_size-48-80.zip", files), tmp_path/"a", PAIR)
    b = lin_cells(unpacked(tmp_path/"folder", files), None, PAIR)
    c = lin_cells(tmp_path, None, PAIR)  # the folder that holds the zip, as fetch returns
    assert a.channels == ("red", "green") and a.shape == (48, 80) and a.voxel_um is None and a.classes == sorted(PAIR)
    assert Cells.open(tmp_path/"a").voxel_um is None
    assert (a.table.split == a.table.cell_id.str.split("/").str[0]).all() and (a.table.split == "train").sum() == 6
    assert len(a) == 10
    assert a.table.equals(b.table) and a.table.equals(c.table) and np.array_equal(a.images[:], b.images)
    assert np.array_equal(a.images[:], c.images)
    for i, row in a.table.iterrows():
        stem = row.cell_id.split("/")[2]
        content = files[f"{top}LIN_Normalized_WT_size-48-80_{row.split}/{row.structure}/{stem}.png"]
        assert np.array_equal(a[i], np.moveaxis(np.asarray(Image.open(io.BytesIO(content)))[..., :2], -1, 0))


def test_fetched_from_a_mirror_that_has_only_this_size(tmp_path, monkeypatch):
    monkeypatch.setenv("INTEGRATED_CELL_CACHE", str(tmp_path/"cache"))
    monkeypatch.setenv("INTEGRATED_CELL_MIRROR", str(tmp_path/"mirror"))
    (tmp_path/"mirror"/"lin_yeast").mkdir(parents=True)
    packed(tmp_path/"mirror"/"lin_yeast"/"LIN_Normalized_WT_size-48-80.zip", layout())
    assert len(lin_cells(fetch("lin_yeast", files="*48-80.zip"), None, PAIR)) == 10


def test_another_size(tmp_path):
    both = packed(tmp_path/"lin.zip", layout() | layout(size="16-24"))
    assert lin_cells(both, None, PAIR).shape == (48, 80) and lin_cells(both, None, PAIR, (16, 24)).shape == (16, 24)
    refused(tmp_path, both, "size-96-160_train.*it has some of size 16-24, 48-80", shape=(96, 160))


def test_own_cells_are_not_credited_to_lin_and_may_have_a_scale(tmp_path):
    lin = packed(tmp_path/"LIN_Normalized_WT_size-48-80.zip", layout())
    own, folder = packed(tmp_path/"own.zip", layout()), unpacked(tmp_path/"LIN_Normalized_WT_size-48-80", layout())
    sources = [lin_cells(a, None, PAIR).provenance["source"] for a in (lin, tmp_path, own, folder)]
    assert sources == ["lin_yeast", "lin_yeast", "own", "own"]
    assert lin_cells(own, None, PAIR, pixel_um=.1).voxel_um == (.1, .1)
    assert lin_cells(own, None, PAIR, pixel_um=0.).voxel_um is None
    refused(tmp_path, own, "pixel_um -1 is no size", pixel_um=-1)


@pytest.mark.parametrize("name", [
    "../a.png", "LIN/../../a.png", "/tmp/a.png", "..", "C:/a.png", "c:a.png", "..\\a.png", "LIN\\..\\..\\a.png",
    "\\\\host\\a.png"])
def test_an_archive_that_climbs_out_is_not_used(tmp_path, name):
    (tmp_path/"in").mkdir()
    refused(tmp_path, packed(tmp_path/"in"/"lin.zip", layout() | {name: picture()}), "nothing of this archive was used")
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "lin.zip"]
    with pytest.raises(BadInput) as e: Archive(tmp_path/"in"/"lin.zip")
    assert f"'{name}'" in str(e.value)


def test_links_and_floods_are_not_used(tmp_path):
    with zipfile.ZipFile(tmp_path/"lin.zip", "w") as z:
        for name, content in layout().items(): z.writestr(name, content)
        link = zipfile.ZipInfo("LIN_Normalized_WT_size-48-80_train/Tea1/link.png"); link.external_attr = 0o120777 << 16
        z.writestr(link, "/etc/passwd")
    refused(tmp_path, tmp_path/"lin.zip", "link.png' is a link")
    flood = layout() | {"LIN_Normalized_WT_size-48-80_train/Tea1/big.png": bytes(2**21)}
    refused(tmp_path, packed(tmp_path/"big.zip", flood), "big.png' has 2,097,152 bytes")


@pytest.mark.parametrize("target", ["outside/a.png", "outside", "nowhere"])
def test_links_out_of_a_folder_are_not_used(tmp_path, target):
    (tmp_path/"outside").mkdir(); (tmp_path/"outside"/"a.png").write_bytes(picture())
    folder = unpacked(tmp_path/"folder", layout())
    link = folder/"LIN_Normalized_WT_size-48-80_train"/"Tea1"/"link.png"
    link.symlink_to(tmp_path/target)
    refused(tmp_path, folder, "Tea1/link.png' is a link that leads out of this folder")
    link.unlink(); link.symlink_to("Tea1_0.png")
    assert len(lin_cells(folder, None, PAIR)) == 11, "a link to a file of the same folder is no fault"


TEA1 = "LIN_Normalized_WT_size-48-80_train/Tea1/Tea1_0.png"

@pytest.mark.parametrize("change, proteins, says", [
    ({TEA1: picture(shape=(48, 48))}, PAIR, "Tea1_0.png' is RGB of 48 × 48 pixels where RGB of 48 × 80"),
    ({TEA1: picture(mode="L")}, PAIR, "Tea1_0.png' is L of"),
    ({TEA1: picture(mode="LA")}, PAIR, "Tea1_0.png' is LA of"),
    ({TEA1: picture(mode="P")}, PAIR, "Tea1_0.png' is P of"),
    ({TEA1: tiff(np.zeros((2, 48, 48), np.uint16))}, PAIR, "Tea1_0.png' is uint16 of shape .2, 48, 48., axes"),
    ({TEA1: tiff(np.full((2, 48, 80), np.nan, np.float32))}, PAIR, "Tea1_0.png' has values that are not finite"),
    ({TEA1: tiff(np.arange(7680, dtype=np.uint16).reshape(2, 48, 80))}, PAIR, "scaled in two ways; save all pictures"),
    ({TEA1: tiff(np.zeros((2, 48, 80), np.uint16))[:300]}, PAIR, "Tea1_0.png' is not a whole PNG or TIFF"),
    ({TEA1: picture(format="BMP")}, PAIR, "Tea1_0.png' is not a whole PNG"),
    ({TEA1: picture()[:400]}, PAIR, "Tea1_0.png' is not a whole PNG"),
    ({TEA1: b""}, PAIR, "Tea1_0.png' is not a whole PNG"),
    ({TEA1.replace("_0.png", ".txt"): picture()}, PAIR, "Tea1.txt' is neither PNG nor TIFF"),
    ({}, ("Tea1", "Sid2", "Tea5"), "has no cells of Sid2, Tea5; it has Arp3, Tea1"),
    ({}, None, "has no cells of Alp14, Cki2, Mkh1, Sid2; it has Arp3, Tea1; name yours in `proteins`"),
    ({}, ("Tea1",), "only one protein"),
    ({}, ("Tea1", "Tea1"), "only one protein"),
    ({}, "Tea1", "only one protein"),
])
def test_bad_pictures_and_proteins(tmp_path, change, proteins, says):
    refused(tmp_path, packed(tmp_path/"lin.zip", layout() | change), says, proteins)
    refused(tmp_path, unpacked(tmp_path/"folder", layout() | change), says, proteins)


def test_bad_archives(tmp_path):
    refused(tmp_path, tmp_path/"nowhere.zip", "does not exist")
    whole = packed(tmp_path/"lin.zip", layout()).read_bytes()
    (tmp_path/"half.zip").write_bytes(whole[:len(whole)//2])
    refused(tmp_path, tmp_path/"half.zip", "cut short")
    at = whole.index(b"IDAT") + 60
    (tmp_path/"hurt.zip").write_bytes(whole[:at] + bytes(b ^ 255 for b in whole[at:at + 40]) + whole[at + 40:])
    refused(tmp_path, tmp_path/"hurt.zip", "damaged")
    refused(tmp_path, packed(tmp_path/"other.zip", {"a.png": picture()}), "has no folders")
    (tmp_path/"empty").mkdir()
    refused(tmp_path, tmp_path/"empty", "has no folders")
    for n, part in (((3, 0), "has no folders|test folder"), ((0, 2), "train folder")):
        refused(tmp_path, packed(tmp_path/"part.zip", layout(n=n)), part)
    sid2 = {"LIN_Normalized_WT_size-48-80_train/Sid2/": b"", "LIN_Normalized_WT_size-48-80_test/Sid2/a.png": picture()}
    refused(tmp_path, packed(tmp_path/"part.zip", layout() | sid2), "train folder of Sid2 is empty", (*PAIR, "Sid2"))


def test_other_pictures_of_the_same_cells_give_the_same_cells(tmp_path):
    files = layout()
    pixels = {name: np.asarray(Image.open(io.BytesIO(content))) for name, content in files.items()}
    rgb = lin_cells(packed(tmp_path/"rgb.zip", files), None, PAIR)
    def again(name, as_file):
        made = {k.replace(".png", name): as_file(x) for k, x in pixels.items()}
        return lin_cells(unpacked(tmp_path/f"as{name}", made), None, PAIR)
    def rgba(x):
        file = io.BytesIO(); Image.fromarray(np.dstack([x, 0*x[..., :1] + 200])).save(file, "PNG")
        return file.getvalue()
    def planes(x): return tiff(np.moveaxis(x[..., :2], -1, 0))
    for cells in (again(".a.png", rgba), again(".tif", tiff), again(".TIFF", planes)):
        assert np.array_equal(cells.images[:], rgb.images[:]) and "percentiles" not in cells.provenance
    deep = again(".ome.tif", lambda x: tiff(np.moveaxis(x[..., :2], -1, 0).astype(np.uint16)*16))
    first = np.moveaxis(next(iter(pixels.values()))[..., :2], -1, 0)
    assert deep.provenance["percentiles"] == [1., 99.9] and deep.table.cell_id[0].endswith(".ome")
    assert deep.images[:].max((2, 3)).min() == 255
    at = deep.table.cell_id.tolist().index("train/Tea1/Tea1_0.ome")
    assert np.array_equal(deep.images[at], stretch(first, "a"))


def test_names_are_never_cut_at_their_first_dot(tmp_path):
    files = {name.replace("Tea1_", "2024.0"): content for name, content in layout().items()}
    cells = lin_cells(packed(tmp_path/"lin.zip", files), None, PAIR)
    assert {"train/Tea1/2024.00", "train/Tea1/2024.01", "train/Tea1/2024.02"} < set(cells.table.cell_id)
    twin = next(iter(files)).replace(".png", ".tif")
    again = tiff((np.arange(11520) % 256).astype(np.uint8).reshape(48, 80, 3))
    refused(tmp_path, packed(tmp_path/"lin.zip", files | {twin: again}), "train/Tea1/2024.00")


def test_a_deep_png_and_a_stack_are_no_pictures_of_cells(tmp_path):
    x = np.random.default_rng(0).integers(0, 9999, (2, 48, 80)).astype(np.uint16)
    deep = bytearray(picture()); deep[24] = 16
    deep[29:33] = zlib.crc32(bytes(deep[12:29])).to_bytes(4, "big")
    for content, says in ((tiff(x, imagej=True, metadata=dict(axes="ZYX")), "axes ZYX where RGB of 48 × 80"),
                          (bytes(deep), "16 bits|not a whole PNG"), (tiff(x[:, :1]), "where RGB")):
        refused(tmp_path, packed(tmp_path/"lin.zip", layout() | {TEA1: content}), says)


def test_cells_of_a_constant_channel_are_left_out_and_listed(tmp_path):
    flat = io.BytesIO(); Image.fromarray(np.full((48, 80, 3), 9, np.uint8)).save(flat, "PNG")
    cells = lin_cells(packed(tmp_path/"lin.zip", layout() | {TEA1: flat.getvalue()}), tmp_path/"a", PAIR)
    assert len(cells) == 9
    assert cells.provenance["left_out"] == [{"cell_id": "train/Tea1/Tea1_0", "why": "a channel is constant"}]
    files = {name: flat.getvalue() if "Tea1" in name else content for name, content in layout().items()}
    refused(tmp_path, packed(tmp_path/"lin.zip", files), "all test cells of Tea1 have a constant channel; "
            "repair its pictures or leave it out of `proteins`")


# ------------------------------------------------------------------------------------------------ yeast_paired

def test_stretch_is_what_scikit_image_does():
    from skimage.exposure import rescale_intensity
    x = np.random.default_rng(0).gamma(2, .01, (2, 64, 64)).astype(np.float32)
    ranges = [tuple(np.percentile(c.astype(float), (1, 99.9))) for c in x]
    expected = [rescale_intensity(c.astype(float), r, (0, 255)) for c, r in zip(x, ranges)]
    assert np.array_equal(stretch(x, "a"), np.rint(expected).astype(np.uint8))
    hollow = x.copy(); hollow[0, 3, 3] = np.nan
    with pytest.raises(BadInput, match="cell 'a': its red channel has values that are not finite"): stretch(hollow, "a")


def originals(folder, x, names=("AAC1", "AAH1")):
    "x (n, 2, 64, 64) GFP, RFP as the origin lays out its TIFFs: four cells a field, two fields a protein"
    for i, cell in enumerate(x):
        p = names[i//8]; place = folder/"yeast_model"/"toy_dataset"/"images"/p; place.mkdir(parents=True, exist_ok=True)
        for c, name in zip(cell, ("gfp", "rfp")):
            tifffile.imwrite(place/f"{p}_{i % 8//4 + 1}_rfp_{7 + i % 4}_{name}.tif", c)
    return folder


@pytest.fixture
def toy(tmp_path):
    x = np.random.default_rng(0).gamma(2, .01, (16, 2, 64, 64)).astype(np.float32)
    return originals(tmp_path/"originals", x)


def test_fields_stay_together_and_paths_give_the_order(toy):
    images, table = paired_images(toy)
    assert table.cell.tolist() == [10, 7, 8, 9]*4, "in the order of the paths, as cells.csv"
    cells = paired_cells(toy, toy/"store", .5)
    assert cells.channels == ("red", "green") and cells.voxel_um is None
    assert (cells.table.groupby("field").split.nunique() == 1).all()
    rfp = tifffile.imread(next(toy.rglob("AAC1_1_rfp_10_rfp.tif")))
    assert np.array_equal(images[0, 0], rfp) and np.array_equal(cells[0], stretch(images[0], "a"))
    assert paired_cells(toy, None, .5, 1, ("AAH1", "AAC1")).classes == ["AAC1", "AAH1"]


def test_bad_pairs(toy, tmp_path):
    with pytest.raises(BadInput, match="neither cells.npz"): paired_images(tmp_path/"nowhere")
    with pytest.raises(BadInput, match="only one protein"): paired_cells(toy, None, proteins=("AAC1",))
    with pytest.raises(BadInput, match="no cells of Tea1; it has AAC1, AAH1"):
        paired_cells(toy, None, proteins=("AAC1", "Tea1"))
    gfp = next(toy.rglob("AAC1_1_rfp_9_gfp.tif")); x = tifffile.imread(gfp)
    tifffile.imwrite(gfp, np.zeros_like(x))
    with pytest.raises(BadInput, match="cell 'AAC1_1_rfp_9': its green channel is constant"):
        paired_cells(toy, tmp_path/"store")
    assert not (tmp_path/"store").exists()
    tifffile.imwrite(gfp, x[:32])
    with pytest.raises(BadInput, match=r"_9_gfp.tif has shape \(32, 64\)"): paired_images(toy)
    gfp.write_bytes(b"II*\0")
    with pytest.raises(BadInput, match="_9_gfp.tif cannot be read"): paired_images(toy)
    gfp.unlink(); next(toy.rglob("AAH1_1_rfp_9_rfp.tif")).unlink()
    with pytest.raises(BadInput, match="_9_rfp.tif cannot be read"): paired_images(toy)
    (toy/"cells.npz").write_bytes(b"?"); (toy/"cells.csv").write_text("protein\n")
    with pytest.raises(BadInput, match="cannot be read"): paired_images(toy)


@real
def test_yeast_paired_is_its_originals(tmp_path, monkeypatch):
    monkeypatch.setenv("INTEGRATED_CELL_CACHE", str(tmp_path/"cache"))
    folder, sums = fetch("yeast_paired"), read_source("yeast_paired").files.set_index("path").sha256
    images, table = paired_images(folder)
    for i, row in table.iterrows():  # written as its origin wrote it, each array has the checksum of the original
        for c, name in zip(images[i, ::-1], ("gfp", "rfp")):
            path = f"yeast_model/toy_dataset/images/{row.protein}/{row.field}_{row.cell}_{name}.tif"
            file = io.BytesIO(); Image.fromarray(c).save(file, "TIFF")
            assert hashlib.sha256(file.getvalue()).hexdigest() == sums[path]
            if i % 8: continue
            (tmp_path/"o"/path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path/"o"/path).write_bytes(file.getvalue())
    again, rows = paired_images(tmp_path/"o")
    assert np.array_equal(again, images[::8]) and rows.equals(table.iloc[::8].reset_index(drop=True))


@real
def test_yeast_paired_makes_a_store(tmp_path, monkeypatch):
    monkeypatch.setenv("INTEGRATED_CELL_CACHE", str(tmp_path/"cache"))
    cells = paired_cells(fetch("yeast_paired"), tmp_path/"cells")
    images = cells.images[:]
    assert len(cells) == 1642 and cells.classes == ["AAC1", "AAC3", "AAH1", "AAP1", "AAR2"] and cells.shape == (64, 64)
    assert (cells.table.groupby("field").split.nunique() == 1).all()
    assert cells.table.groupby("structure").split.nunique().eq(2).all()
    assert (images.min((2, 3)) == 0).all() and (images.max((2, 3)) == 255).all()
    watched = paired_cells(fetch("yeast_paired"), None, validation_fraction=.05).table
    assert watched.split[watched.split == "test"].equals(cells.table.split[cells.table.split == "test"])
    assert (watched.split == "validation").groupby(watched.structure).mean().between(.02, .08).all(), "not whole fields"
    some = np.arange(0, len(cells), 8)
    together = [np.corrcoef(images[i, 0].ravel(), images[i, 1].ravel())[0, 1] for i in some]
    likeness = pd.Series(together).groupby(cells.table.structure[some].to_numpy()).median()
    cytosol, mitochondria = likeness[["AAH1", "AAP1"]], likeness[["AAC1", "AAC3"]]
    assert cytosol.min() > mitochondria.max(), "the red protein lies in the cytosol"


def test_plain_features_see_where_and_not_how_many():
    x = np.random.default_rng(0).integers(0, 256, (5, 2, 24, 40)).astype(np.uint8)
    a, b = plain_features(x), plain_features(x[:, :, ::-1, ::-1])
    assert np.allclose(a, b, rtol=1e-4) and np.isfinite(a.to_numpy()).all(), "mirrored cells have the same features"
    many = np.tile(x, (300, 1, 1, 1))
    assert np.allclose(plain_features(many).iloc[-5:], a) and plain_features(many).index.equals(pd.RangeIndex(1500))
    assert np.allclose(a[[f"red x {k}" for k in range(3)]].sum(axis=1), 1)
    assert not plain_features(0*x).isna().to_numpy().any()
    assert np.allclose(a["red mean"], x[:, 0].mean((1, 2))/255)
    assert np.allclose(a["green sd"], x[:, 1].std((1, 2))/255, atol=1e-5)


def test_folders_below_a_protein_links_and_other_forms_of_a_name_are_read(tmp_path):
    files = layout()
    plain = unpacked(tmp_path/"plain", files)
    deep = unpacked(tmp_path/"deep", {name.replace("/Tea1/", "/Tea1/monday/"): x for name, x in files.items()})
    (tmp_path/"linked").mkdir()
    for p in unpacked(tmp_path/"linked/own", files).iterdir(): (tmp_path/"linked"/("x_" + p.name)).symlink_to(p)
    assert len(lin_cells(deep, None, PAIR).table) == len(lin_cells(plain, None, PAIR).table) == 10
    twice = "are one cell by their names"
    refused(tmp_path, tmp_path/"linked", twice)
    accent = unpacked(tmp_path/"accent", {name.replace("Tea1", "E\u0301nol"): x for name, x in files.items()})
    assert "\u00c9nol" in lin_cells(accent, None, ("\u00c9nol", "Arp3")).classes


def test_what_is_no_archive_says_what_to_do(tmp_path):
    with tarfile.open(tmp_path/"a.tar.gz", "w:gz") as tar: tar.add(unpacked(tmp_path/"plain", layout()), "a")
    refused(tmp_path, tmp_path/"a.tar.gz", "is a tar archive, which is not read; unpack it")
    (tmp_path/"holds").mkdir()
    packed(tmp_path/"holds/a.zip", layout())
    refused(tmp_path, tmp_path/"holds", "it holds a.zip: give that")
    flat = {name.replace("/Tea1/", "/").replace("/Arp3/", "/"): x for name, x in layout().items()}
    refused(tmp_path, packed(tmp_path/"flat.zip", flat), "its pictures lie in no folder of a protein")
