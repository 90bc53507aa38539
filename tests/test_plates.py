"Plates of fields to single cells: tables that lack images, files that are damaged, a small plate, real crops, fields"
import gzip
import hashlib
import io
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from integrated_cell.app import main
from integrated_cell.data.cells import Cells
from integrated_cell.data.manifest import fetch, read_source
from integrated_cell.data.plates import (
    _crop_images, _true_range, crop_cells, crops, illumination, luminance, plate_cells, segment_field,
)
from integrated_cell.data.prepare import field_cells
from integrated_cell.data.sites import CHANNELS, COLUMNS, image_files, read_plate_tables, read_site, readable
from integrated_cell.results import BadInput
from integrated_cell.simulation.screen import draw_plates, simulate_field

MIRROR = os.environ.get("INTEGRATED_CELL_MIRROR")
def needs(source):
    here = bool(MIRROR) and (Path(MIRROR)/source).is_dir()
    return pytest.mark.skipif(not here, reason=f"INTEGRATED_CELL_MIRROR has no {source}")


GIVEN = (("B02", "DMSO", 0.), ("B03", "STA-1", 30.), ("B04", "PD-98059", 5.))


def rows(plates=("Week1_22123", "Week1_22141"), given=GIVEN, sites=2):
    "Sites as BBBC021's image table lists them; the two weeks name their files differently"
    listed = []
    for i, plate in enumerate(plates):
        for well, compound, dose in given:
            about = dict(folder=f"Week1/{plate}", plate=plate, well=well, replicate=i + 1)
            about |= dict(compound=compound, concentration=dose)
            listed += [file_names(plate, well, site) | about for site in range(1, sites + 1)]
    return listed


def file_names(plate, well, site):
    def name(k):
        key = hashlib.md5(f"{plate}{well}{site}{k}".encode()).hexdigest()[:8].upper()
        return f"Week1_150607_{well}_s{site}_w{k}{key}.tif"
    return dict(zip(CHANNELS, map(name, (1, 2, 4))))


def tables(folder, sites, moas=(("DMSO", 0, "DMSO"), ("STA-1", 30, "Microtubule stabilizers"))):
    folder.mkdir(parents=True, exist_ok=True)
    images = pd.DataFrame(sites).rename(columns={short: long for long, short in COLUMNS.items()})
    images.to_csv(folder/"BBBC021_v1_image.csv", index=False)
    pd.DataFrame(moas, columns=["compound", "concentration", "moa"]).to_csv(folder/"BBBC021_v1_moa.csv", index=False)
    return folder


def write(folder, sites, image=lambda i, row: np.full((3, 8, 9), i, np.uint16)):
    for i, row in enumerate(sites):
        (folder/row["plate"]).mkdir(parents=True, exist_ok=True)
        for c, x in zip(CHANNELS, image(i, row)): tifffile.imwrite(folder/row["plate"]/row[c], x)
    return folder


# ------------------------------------------------------------------------------------------------ tables

def test_the_table_names_each_site(tmp_path):
    sites = rows()
    table = read_plate_tables(write(tables(tmp_path, sites), sites))
    assert len(table) == 12 and table.site.tolist() == [1, 2]*6 and set(table.batch) == {"Week1"}
    assert not table.attrs["missing"]
    assert (table.moa.isna() == (table["compound"] == "PD-98059")).all()
    assert table.tubulin[3] == f"Week1_22123/{sites[3]['tubulin']}"
    assert table.attrs["told"] == ["treatments without a mechanism (1): PD-98059 at 5 µM"]


def test_zips_of_the_origin_are_read_without_unpacking(tmp_path):
    sites = rows()
    plates, folder = write(tmp_path/"unpacked", sites), tables(tmp_path/"zipped", sites)
    for plate, top in (("Week1_22123", "Week1_22123/"), ("Week1_22141", "")):
        with zipfile.ZipFile(folder/f"BBBC021_v1_images_{plate}.zip", "w") as z:
            for p in (plates/plate).iterdir(): z.write(p, top + p.name)
    zipped, unpacked = (read_plate_tables(f).drop(columns="replicate") for f in (folder, tables(plates, sites)))
    assert zipped.equals(unpacked)
    with zipfile.ZipFile(folder/"more.zip", "w") as z: z.writestr("../a.tif", b"")
    with pytest.raises(BadInput, match="climbs out"): read_plate_tables(folder)


def test_missing_images_are_counted_listed_and_left_out_only_on_request(tmp_path):
    sites = rows()
    write(tables(tmp_path, sites), sites[:9])
    (tmp_path/"Week1_22123"/sites[0]["actin"]).unlink()
    says = r"4 of 12 sites lack an image \(10 files: .*and 5 more\), on Week1_22123, Week1_22141; .*--allow-missing"
    with pytest.raises(BadInput, match=says): read_plate_tables(tmp_path)
    with pytest.raises(BadInput, match="4 of 12"): plate_cells(tmp_path, tmp_path/"store")
    assert not (tmp_path/"store").exists()
    table = read_plate_tables(tmp_path, allow_missing=True)
    assert len(table) == 8 and len(table.attrs["missing"]) == 10
    assert table.attrs["missing"][0] == f"Week1_22123/{sites[0]['actin']}" and "4 of 12" in table.attrs["told"][0]
    with pytest.raises(BadInput, match="1 of 6 sites lacks an image"):
        read_plate_tables(tmp_path, plates=["Week1_22123"])
    with pytest.raises(BadInput, match="no plate Week9_1 in its image table; it has Week1_22123"):
        read_plate_tables(tmp_path, plates=["Week9_1"])
    with pytest.raises(BadInput, match="none of the images"):
        read_plate_tables(tables(tmp_path/"empty", sites), allow_missing=True)


def test_compounds_on_one_plate_and_absent_dmso_are_told(tmp_path):
    sites = [r for r in rows() if r["plate"] == "Week1_22123" or r["compound"] != "STA-1"]
    told = read_plate_tables(write(tables(tmp_path/"a", sites), sites)).attrs["told"]
    assert any("compounds on one plate only (1)" in t and "STA-1" in t for t in told)
    sites = [r for r in rows() if r["compound"] != "DMSO"]
    told = read_plate_tables(write(tables(tmp_path/"b", sites), sites)).attrs["told"]
    assert any("no site was given DMSO" in t for t in told)


@pytest.mark.parametrize("change, says", [
    (lambda s, m: (s.drop(columns="plate"), m), "no column Image_Metadata_Plate_DAPI"),
    (lambda s, m: (s.assign(compound=[None, *s["compound"][1:]]), m),
     "1 row of BBBC021_v1_image.csv without compound, the first in line 2"),
    (lambda s, m: (pd.concat([s, s[:1]]), m), "lists site 1 of well B02 on Week1_22123 twice"),
    (lambda s, m: (s, [*m, ("STA-1", 30, "Eg5 inhibitors")]), "names STA-1 at 30 µM twice"),
])
def test_bad_tables(tmp_path, change, says):
    sites, moas = change(pd.DataFrame(rows()), [("DMSO", 0, "DMSO"), ("STA-1", 30, "Microtubule stabilizers")])
    with pytest.raises(BadInput, match=says) as e: read_plate_tables(tables(tmp_path, sites, moas))
    assert "\n" not in str(e.value)


def written(folder, change=lambda s: s, moas=(("DMSO", 0, "DMSO"), ("STA-1", 30, "Microtubule stabilizers")), **csv):
    "Tables as somebody else wrote them, the images where they were"
    sites = pd.DataFrame(write(folder, rows()) and rows())
    change(sites.rename(columns={short: long for long, short in COLUMNS.items()})).to_csv(
        folder/"BBBC021_v1_image.csv", index=False, **csv)
    pd.DataFrame(moas, columns=["compound", "concentration", "moa"]).to_csv(
        folder/"BBBC021_v1_moa.csv", index=False, **csv)
    return folder


DOSE, GIVEN_AS, WELL = "Image_Metadata_Concentration", "Image_Metadata_Compound", "Image_Metadata_Well_DAPI"

@pytest.mark.parametrize("change, moas, csv, told", [
    (lambda s: s.assign(**{DOSE: s[DOSE].astype(str) + " uM"}), None, {}, []),
    (lambda s: s.assign(**{DOSE: (s[DOSE]*1000).map("{:g} nM".format)}), None, {}, []),
    (lambda s: s, None, dict(sep=";", decimal=","), []),
    (lambda s: s, None, dict(sep="\t"), []),
    (lambda s: s.assign(**{WELL: s[WELL].str.replace("B0", "b")}), None, {}, []),
    (lambda s: s.assign(**{GIVEN_AS: s[GIVEN_AS].replace("DMSO", " dmso")}), None, {}, []),
    (lambda s: s, (("DMSO", 0, "DMSO"), ("STA-1", 30.000003, "Microtubule stabilizers")), {}, ["count as one (1)"]),
    (lambda s: s, (("dmso", 0, "DMSO"), ("sta-1", "30 µM", "Microtubule stabilizers")), {}, ["30 µM = STA-1"]),
    (lambda s: pd.concat([s, s[:1].assign(**{WELL: "B2"})]), None, {}, ["B2 for B02 on Week1_22123"]),
    (lambda s: s, None, dict(sep="|", encoding="utf-16"), []),
])
def test_tables_that_mean_the_same_say_the_same(tmp_path, change, moas, csv, told):
    right = read_plate_tables(written(tmp_path/"right"))
    found = read_plate_tables(written(tmp_path/"other", change, **(dict(moas=moas) if moas else {}), **csv))
    assert found.equals(right)
    new = [t for t in found.attrs["told"] if t not in right.attrs["told"]]
    assert len(new) == len(told) and all(says in t for says, t in zip(told, new))


@pytest.mark.parametrize("change, moas, says", [
    (lambda s: s.assign(**{DOSE: "3 %"}), None, "has the concentration '3 %' in line 2; give µM"),
    (lambda s: s.assign(**{DOSE: -s[DOSE]}), None, "has the concentration '-30.0' in line 4"),
    (lambda s: s, (("DMSO", 0, "DMSO"), ("STA-1", "30 M", "Eg5 inhibitors")),
     "has STA-1 at 30 µM, the other STA-1 at 3e[+]07 µM"),
    (lambda s: s, (("STA-7", 30, "Eg5 inhibitors"),), "has STA-1 at 30 µM, the other STA-7"),
    (lambda s: pd.concat([s, s[:1].assign(**{WELL: "B2", GIVEN_AS: "STA-1"})]), None, "lists site 1 of well B02"),
    (lambda s: s.rename(columns={WELL: "Well"}), None, "no column Image_Metadata_Well_DAPI; .* --columns"),
    (lambda s: s.assign(**{GIVEN_AS + " ": "STA-1"}), None, "has the column Image_Metadata_Compound twice"),
    (lambda s: s.assign(Batch=1, Image_Metadata_Batch=2), None, "has batches in Batch and in Image_Metadata_Batch"),
    (lambda s: s.assign(**{DOSE: ["1.000", *["0,3"]*11]}), None, "has the concentration '1.000' in line 2"),
    (lambda s: s[:0], None, "image.csv has no row below the names"),
    (lambda s: s, (("STA-1", 30, "NA"),), "moa.csv names no mechanism"),
    (lambda s: s, (("STA-1", 30, "dmso"),), "gives STA-1 at 30 µM the mechanism dmso, the name of"),
])
def test_tables_that_cannot_be_meant_so(tmp_path, change, moas, says):
    written(tmp_path, change, **(dict(moas=moas) if moas else {}))
    with pytest.raises(BadInput, match=says) as e: read_plate_tables(tmp_path)
    assert "\n" not in str(e.value)


def test_tables_as_spreadsheets_write_them(tmp_path):
    right = read_plate_tables(written(tmp_path/"right"))
    path, moa = (written(tmp_path/"own", sep=";")/f"BBBC021_v1_{t}.csv" for t in ("image", "moa"))
    text = path.read_text()
    path.write_text("sep=;\n" + text)
    moa.write_text(moa.read_text().replace("moa", "MOA"))
    assert read_plate_tables(tmp_path/"own", columns="moa=MOA").equals(right)
    lines = text.splitlines(); bad = ";".join(lines[3].split(";")[:-1] + ["x"])
    for content, says in (("# by robot\n" + text, "begins with the comment '# by robot'"),
                          (text.replace(";", " "), "by no comma, semicolon, tab or |"),
                          (text.replace(";30", ";30 µM").encode("cp1252"), "save it as UTF-8"),
                          (text + lines[1] + ";more\n", "more values in line 14 than columns"),
                          ("sep=;\n" + "\n".join([*lines[:3], bad]), "the concentration 'x' in line 5")):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(BadInput, match=says) as e: read_plate_tables(tmp_path/"own", columns="moa=MOA")
        assert "\n" not in str(e.value)
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(text.encode()))
    with pytest.raises(BadInput, match="image.csv.gz differ"): read_plate_tables(tmp_path/"own", columns="moa=MOA")
    for name in ("None", "NA"):
        own = written(tmp_path/name, lambda s: s.assign(**{GIVEN_AS: s[GIVEN_AS].replace("DMSO", name)}))
        assert read_plate_tables(own, control=name).equals(right)


def test_the_control_and_the_columns_have_other_names(tmp_path):
    right = read_plate_tables(written(tmp_path/"right"))
    def change(s): return s.rename(columns={WELL: "Well", DOSE: "dose", "Image_FileName_Actin": "rim"}).drop(
        columns="Image_PathName_DAPI").assign(**{GIVEN_AS: s[GIVEN_AS].replace("DMSO", "Vehicle")})
    own = written(tmp_path/"own", change)
    says = dict(control="vehicle", columns="well=Well, concentration=dose,actin=rim")
    found = read_plate_tables(own, **says)
    assert found.equals(right) and "the control is vehicle; from here on it is called DMSO" in found.attrs["told"]
    columns = dict(well="Well", concentration="dose", mito="rim", nuclei="Image_FileName_DAPI")
    renamed = dict(control="vehicle", columns=columns, channels=("nuclei", "Tubulin", "mito"))
    assert read_plate_tables(own, **renamed).equals(right)
    for asked, message in ((says | dict(control="water"), "no site was given 'water'; .*Vehicle"),
                           (says | dict(columns="well=Well,dose=dose"), "'dose' is not understood"),
                           (says | dict(channels=("dna", "er")), "are not three stains")):
        with pytest.raises(BadInput, match=message): read_plate_tables(own, **asked)
    single = read_plate_tables(written(tmp_path/"single", lambda s: s.drop(columns="Replicate")))
    assert single.equals(right.drop(columns="replicate")), "a table need not number its replicates"
    with pytest.raises(BadInput, match="no column Rep;"): read_plate_tables(tmp_path/"right", columns="replicate=Rep")
    with pytest.raises(BadInput, match="DMSO beside the control 'STA-1'"):
        read_plate_tables(tmp_path/"right", control="STA-1")
    no_control = read_plate_tables(own, columns=says["columns"]).attrs["told"]
    assert any("--control" in t and "Vehicle" in t for t in no_control)


def test_a_file_is_known_by_its_whole_path(tmp_path):
    sites = [row | dict(folder=f"D:\\screen\\{row['plate']}\\TimePoint_1", dna=f"{row['well']}_s1_w1.tif",
                        tubulin=f"{row['well']}_s1_w2.tif", actin=f"{row['well']}_s1_w4.tif") for row in rows(sites=1)]
    def place(row): return tmp_path/row["plate"]/"TimePoint_1"
    tables(tmp_path, sites)
    for i, row in enumerate(sites):
        place(row).mkdir(parents=True, exist_ok=True)
        for c in CHANNELS: tifffile.imwrite(place(row)/row[c], np.full((8, 9), i, np.uint16))
    table, files = read_plate_tables(tmp_path), image_files(tmp_path)
    grey = [read_site(files, row).max() for row in table.to_dict("records")]
    assert grey == list(range(6)) and table.dna[5] == "Week1_22141/TimePoint_1/B04_s1_w1.tif"
    shutil.rmtree(tmp_path/"Week1_22141")
    with pytest.raises(BadInput, match="3 of 6 sites lack an image .*on Week1_22141"): read_plate_tables(tmp_path)
    for p in (tmp_path/"Week1_22123"/"TimePoint_1").iterdir(): p.rename(tmp_path/p.name)
    with pytest.raises(BadInput, match="would be dna of Week1_22123/B02_s1 and dna of Week1_22141/B02_s1"):
        read_plate_tables(tmp_path)


def test_an_image_that_may_be_two_is_named(tmp_path):
    sites = [row | dict(folder="images") for row in rows(("P1",), GIVEN[:1], 1)]
    tables(tmp_path, sites)
    for place in ("a/images", "b/images"):
        (tmp_path/place).mkdir(parents=True)
        for c in CHANNELS: tifffile.imwrite(tmp_path/place/sites[0][c], np.zeros((4, 4), np.uint16))
    with pytest.raises(BadInput, match="of plate P1 may be a/images/.* or b/images/.*Image_PathName_DAPI"):
        read_plate_tables(tmp_path)
    (tmp_path/"a").rename(tmp_path/"P1")
    assert read_plate_tables(tmp_path).dna[0].startswith("P1/images/")


def test_one_file_never_serves_two_sites(tmp_path):
    sites = [row | dict(folder=row["plate"], dna=f"{row['well']}_s1_w1.tif", tubulin=f"{row['well']}_s1_w2.tif",
                        actin=f"{row['well']}_s1_w4.tif") for row in rows(sites=1)]
    write(tables(tmp_path, sites), sites)
    first, second = (tmp_path/p for p in ("Week1_22123", "Week1_22141"))
    told = [t for t in read_plate_tables(tmp_path).attrs["told"] if "copied" in t]
    shutil.rmtree(second); shutil.copytree(first, second)
    copied = read_plate_tables(tmp_path).attrs["told"]
    assert not told and "copied from the other: B02_s1_w1.tif of Week1_22123 and Week1_22141" in copied[0]
    one = second/sites[0]["tubulin"]
    def whole(): shutil.rmtree(second); second.symlink_to(first)
    def hard(): one.unlink(); os.link(first/one.name, one)
    def soft(): one.unlink(); one.symlink_to(first/one.name)
    for link in (soft, hard, whole):
        link()
        with pytest.raises(BadInput, match="are one file, by a link, which would be (dna|tubulin) of Week1_22123/B02"):
            read_plate_tables(tmp_path)


@pytest.mark.parametrize("how, says", [
    ("TimePoint_1", "but Week1_22123/TimePoint_1/.*tif lies there and the table says Week1_22123/"),
    ("capitals", "but WEEK1_22123/.*tif lies there"), ("ending", "but Week1_22123/.*tiff lies there"),
    ("pack", "not looked into lie there, Week1_22123.tar.gz, Week1_22141.tar.gz: unpack"),
    ("gone", "fetch the plates")])
def test_images_that_lie_elsewhere_are_named(tmp_path, how, says):
    sites = rows(sites=1)
    write(tables(tmp_path, sites), sites)
    for plate in ("Week1_22123", "Week1_22141"):
        old = tmp_path/plate
        if how == "capitals": old.rename(tmp_path/plate.upper())
        if how == "ending": [p.rename(p.with_suffix(".tiff")) for p in [*old.iterdir()]]
        if how == "pack": shutil.make_archive(str(old), "gztar", old)
        if how == "TimePoint_1":
            old.rename(tmp_path/"old"); old.mkdir(); (tmp_path/"old").rename(old/how)
        elif how in ("pack", "gone"): shutil.rmtree(old)
    with pytest.raises(BadInput, match=says) as e: read_plate_tables(tmp_path)
    assert "\n" not in str(e.value) and ("fetch" in str(e.value)) == (how == "gone")


def test_linked_plates_are_followed_and_circles_are_not(tmp_path):
    sites = rows()
    write(tmp_path/"store", sites); tables(tmp_path/"mine", sites)
    for plate in ("Week1_22123", "Week1_22141"): (tmp_path/"mine"/plate).symlink_to(tmp_path/"store"/plate)
    (tmp_path/"store"/"Week1_22141"/"back").symlink_to(tmp_path/"mine")
    assert len(read_plate_tables(tmp_path/"mine")) == 12


def test_no_tables(tmp_path):
    with pytest.raises(BadInput, match="has no BBBC021_v1_image.csv"): read_plate_tables(tmp_path)
    (tmp_path/"BBBC021_v1_image.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="save it as UTF-8"): read_plate_tables(tmp_path)


# ------------------------------------------------------------------------------------------------ images

@pytest.mark.parametrize("shift", [0, 4])
def test_twelve_bits_in_sixteen_are_recognised(shift):
    x = np.random.default_rng(0).poisson(300, (4, 20, 20)).clip(0, 4095).astype(np.uint16); x[0, 0, 0] = 3001
    assert _true_range(x << shift) == (shift, 4095)
    assert _true_range((x.astype(int)*15).astype(np.uint16)) == (0, 65535)
    assert _true_range(x.astype(np.uint8)) == (0, 255)


def test_luminance_of_every_kind_of_crop():
    x = np.random.default_rng(0).integers(0, 4096, (3, 9, 9)); x[1] = 0
    own = luminance(x)
    assert own.dtype == np.uint8 and own.max((1, 2)).tolist() == [255, 0, 255] and np.array_equal(own, luminance(x*.01))
    assert np.array_equal(luminance(x, (4095, 1, 100))[2], np.rint(np.clip(x[2]/100, 0, 1)*255))
    for bad in (0, -1, (1, 0, 1), np.nan):
        with pytest.raises(BadInput, match="is no brightness"): luminance(x, bad)
    with pytest.raises(BadInput, match="not finite"): luminance(np.array([[[np.nan]]]))


def test_illumination_agrees_with_a_fit_of_every_pixel():
    y, x = np.meshgrid(np.linspace(-1, 1, 30), np.linspace(-1, 1, 40), indexing="ij")
    lamp = 1 - .3*(y - .2)**2 - .2*x**2 + .1*x*y
    assert np.allclose(illumination(np.stack([lamp*7, lamp*3])), lamp/lamp.mean(), atol=1e-5)
    hot = np.random.default_rng(0).poisson(300*lamp, (60, 30, 40)).astype(float)
    assert np.abs(illumination(hot)/(lamp/lamp.mean()) - 1).max() < .02


def test_crops_are_padded_and_never_moved():
    rng = np.random.default_rng(0)
    field, labels = rng.integers(1, 99, (2, 40, 60)), np.zeros((40, 60), int)
    for k, (y, x) in enumerate(((0, 0), (20, 30), (39, 59), (5, 57)), 1):
        labels[max(y - 1, 0):y + 2, max(x - 1, 0):x + 2] = k*3
    for size in (7, 8, 33, 96):
        cut = crops(field, labels, size)
        wide = np.pad(field, [(0, 0), (100, 100), (100, 100)])
        for k, one in zip((3, 6, 9, 12), cut):
            y, x = np.ceil(np.argwhere(labels == k).mean(0) - size/2).astype(int) + 100
            assert np.array_equal(one, wide[:, y:y + size, x:x + size])
    assert crops(field.astype(np.float32), labels*0, 8).shape == (0, 2, 8, 8)


@pytest.mark.parametrize("compound, concentration, least", [
    ("DMSO", 0., .8), ("DES-1", None, .75), ("STA-1", None, .75), ("SYN-1", None, .75)])
def test_segmentation_finds_the_simulated_cells(compound, concentration, least):
    plan = draw_plates()
    concentration = plan[plan["compound"] == compound].concentration.max() if concentration is None else concentration
    field, truth = simulate_field(24, (256, 320), compound, concentration, seed=7)
    nuclei, cells = segment_field(*(field - np.percentile(field, .1, (1, 2), keepdims=True)))
    owner = [np.bincount(truth[nuclei == k]).argmax() for k in range(1, nuclei.max() + 1)]
    same = [((truth == t) & (cells == k)).sum()/((truth == t) | (cells == k)).sum() for k, t in enumerate(owner, 1)]
    assert 0 not in owner and abs(len(owner) - 24) <= 3 and len(set(owner)) >= 20 and np.mean(same) > least
    assert set(np.unique(cells)) == set(np.unique(nuclei))
    assert (cells[nuclei > 0] == nuclei[nuclei > 0]).all(), "each cell has its own nucleus"
    assert ((cells > 0) == (truth > 0)).mean() > .85


@pytest.mark.parametrize("field", [
    np.zeros((3, 64, 64)), np.full((3, 64, 64), 7), np.random.default_rng(0).poisson(100, (3, 128, 160)),
    np.random.default_rng(1).normal(0, 1, (3, 128, 160))])
def test_background_is_never_a_cell(field):
    nuclei, cells = segment_field(*field)
    assert not nuclei.any() and not cells.any()


# ------------------------------------------------------------------------------------------------ a plate

def screen_plate(folder, shift=4, sites=2, n=10):
    listed, fields, truth = rows(sites=sites), [], {}
    for i, row in enumerate(listed):
        given = ("STA-1", row["concentration"]) if row["compound"] == "STA-1" else ("DMSO", 0.)
        field, labels = simulate_field(n, (192, 224), *given, seed=i, plate=row["replicate"])
        fields.append(field << shift)
        truth[f"{row['plate']}/{row['well']}_s{1 + i % sites}"] = labels
    return write(tables(folder, listed), listed, lambda i, row: fields[i]), truth


@pytest.fixture(scope="module")
def small(tmp_path_factory): return screen_plate(tmp_path_factory.mktemp("plates"))


def test_a_plate_becomes_a_store_end_to_end(small, tmp_path, capsys):
    folder, truth = small
    cells = plate_cells(folder, tmp_path/"cells", 96, annotated=False, test_fraction=.5)
    assert cells.channels == CHANNELS and cells.shape == (96, 96) and cells.voxel_um is None
    assert cells.classes == ["DMSO", "Microtubule stabilizers", "no mechanism"]
    columns = "cell_id structure compound concentration moa plate well batch replicate site"
    assert set(columns.split()) <= set(cells.table)
    assert (cells.table.groupby("plate").split.nunique() == 1).all() and set(cells.table.split) == {"train", "test"}
    told = cells.provenance["told"]
    assert sum("16 bits hold 12, times 16, so full scale is 4,095" in t for t in told) == 2
    assert any("PD-98059" in t for t in told) and told[0] in capsys.readouterr().err
    for site, labels in truth.items():
        found = cells.table[cells.table.cell_id.str.rsplit("_", n=1).str[0] == site]
        under = labels[found.centre_y.round().astype(int), found.centre_x.round().astype(int)]
        assert (under > 0).all()
        assert len(set(under)) >= len(under) - 1, "each crop is centred on a cell of its own, none on background"
        assert len(found) >= .5*(len(np.unique(labels)) - 1)
    images = cells.images[:]
    assert (images.max((2, 3)) == 255).all() and np.median(centre := images[:, 0, 44:52, 44:52].mean((1, 2))) > 110
    assert centre.min() > 30
    assert Cells.open(tmp_path/"cells").table.equals(cells.table) and not list(tmp_path.glob(".*"))


def test_bits_workers_and_folders_do_not_change_the_cells(small, tmp_path):
    folder, _ = small
    twelve, _ = screen_plate(tmp_path/"twelve", shift=0)
    a = plate_cells(folder, test_fraction=0, plates=["Week1_22123"])
    b = plate_cells(twelve, test_fraction=0, plates=["Week1_22123"], workers=2)
    assert np.array_equal(a.images, b.images) and a.table.equals(b.table)
    assert a.classes == ["DMSO", "Microtubule stabilizers"]
    fixed = plate_cells(folder, test_fraction=0, plates=["Week1_22123"], full=4095)
    tops = a.table.filter(like="full_").to_numpy()
    assert np.allclose(fixed.images.max((2, 3))/255*4095, tops, atol=9) and (fixed.table.full_dna == 4095).all()


def test_the_command_line_leaves_out_what_is_missing_only_when_told_to(small, tmp_path, capsys):
    folder = tmp_path/"plates"
    shutil.copytree(small[0], folder)
    next((folder/"Week1_22141").glob("*.tif")).unlink()
    call = ["plates", str(folder), "--out", str(tmp_path/"cells"), "--plates", "Week1_22123,Week1_22141"]
    assert main(call) == 2 and "1 of 12 sites lacks an image" in (said := capsys.readouterr().err)
    assert said.count("\n") == 1 and not (tmp_path/"cells").exists()
    assert main([*call, "--allow-missing"]) == 0 and "1 of 12 sites" in capsys.readouterr().err
    assert len(Cells.open(tmp_path/"cells").provenance["missing"]) == 1


def test_one_plate_is_split_by_field(small, capsys):
    cells = plate_cells(small[0], plates=["Week1_22123"], test_fraction=.5)
    assert (cells.table.groupby("field").split.nunique() == 1).all() and set(cells.table.split) == {"train", "test"}
    assert "field by field, not plate by plate" in capsys.readouterr().err
    with pytest.raises(BadInput, match="single group"): plate_cells(small[0], plates=["Week1_22123"], group="plate")
    with pytest.raises(BadInput, match="is no brightness"): plate_cells(small[0], full=0)
    with pytest.raises(BadInput, match="pixel_um -1"): plate_cells(small[0], pixel_um=-1)


def save(path, x, kind):
    if kind == "png": return Image.fromarray(x).save(path)
    like = dict(int16=x.astype(np.int16), int32=x.astype(np.int32), float32=np.float32(x)/4095)
    like |= dict(singleton=x[None, :, None], negative=x.astype(np.int16) - 300)
    tifffile.imwrite(path, like[kind], photometric="minisblack")


@pytest.mark.parametrize("kind", ["png", "int16", "int32", "float32", "singleton", "negative"])
def test_other_files_of_the_same_plate_give_the_same_cells(small, tmp_path, kind):
    right = plate_cells(small[0], test_fraction=0, plates=["Week1_22123"])
    sites = [r for r in rows() if r["plate"] == "Week1_22123"]
    ending = ".png" if kind == "png" else ".tif"
    tables(tmp_path, [r | {c: r[c].replace(".tif", ending) for c in CHANNELS} for r in sites])
    (tmp_path/"Week1_22123").mkdir()
    for p in (small[0]/"Week1_22123").glob("*.tif"):
        save(tmp_path/"Week1_22123"/p.with_suffix(ending).name, tifffile.imread(p) >> 4, kind)
    cells = plate_cells(tmp_path, test_fraction=0)
    assert len(cells) == len(right) and cells.table.cell_id.equals(right.table.cell_id)
    assert np.abs(cells.images[:].astype(int) - right.images[:]).max() <= 1


def test_images_that_are_no_plane_of_grey_values(tmp_path):
    sites = rows(("P1",), GIVEN[:1], 1)
    def noise(i, row): return np.random.default_rng(i).integers(0, 4096, (3, 32, 40)).astype(np.uint16)
    write(tables(tmp_path, sites), sites, noise)
    bad = tmp_path/"P1"/sites[0]["tubulin"]
    hollow, colours = np.full((32, 40), np.nan, np.float32), np.random.default_rng(0).integers(0, 2**16, (3, 256))
    kinds = {"says that 0 is white": dict(photometric="miniswhite"),
             "has a palette of colours": dict(photometric="palette", colormap=colours.astype(np.uint16))}
    for says, how in kinds.items():
        tifffile.imwrite(bad, np.zeros((32, 40), np.uint8), **how)
        with pytest.raises(BadInput, match=says): plate_cells(tmp_path)
    for x, says in ((np.zeros((32, 40, 3), np.uint8), "is uint8 of shape .* save each stain as a grey file"),
                    (np.zeros((32, 40), np.uint8), "one size and type"),
                    (np.zeros((32, 40), bool), "is bool"), (hollow, "values that are not finite")):
        tifffile.imwrite(bad, x)
        with pytest.raises(BadInput, match=says) as e: plate_cells(tmp_path)
        assert "\n" not in str(e.value)


def test_a_store_has_the_names_that_were_asked_for_and_sites_without_cells_are_counted(tmp_path, capsys):
    folder, _ = screen_plate(tmp_path/"plates")
    table = pd.read_csv(folder/"BBBC021_v1_image.csv")
    table[GIVEN_AS] = table[GIVEN_AS].replace("DMSO", "water")
    table = table.rename(columns={"Image_FileName_Actin": "Image_FileName_er"})
    table.to_csv(folder/"BBBC021_v1_image.csv", index=False)
    dark = [row for row in rows() if row["well"] == "B03" and row["plate"] == "Week1_22123"]
    write(folder, dark, lambda i, row: np.full((3, 192, 224), 1600, np.uint16))
    cells = plate_cells(folder, tmp_path/"cells", test_fraction=0, control="water", channels=("dna", "tubulin", "er"))
    said = capsys.readouterr().err
    assert cells.channels == ("dna", "tubulin", "er") and "full_er" in cells.table and "full_actin" not in cells.table
    assert cells.classes == ["DMSO", "Microtubule stabilizers"] and cells.provenance["control"] == "water"
    assert "2 of 8 sites hold no whole cell: Week1_22123/B03_s1, Week1_22123/B03_s2" in said
    assert "the control is water; from here on it is called DMSO" in said


def test_empty_fields_give_no_cell(tmp_path):
    sites = rows()
    def dark(i, row): return np.random.default_rng(i).poisson(100, (3, 64, 80)).astype(np.uint16)
    write(tables(tmp_path, sites), sites, dark)
    with pytest.raises(BadInput, match="no cell was found on 8 sites"): plate_cells(tmp_path, test_fraction=0)


def test_a_place_that_holds_anything_else_is_not_touched(small, tmp_path, capsys):
    folder = tmp_path/"plates"; shutil.copytree(small[0], folder)
    kept = sorted(p.relative_to(folder) for p in folder.rglob("*"))
    no_store, moa = "files that are no store of cells", folder/"BBBC021_v1_moa.csv"
    places = {folder: no_store, folder/"Week1_22123": no_store, moa: "is a file", moa/"cells": "is a file"}
    for out, says in places.items():
        assert main(["plates", str(folder), "--out", str(out)]) == 2 and says in (said := capsys.readouterr().err)
        assert said.count("\n") == 1
    with pytest.raises(BadInput, match="no store of cells"): crop_cells(folder, folder)
    assert sorted(p.relative_to(folder) for p in folder.rglob("*")) == kept


@pytest.mark.parametrize("flags, says", [
    (["--size", "0"], "size 0 is no side"), (["--size", "-96"], "size -96"), (["--workers", "0"], "0 workers"),
    (["--nucleus-px", "0"], "nucleus_px 0 is no"), (["--nucleus-px", "nan"], "nucleus_px nan")])
def test_numbers_that_make_no_sense(small, tmp_path, capsys, flags, says):
    assert main(["plates", str(small[0]), "--out", str(tmp_path/"cells"), *flags]) == 2
    assert says in (said := capsys.readouterr().err) and said.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("plates, batches, expected, says", [
    (("001", "B"), None, ["all", "all"], "the 2 plates count as one batch"),
    (("Week1_1", "B"), None, ["all", "all"], "one batch"),
    (("Week1_1", "Week2_1"), None, ["Week1", "Week2"], "every plate is a batch of its own"),
    (("Week1_1", "Week1_2"), None, ["Week1", "Week1"], None),
    (("Week1_1", "Week2_1"), ("x", "x"), ["x", "x"], None)])
def test_a_batch_is_a_column_or_a_week_or_all(tmp_path, plates, batches, expected, says):
    sites = rows(plates)
    if batches: sites = [row | dict(Image_Metadata_Batch=batches[plates.index(row["plate"])]) for row in sites]
    table = read_plate_tables(write(tables(tmp_path, sites), sites))
    told = " ".join(t for t in table.attrs["told"] if "batch" in t)
    assert table.drop_duplicates("plate").batch.tolist() == expected and set(table.plate) == set(plates)
    assert says in told if says else not told


def test_a_damaged_image_is_left_out_on_request_and_found_before_any_work(small, tmp_path, capsys, monkeypatch):
    folder = tmp_path/"plates"; shutil.copytree(small[0], folder)
    bad = sorted((folder/"Week1_22141").glob("*_B02_*.tif"))[-1]; bad.write_bytes(bad.read_bytes()[:999])
    call = ["plates", str(folder), "--out", str(tmp_path/"cells")]
    with monkeypatch.context() as m:
        m.setattr("integrated_cell.data.plates._look", None)
        assert main(call) == 2 and f"{bad} cannot be read as TIFF" in (said := capsys.readouterr().err)
        assert "fetch" not in said and said.count("\n") == 1
    assert main([*call, "--allow-missing"]) == 0
    assert "1 of 8 sites holds a damaged image (1 file: Week1_22141/" in (said := capsys.readouterr().err)
    assert "store.json (provenance.missing)" in said
    cells = Cells.open(tmp_path/"cells")
    assert cells.provenance["missing"] == [f"Week1_22141/{bad.name}"] and cells.provenance["n_sites"] == 7
    assert cells.table.field.nunique() == 7
    held_out = [t for t in cells.provenance["told"] if "% of the cells are held out for testing" in t]
    assert "where 10% was asked for" in held_out[0] and "2 plates" in held_out[0]
    assert main([*call, "--allow-missing"]) == 0, "a store is made anew in its own place"
    table = read_plate_tables(folder, plates=["Week1_22141", "Week1_22123"]); files = image_files(folder)
    for key in table.dna[(table["compound"] == "STA-1") & (table.plate == "Week1_22141")]: (folder/key).write_bytes(b"")
    _, told, _ = readable(files, table, allow_missing=True)
    assert told[1].startswith("without these sites: compounds on one plate only (1)")


def test_a_damaged_entry_of_a_zip_is_named(tmp_path):
    sites = rows(("P1",), GIVEN[:1])
    def grey(i, row): return np.full((3, 64, 64), i + 7, np.uint16)
    plates, folder = write(tmp_path/"unpacked", sites, grey), tables(tmp_path/"zipped", sites)
    name = f"P1/{sites[0]['actin']}"; content = (plates/name).read_bytes()
    with zipfile.ZipFile(folder/"P1.zip", "w") as z:
        for p in sorted(plates.rglob("*.tif")): z.write(p, p.relative_to(plates))
        at = z.getinfo(name).header_offset
    raw = bytearray((folder/"P1.zip").read_bytes())
    raw[at + 200 + len(content)//2] ^= 255; (folder/"P1.zip").write_bytes(raw)
    with pytest.raises(BadInput, match=f"P1.zip/{name} cannot be read as TIFF .BadZipFile.") as e:
        plate_cells(folder, test_fraction=0)
    assert "fetch" not in str(e.value)


def test_damaged_images_are_named(tmp_path):
    sites = rows(sites=1)
    def noise(i, row): return np.random.default_rng(i).integers(0, 4096, (3, 32, 40)).astype(np.uint16)
    write(tables(tmp_path, sites), sites, noise)
    bad = tmp_path/"Week1_22123"/sites[0]["tubulin"]; whole = bad.read_bytes()
    for content in (whole[:len(whole)//2], b"", b"GIF89a"):
        bad.write_bytes(content)
        with pytest.raises(BadInput, match=f"Week1_22123/{bad.name} cannot be read as TIFF"):
            plate_cells(tmp_path, tmp_path/"store")
    for image, says in ((np.zeros((32, 40), np.float32), "is float32 of shape"),
                        (np.zeros((2, 32, 40), np.uint16), "is uint16 of shape"),
                        (np.zeros((31, 40), np.uint16), "must be of one size")):
        tifffile.imwrite(bad, image, photometric="minisblack")
        with pytest.raises(BadInput, match=says): plate_cells(tmp_path, tmp_path/"store")
    assert not (tmp_path/"store").exists() and not list(tmp_path.glob(".store*"))


# ------------------------------------------------------------------------------------------------ crops

def original_crops(folder, n=12):
    sites = rows(plates=("Week4_1", "Week4_2"), given=GIVEN[:2], sites=1)
    x = np.random.default_rng(0).integers(1, 4096, (n, 68, 68, 3)).astype(np.uint16)*16
    for i in range(n):
        row = sites[i % 4]
        place = folder/"data_subset"/("DMSO" if row["compound"] == "DMSO" else "Protein synthesis")
        place.mkdir(parents=True, exist_ok=True)
        np.save(place/f"{row['dna'][:-4]}_{i}.npy", x[i])
    return tables(folder, sites), x


def test_originals_find_their_treatment_in_the_image_table(tmp_path):
    folder, x = original_crops(tmp_path)
    images, about = _crop_images(folder)
    order = about.cell_index.to_numpy()
    assert np.array_equal(images, np.moveaxis(x[order], -1, 1)[:, [0, 2, 1]]//16)
    assert set(about.plate) == {"Week4_1", "Week4_2"} and set(about.batch) == {"Week4"}
    cells = crop_cells(folder, tmp_path/"store", test_fraction=.5)
    assert cells.shape == (68, 68) and cells.classes == ["DMSO", "Microtubule stabilizers"]
    assert (cells.table.groupby("plate").split.nunique() == 1).all()
    full = cells.table.filter(like="full_").to_numpy()[..., None, None]
    assert np.allclose(cells.images[:]/255*full, images, atol=8.1)
    fixed = crop_cells(folder, full=4095, test_fraction=.5)
    assert np.array_equal(fixed.images, np.rint(images/np.float32(4095)*255).astype(np.uint8))


def test_bad_crops(tmp_path):
    with pytest.raises(BadInput, match="neither cells.npz with cells.csv nor"): crop_cells(tmp_path)
    folder, x = original_crops(tmp_path)
    some = next(folder.rglob("*_w1*.npy")); whole = some.read_bytes()
    some.write_bytes(whole[:99])
    with pytest.raises(BadInput, match="is no crop of 68"): crop_cells(folder)
    np.save(some, x[0, :40])
    with pytest.raises(BadInput, match="is no crop of 68"): crop_cells(folder)
    some.rename(some.with_name("B02_s1_w1FFFF_0.npy")); np.save(some.with_name("B02_s1_w1FFFF_0.npy"), x[0])
    with pytest.raises(BadInput, match="does not name B02_s1_w1FFFF.tif"): crop_cells(folder)
    (tmp_path/"cells.npz").write_bytes(b"?"); (tmp_path/"cells.csv").write_text("plate\n")
    with pytest.raises(BadInput, match="cells.* cannot be read"): crop_cells(folder)


@needs("bbbc021_cells")
def test_bbbc021_cells_is_its_originals(tmp_path, monkeypatch):
    monkeypatch.setenv("INTEGRATED_CELL_CACHE", str(tmp_path/"cache"))
    folder = fetch("bbbc021_cells"); sums = read_source("bbbc021_cells").files.set_index("path").sha256
    images, about = _crop_images(folder)
    table = pd.read_csv(folder/"cells.csv")
    raw = np.moveaxis(images[:, [0, 2, 1]], 1, -1) << 4
    for i in range(0, len(table), 16):
        file = io.BytesIO(); np.save(file, raw[i])
        assert hashlib.sha256(file.getvalue()).hexdigest() == sums[table.path[i]]
    assert (about["compound"] == "DMSO").sum() == 1500 and about.plate.nunique() == 6
    assert set(about.concentration[about["compound"] != "DMSO"]) == {5, 15, 50}
    assert about.groupby("well").concentration.nunique().eq(1).all(), "the confound: a well is a dose"


# ------------------------------------------------------------------------------------------------ segmented fields

def segmented(n=6, size=(9, 60, 90)):
    z, y, x = np.mgrid[:size[0], :size[1], :size[2]]
    cells, nuclei = np.zeros((2, *size), np.uint8)
    for k in range(n):
        cy, cx = 15 + 30*(k//3), 15 + 30*(k % 3)
        cells[((y - cy)/9)**2 + ((x - cx)/13)**2 + ((z - 4)/4)**2 < 1] = k + 1
        nuclei[((y - cy)/4)**2 + ((x - cx - 2)/5)**2 + ((z - 4)/3)**2 < 1] = k + 1
    return cells, nuclei, (np.random.default_rng(0).random(size) < .2)*(cells > 0)*255


@pytest.mark.parametrize("flat", [False, True])
def test_a_segmented_field_goes_through_the_same_door(flat, tmp_path):
    cells, nuclei, dots = (a.max(0) if flat else a for a in segmented())
    n, channels = cells.ndim, dict(membrane=None, structure=dots, dna=None)
    store = field_cells(cells, nuclei, channels, (.3,)*n, .3, (12, 24, 32)[-n:], "TOM20", tmp_path/"store", "fov")
    assert len(store) == 6 and store.classes == ["TOM20"] and store.channels == ("membrane", "structure", "dna")
    assert store.voxel_um == (.3,)*n
    assert store.table.cell_id.tolist() == [f"fov_{k}" for k in range(1, 7)]
    assert not store.provenance["left_out"]
    for i, x in enumerate(store.images):
        assert np.abs(np.array(ndimage.center_of_mass(x[2] > 127)) - (np.array(x.shape[1:]) - 1)/2).max() < .6
        assert abs((x[0] > 127).sum()/(cells == i + 1).sum() - 1) < .1


def test_cells_of_a_segmented_field_that_cannot_be_used(tmp_path):
    cells, nuclei, dots = segmented()
    cut, alone = cells.copy(), nuclei.copy()
    cut[:, :8] = 0; cut = cut[:, 8:]; alone = alone[:, 8:]; alone[alone == 5] = 0
    channels, tight = dict(membrane=None, structure=dots, dna=None), ((.3,)*3, .3, (12, 24, 32), "TOM20")
    cut_channels = dict(channels, structure=dots[:, 8:])
    store = field_cells(cut, alone, cut_channels, *tight)
    bordering = [dict(cell_id=f"field_{k}", why="the border of the field cuts it") for k in (1, 2, 3)]
    assert store.provenance["left_out"] == [*bordering, dict(cell_id="field_5", why="it has no nucleus")]
    assert len(field_cells(cut, alone, cut_channels, *tight, whole=False)) == 5
    for bad, says in (((cells*1., nuclei, channels), "whole numbers"), ((cells, nuclei[:, 1:], channels), "must agree"),
                      ((cells*0, nuclei, channels), "no cell"), ((cells, nuclei*0, channels), "none of 6 cells"),
                      ((cells, nuclei, dict(channels, structure=dots[0])), "channel structure has shape")):
        with pytest.raises(BadInput, match=says): field_cells(*bad, *tight)
    with pytest.raises(BadInput, match="none of 6 cells can be used"):
        field_cells(cells, nuclei, channels, (.3,)*3, .3, (2, 4, 4), "TOM20")


@needs("hipsc_fov")
def test_the_field_of_hipsc(tmp_path, monkeypatch):
    monkeypatch.setenv("INTEGRATED_CELL_CACHE", str(tmp_path/"cache"))
    folder = fetch("hipsc_fov")
    def flat(name): return tifffile.imread(next(folder.rglob(f"*_{name}_segmentation.tiff"))).max(0)
    channels = dict(membrane=None, structure=flat("structure"), dna=None)
    store = field_cells(flat("cell"), flat("nucleus"), channels, (.108, .108), .317, (96, 192), "TOM20")
    assert len(store) + len(store.provenance["left_out"]) == 13
    assert len(store) >= 11
    assert (store.images[:, 1].max((1, 2)) == 255).all()
