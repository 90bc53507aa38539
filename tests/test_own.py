"Own images: what files and tables say is never ignored, what goes wrong is one sentence, and a segmented field goes in"
import json
import logging
import re

import numpy as np
import pandas as pd
import pytest
import tifffile
from test_prepare import UM, body, imagej, ome, zarr

from integrated_cell.data.checkup import look_at_all
from integrated_cell.data.image import ROLES, channel_choice, image_name, pick_channels, read_image, read_labels
from integrated_cell.data.own import checked_rows, own_image, prepare_table, read_table
from integrated_cell.data.stack import Frame
from integrated_cell.inputs import _named_in
from integrated_cell.results import BadInput

ROOM = .4, (24, 32, 56)  # voxel size and shape that hold the cell of test_prepare


def named(path, *names, **more):
    "The cell of test_prepare with its channels in the order of `names`, each the first letter of its role"
    order = ["msd".index(n.strip().lower()[0]) for n in names]
    return ome(path, body()[0][order], Channel={"Name": [n[2:] for n in names]}, **{**UM, **more})


def one(tmp_path, path, **row):
    "Prepare a table of one image"
    of_all = {k: row.pop(k) for k in list(row) if k in ("of_all",)}.get("of_all", {})
    return prepare_table(pd.DataFrame([dict(path=str(path), structure="a", **row)]), None, *ROOM, test_fraction=0, **of_all)


def said(of, *args, **kwargs):
    "The one sentence of a refusal"
    with pytest.raises(BadInput) as e: of(*args, **kwargs)
    assert "\n" not in str(e.value) and "Traceback" not in str(e.value)
    return str(e.value)


@pytest.fixture
def right(tmp_path):
    return one(tmp_path, named(tmp_path/"right.ome.tif", "m membrane", "s structure", "d dna"))[0]


# ------------------------------------------------------------------------------------------------ channels

def test_names_decide_whatever_the_order(tmp_path, right):
    for k, names in enumerate((["d dna", "m membrane", "s structure"], ["d dna ", "m  Membrane", "s STRUCTURE"])):
        assert np.array_equal(one(tmp_path, named(tmp_path/f"{k}.ome.tif", *names))[0], right)


@pytest.mark.parametrize("names, lacking, channels", [
    (["d dna", "m membrane", "s GFP"], "which of its 3 channels (called dna, membrane, GFP) is structure?", "structure=GFP"),
    (["d DAPI", "m CellMask", "s GFP"], "is membrane and which structure and which dna?", "membrane=CellMask, structure=gfp,dna=0"),
    (["m membrane", "s dna", "d dna"], "is structure and which dna?", "structure=1,dna=2")])
def test_unknown_names_are_told_and_can_be_said(tmp_path, right, names, lacking, channels):
    path = named(tmp_path/"a.ome.tif", *names)
    told = said(one, tmp_path, path)
    assert lacking in told and "by name or by number" in told and "a.ome.tif" in told
    assert np.array_equal(one(tmp_path, path, channels=channels)[0], right), "for a row"
    assert np.array_equal(one(tmp_path, path, of_all=dict(channels=channels))[0], right), "for the table"


@pytest.mark.parametrize("channels, told", [
    ("membrane=7", "no channel 7; it has 3 (dna, membrane, GFP)"), ("structure=RFP", "no channel RFP"),
    ("structure=0", "both channel 0"), ("protein=GFP", "'protein=GFP' is not understood"), ("GFP", "not understood")])
def test_channels_that_are_said_wrongly(tmp_path, channels, told):
    assert told in said(one, tmp_path, named(tmp_path/"a.ome.tif", "d dna", "m membrane", "s GFP"), channels=channels)


def test_placeholders_are_no_names():
    for names in (["Channel:0:0", "Channel:0:1", "Channel:0:2"], ["C1", "C2", "C3"], ["0", "1", "2"], [""]*3):
        assert pick_channels(names) == [0, 1, 2]
    assert "called 405, 488, 640" in said(pick_channels, ["405", "488", "640"]), "a wavelength is a name"
    assert "without names" in said(pick_channels, ["", ""], ["membrane", "dna"])
    assert pick_channels(["405", "488", "640"], choice=dict(membrane="640", structure="488", dna="405")) == [2, 1, 0]


def test_a_file_a_channel(tmp_path, right):
    for role, x in zip(("membrane", "structure", "dna"), body()[0]):
        tifffile.imwrite(tmp_path/f"{role}.tif", x, metadata=dict(axes="ZYX"))
    row = {f"{role}_path": str(tmp_path/f"{role}.tif") for role in ("membrane", "structure", "dna")}
    def made(**more): return prepare_table(pd.DataFrame([dict(row, structure="a", **more)]), None, *ROOM, test_fraction=0)
    assert np.array_equal(made(voxel_um="0.5,0.2,0.2")[0], right)
    assert "structure.tif does not say how large" in said(made) or "membrane.tif does not say how large" in said(made)
    assert "give one of both" in said(made, path="a.tif")
    del row["dna_path"]
    assert "row 1 of the table has no dna_path" in said(made)
    row["dna_path"] = str(tmp_path/"flat.ome.tif"); tifffile.imwrite(tmp_path/"flat.ome.tif", body()[0][2, :9], metadata=dict(axes="ZYX"))
    assert "must agree" in said(made, voxel_um="0.5,0.2,0.2")
    ome(tmp_path/"flat.ome.tif", body()[0][:1], Channel={"Name": ["membrane"]}, **UM)
    assert "which of its 1 channels (called membrane) is dna" in said(made, voxel_um="0.5,0.2,0.2")


def apart(folder, cells=(0, 70), name="{cell}_{channel}.tif", channels=("w1", "w2", "w3")):
    "A file a channel (membrane, dna, structure) of cells that lie in several ways"
    for k, angle in enumerate(cells, 1):
        for channel, x in zip(channels, body(angle)[0][[0, 2, 1]]):
            file = folder/name.format(cell=f"c_{k}", channel=channel)
            file.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(file, x, metadata=dict(axes="ZYX"))


@pytest.mark.parametrize("pattern", ["{cell}_{channel}.tif", "(?P<cell>.+)_(?P<Channel>w\\d)\\.tif", "./{cell}_{channel}.tif"])
def test_a_pattern_stands_for_a_file_a_channel(tmp_path, right, pattern):
    apart(tmp_path)
    (tmp_path/"notes.txt").touch()
    said_of = dict(structure="a", channels="membrane=w1,structure=w3,dna=w2", voxel_um="0.5,0.2,0.2")
    pd.DataFrame([dict(said_of, path=pattern)]).to_csv(tmp_path/"cells.csv", index=False)
    cells = prepare_table(tmp_path/"cells.csv", None, *ROOM, test_fraction=0)
    assert list(cells.table.cell_id) == ["c_1", "c_2"] and np.array_equal(cells[0], right)
    (tmp_path/"c_2_w3.tif").unlink()
    told = said(prepare_table, tmp_path/"cells.csv", None, *ROOM)
    assert "row 1 of the table" in told and "c_2_w3.tif, the structure of its image, is not there; put it there" in told


def test_fields_of_a_pattern_fill_columns(tmp_path):
    for k, name in enumerate(("LAMP2", "TfR")):
        apart(tmp_path, (40*k, 90), f"{name}/{{cell}}_{{channel}}.tif", ("membrane", "dna", "structure"))
        for c in (1, 2): tifffile.imwrite(tmp_path/f"{name}/c_{c}_mask.png.tif", body((40*k, 90)[c - 1])[1].astype(np.uint8))
    row = dict(path="{structure}/{cell}_{channel}.tif", cell_mask="{structure}/{cell}_mask.png.tif", voxel_um="0.5,0.2,0.2")
    cells = prepare_table(pd.DataFrame([{k: str(tmp_path/v) if "{" in v else v for k, v in row.items()}]), None, *ROOM, test_fraction=0)
    assert cells.classes == ["LAMP2", "TfR"] and list(cells.table.cell_id) == ["LAMP2_c_1", "LAMP2_c_2", "TfR_c_1", "TfR_c_2"]
    well = checked_rows(pd.DataFrame([dict(path=str(tmp_path/"{structure}/{well}_{field}_{channel}.tif"))]))
    assert well[0]["Metadata_well"] == "c" and well[0]["cell_id"] == "LAMP2_c_1"


def test_the_files_of_a_pattern_are_inputs_and_are_looked_at(tmp_path):
    apart(tmp_path)
    for k, angle in enumerate((0, 70), 1): tifffile.imwrite(tmp_path/f"c_{k}_mask.png.tif", body(angle)[1].astype(np.uint8))
    row = dict(path="{cell}_{channel}.tif", structure="a", cell_mask="{cell}_mask.png.tif", channels="membrane=w1,structure=w3,dna=w2")
    pd.DataFrame([row]).to_csv(tmp_path/"cells.csv", index=False)
    named_in = sorted(f.rsplit("/", 1)[1] for f in _named_in(str(tmp_path/"cells.csv")))
    assert named_in == sorted(f"c_{k}_{of}.tif" for k in (1, 2) for of in ("w1", "w2", "w3", "mask", "mask.png") if of != "mask")
    looked, faults = look_at_all(read_table(tmp_path/"cells.csv"), tmp_path, *ROOM, workers=1, voxel_um="0.5,0.2,0.2")
    assert len(looked) == 2 and not faults
    (tmp_path/"c_2_mask.png.tif").unlink()
    assert "c_2_mask.png.tif does not exist" in said(_named_in, str(tmp_path/"cells.csv"))


@pytest.mark.parametrize("path, told", [
    ("{cell}-{channel}.tif", "no file in"), ("{cell}-{channel}.tif", "there is for example c_1_w1.tif"),
    ("(?P<cell>.+_w(?P<channel>.)", "is no regular expression"), ("{cell}_{channel}.tif", "(called w1, w2, w3) is membrane"),
    ("(?P<cell>c)_._(?P<channel>w1).tif", "are both the channel w1 of one image"), ("nowhere/{cell}_{channel}.tif", "correct the folder")])
def test_patterns_that_do_not_fit(tmp_path, path, told):
    apart(tmp_path)
    assert told in said(prepare_table, pd.DataFrame([dict(path=f"{tmp_path}/{path}", structure="a")]), None, *ROOM)


# ------------------------------------------------------------------------------------------------ axes, scenes, sizes

def test_axes_that_a_file_does_not_name(tmp_path, right):
    tifffile.imwrite(tmp_path/"a.tif", body()[0].swapaxes(0, 1))
    told = said(one, tmp_path, tmp_path/"a.tif", voxel_um="0.5,0.2,0.2")
    assert "does not say what its axes (21, 3, 121, 121) are" in told and "--axes" in told
    assert np.array_equal(one(tmp_path, tmp_path/"a.tif", voxel_um="0.5,0.2,0.2", axes="zcyx")[0], right)
    assert np.array_equal(one(tmp_path, tmp_path/"a.tif", of_all=dict(voxel_um=(.5, .2, .2), axes="ZCYX"))[0], right)
    for axes in ("CYX", "ZZYX", "ABYX"): assert "does not name" in said(one, tmp_path, tmp_path/"a.tif", axes=axes)


def test_several_images_in_a_file(tmp_path, right):
    with tifffile.TiffWriter(tmp_path/"a.ome.tif", ome=True) as f:
        for name, x in ("first", body(90)[0]), ("second", body()[0]):
            f.write(x, photometric="minisblack", metadata=dict(axes="CZYX", Name=name, **UM))
    assert "holds 2 images (first, second); say which in scene (--scene)" in said(one, tmp_path, tmp_path/"a.ome.tif")
    for scene in ("second", "1"): assert np.array_equal(one(tmp_path, tmp_path/"a.ome.tif", scene=scene)[0], right)
    assert "no scene third; it has first, second" in said(one, tmp_path, tmp_path/"a.ome.tif", scene="third")


def test_a_zarr_of_series(tmp_path, right):
    for k, x in enumerate((body()[0], body(90)[0])):
        zarr(tmp_path/f"root.zarr/{k}", x, zarr_format=2, axes_units=[None] + ["micrometer"]*3, physical_pixel_size=[1, .5, .2, .2])
        (tmp_path/"root.zarr/.zgroup").write_text('{"zarr_format": 2}')
        if not k: assert np.array_equal(one(tmp_path, tmp_path/"root.zarr")[0], right), "the only one is taken"
    assert "holds 2 images (0, 1)" in said(one, tmp_path, tmp_path/"root.zarr")
    assert np.array_equal(one(tmp_path, tmp_path/"root.zarr", scene="0")[0], right)


def spoilt(path, **changes):
    "An OME-TIFF whose description is changed as text"
    xml = tifffile.TiffFile(named(path, "m membrane", "s structure", "d dna")).ome_metadata
    for old, new in changes.items(): xml = xml.replace(*new) if isinstance(new, tuple) else xml
    tifffile.imwrite(path, body()[0], description=xml.encode(), metadata=None, photometric="minisblack")
    return path


def test_lost_companions_are_noticed(tmp_path, caplog):
    two = '<UUID FileName="b.ome.tif">urn:uuid:22222222-2222-2222-2222-222222222222</UUID></TiffData>'
    old = '<TiffData IFD="0" PlaneCount="63"/>'
    new = f'<TiffData IFD="0" PlaneCount="42"/><TiffData IFD="0" FirstC="2" PlaneCount="21">{two}'
    path = spoilt(tmp_path/"a.ome.tif", planes=(old, new))
    told = said(read_image, path)
    assert "lacks planes that it names (b.ome.tif)" in told and not caplog.records


def companion(folder, x, gone=""):
    "Planes in two files without a description, and a companion that describes them"
    binary = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><BinaryOnly MetadataFile="set.companion.ome" UUID="u"/></OME>'
    for name, planes in dict(a=x[:2].reshape(-1, *x.shape[2:]), b=x[2]).items():
        tifffile.imwrite(folder/f"{name}.ome.tif", planes, description=binary.encode(), metadata=None, photometric="minisblack")
    xml = tifffile.TiffFile(named(folder/"c.ome.tif", "m membrane", "s structure", "d dna")).ome_metadata
    parts = "".join(f'<TiffData FirstC="{c}" IFD="{i}" PlaneCount="21"><UUID FileName="{of}.ome.tif">u</UUID></TiffData>'
                    for c, i, of in ((0, 0, "a"), (1, 21, "a"), (2, 0, "b")))
    (folder/"c.ome.tif").unlink()
    (folder/"set.companion.ome").write_text(xml.replace('<TiffData IFD="0" PlaneCount="63"/>', parts))


def test_a_companion_is_read_from_whichever_file_is_given(tmp_path, right):
    companion(tmp_path, body()[0])
    for name in ("a.ome.tif", "b.ome.tif", "set.companion.ome"):
        assert np.array_equal(read_image(tmp_path/name, channels=["dna", "membrane"])[0], body()[0][[2, 0]])
        assert np.array_equal(one(tmp_path, tmp_path/name)[0], right)
    (tmp_path/"b.ome.tif").rename(tmp_path/"d.ome.tif")
    assert "describes planes that are not there (b.ome.tif)" in said(read_image, tmp_path/"a.ome.tif")
    assert "it describes no image of d.ome.tif" in said(read_image, tmp_path/"d.ome.tif")
    (tmp_path/"set.companion.ome").write_text("<OME")
    assert "is no XML" in said(read_image, tmp_path/"a.ome.tif")
    (tmp_path/"set.companion.ome").unlink()
    assert "set.companion.ome describes; put it beside" in said(read_image, tmp_path/"a.ome.tif")
    binary = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><BinaryOnly MetadataFile="d.ome.tif" UUID="u"/></OME>'
    tifffile.imwrite(tmp_path/"a.ome.tif", body()[0][0], description=binary.encode(), metadata=None, photometric="minisblack")
    assert f"which {tmp_path/'d.ome.tif'} describes; give that file instead" in said(read_image, tmp_path/"a.ome.tif")


def chunked(path, x, chunks, **more):
    "An OME-Zarr whose empty chunks are not written"
    import zarr as z
    group = z.open_group(path, mode="w")
    array = group.create_array("0", shape=x.shape, dtype=x.dtype, chunks=chunks, **more)
    array[...] = x
    scale = [dict(type="scale", scale=[1, .5, .2, .2])]
    axes = [dict(name="c", type="channel"), *(dict(name=a, type="space", unit="micrometer") for a in "zyx")]
    group.attrs["ome"] = dict(version="0.5", multiscales=[dict(axes=axes, datasets=[dict(path="0", coordinateTransformations=scale)])],
                              omero=dict(channels=[dict(label=n) for n in ("membrane", "structure", "dna")]))
    return sorted(p for p in (path/"0/c").rglob("*") if p.is_file())


@pytest.mark.parametrize("chunks, more, lost", [
    ((1, 1, 121, 121), {}, "0/10/0/0"), ((1, 7, 40, 40), {}, "0/1/1/1"), ((1, 1, 121, 121), dict(shards=(1, 3, 121, 121)), "2/3/0/0")])
def test_a_chunk_that_is_lost_is_not_read_as_zeros(tmp_path, chunks, more, lost):
    files = chunked(tmp_path/"a.zarr", body()[0], chunks, **more)
    assert np.array_equal(read_image(tmp_path/"a.zarr")[0], body()[0]), "what is empty need not be written"
    lost = tmp_path/"a.zarr/0/c"/lost
    kept = lost.read_bytes()
    lost.unlink()
    told = said(read_image, tmp_path/"a.zarr")
    assert "chunks of the array '0' are not there and read as 0, though the image goes on around them" in told
    lost.write_bytes(kept)
    assert np.array_equal(read_image(tmp_path/"a.zarr")[0], body()[0])
    files = chunked(tmp_path/"b.zarr", body()[0] + 100, chunks, **more)
    files[-1].unlink()
    assert "they are lost, copy the image anew" in said(read_image, tmp_path/"b.zarr"), "a camera has no zeros"


def test_a_chunk_that_may_be_lost_is_told(tmp_path):
    x = body()[0]
    x[:, 14:] = 0  # a flat end, as masks have
    chunked(tmp_path/"a.zarr", x, (1, 7, 121, 121))
    with pytest.warns(UserWarning, match="are not there and read as 0; that is right where they were empty"):
        assert np.array_equal(read_image(tmp_path/"a.zarr")[0], x)


def test_makers_formats_are_read_or_a_converter_is_named(tmp_path, right, monkeypatch):
    import sys
    import bioio_ome_tiff
    for ending in ("czi", "nd2", "LIF"):
        path = named(tmp_path/"a.ome.tif", "m membrane", "s structure", "d dna").rename(tmp_path/f"a.{ending}")
        module = f"bioio_{ending.lower()}"
        told = said(read_image, path)
        assert f"no reader of .{ending.lower()} files is installed" in told and ".[formats]" in told and "bioformats2raw" in told
        stand_in = type(sys)(module)
        stand_in.Reader, stand_in.__spec__ = bioio_ome_tiff.Reader, bioio_ome_tiff.__spec__
        monkeypatch.setitem(sys.modules, module, stand_in)
        assert np.array_equal(one(tmp_path, path)[0], right) and image_name(path) == "a"


def test_a_set_of_files_is_read_whole_or_not_at_all(tmp_path):
    x, places = body()[0], ((0, 0, "a"), (1, 21, "a"), (2, 0, "b"))  # channel, first plane, file
    parts = "".join(f'<TiffData FirstC="{c}" IFD="{i}" PlaneCount="21"><UUID FileName="{of}.ome.tif">urn:uuid:{of}</UUID></TiffData>'
                    for c, i, of in places)
    xml = tifffile.TiffFile(named(tmp_path/"a.ome.tif", "m membrane", "s structure", "d dna")).ome_metadata
    for of, planes in dict(a=x[:2].reshape(-1, 121, 121), b=x[2]).items():
        about = re.sub(r'UUID="[^"]*"', f'UUID="urn:uuid:{of}"', xml, count=1).replace('<TiffData IFD="0" PlaneCount="63"/>', parts)
        tifffile.imwrite(tmp_path/f"{of}.ome.tif", planes, description=about.encode(), metadata=None, photometric="minisblack")
    for of in "ab": assert np.array_equal(read_image(tmp_path/f"{of}.ome.tif")[0], x)
    (tmp_path/"b.ome.tif").unlink()
    assert "lacks planes that it names (b.ome.tif)" in said(read_image, tmp_path/"a.ome.tif")
    (tmp_path/"a.ome.tif").rename(tmp_path/"c.ome.tif")
    assert "lacks planes that it names" in said(read_image, tmp_path/"c.ome.tif")


@pytest.mark.parametrize("change", [
    ('PhysicalSizeZ="0.5"', 'PhysicalSizeZ="0.0"'), ('PhysicalSizeZ="0.5"', 'PhysicalSizeZ="-1"'),
    ('PhysicalSizeZ="0.5"', 'PhysicalSizeZ="0,5"'), ('PhysicalSizeZ="0.5"', ""),
    ('PhysicalSizeZ="0.5"', 'PhysicalSizeZ="0.5" PhysicalSizeZUnit="pixel"')])
def test_a_size_by_hand_wins_over_bad_metadata(tmp_path, right, change):
    path = spoilt(tmp_path/"a.ome.tif", size=change)
    assert "does not say how large a voxel is along Z;" in said(read_image, path)
    assert np.array_equal(one(tmp_path, path, voxel_um="0.5,0.2,0.2")[0], right)


def test_a_description_that_is_no_xml(tmp_path, caplog):
    told = said(read_image, spoilt(tmp_path/"a.ome.tif", broken=('Name="dna"', 'Name="dna & more"')))
    assert "its OME description is no XML" in told and not caplog.records


def test_units_in_every_spelling(tmp_path, right):
    for k, unit in enumerate(("\u03bcm", "\u00b5m", "um", "micrometer")):
        units = "".join(f' PhysicalSize{a}Unit="{unit}"' for a in "XYZ")
        path = spoilt(tmp_path/f"{k}.ome.tif", size=('PhysicalSizeZ="0.5"', f'PhysicalSizeZ="0.5"{units}'))
        assert np.array_equal(one(tmp_path, path)[0], right), unit
    for k, unit in enumerate(("um", "micron", "microns", "\\u00B5m")):
        tifffile.imwrite(tmp_path/f"{k}.tif", body()[0].swapaxes(0, 1), imagej=True, resolution=(5, 5),
                         metadata=dict(axes="ZCYX", spacing=.5, unit=unit))
        assert np.array_equal(one(tmp_path, tmp_path/f"{k}.tif")[0], right), unit
    for wrong in ("0,1,1", "a,b,c", "1", "nan,1,1"):
        assert f"voxel_um {wrong}: not understood" in said(one, tmp_path, tmp_path/"0.tif", voxel_um=wrong)


# ------------------------------------------------------------------------------------------------ names and tables

def test_two_images_stay_two(tmp_path):
    assert [image_name(p) for p in ("2024.01.05_cell1.ome.tif", "2024.02.05_cell1.OME.TIFF", "a.b", ".tif")] == \
        ["2024.01.05_cell1", "2024.02.05_cell1", "a.b", ".tif"]
    for folder in "xy":
        (tmp_path/folder).mkdir(); named(tmp_path/folder/"2024.01.05_cell1.ome.tif", "m membrane", "s structure", "d dna")
    (tmp_path/"cells.csv").write_text("path,structure\nx/2024.01.05_cell1.ome.tif,a\ny/2024.01.05_cell1.ome.tif,a\n")
    cells = prepare_table(tmp_path/"cells.csv", None, *ROOM, test_fraction=0)
    assert list(cells.table.cell_id) == ["x/2024.01.05_cell1", "y/2024.01.05_cell1"]
    (tmp_path/"cells.csv").write_text("path,structure\nx/2024.01.05_cell1.ome.tif,a\nx/2024.01.05_cell1.ome.tif,b\n")
    assert "rows 1 and 2 of the table are the same cell" in said(prepare_table, tmp_path/"cells.csv", None, *ROOM)


def test_one_image_is_not_two_cells(tmp_path):
    table = pd.DataFrame([dict(path="a.tif", structure="a", cell_id=c) for c in "xy"])
    assert "rows 1 and 2 of the table are the same cell of the same image" in said(prepare_table, table, None, *ROOM)


def test_one_cell_is_not_in_two_rows_however_it_is_written(tmp_path):
    image = named(tmp_path/"a.ome.tif", "m membrane", "s structure", "d dna")
    (tmp_path/"b.ome.tif").symlink_to(image)
    for other in (image, tmp_path/"b.ome.tif", f"../{tmp_path.name}/a.ome.tif"):
        table = pd.DataFrame(dict(path=["a.ome.tif", str(other)], structure="a", cell_id=["one", "two"]))
        assert "are the same cell of the same image" in said(checked_rows, table, tmp_path)
    labels = pd.DataFrame(dict(path="a.ome.tif", structure="a", cell_mask="m.tif", label=["1", "01"], cell_id=["one", "two"]))
    assert "are the same cell" in said(checked_rows, labels, tmp_path)


@pytest.mark.parametrize("table, told", [
    (dict(structure="a", group="g", split=["train", "test"]), "the group 'g' is in train and in test"),
    (dict(structure=["lamin B1", "Lamin  b1"]), "the structures 'lamin B1' and 'Lamin  b1' differ in capitals"),
    (dict(structure=["a", "a\u200b"]), "write them alike")])
def test_rows_that_contradict_each_other(table, told):
    assert told in said(checked_rows, pd.DataFrame(dict(path=["a.tif", "b.tif"], **table)))


def test_several_cells_are_not_taken_for_one(tmp_path):
    x = body()[0]
    two = np.concatenate([x, x], -1)
    path = ome(tmp_path/"two.ome.tif", two, Channel={"Name": ["membrane", "structure", "dna"]}, **UM)
    assert "parts of like size" in said(one, tmp_path, path)
    mask = np.concatenate([x[0] > 60]*2, -1)
    tifffile.imwrite(tmp_path/"mask.tif", mask.astype(np.uint8))
    assert "parts of like size" in said(one, tmp_path, path, cell_mask=str(tmp_path/"mask.tif"))
    assert "all its cells have one number" in said(one, tmp_path, path, cells=str(tmp_path/"mask.tif"))


def test_what_is_needed_is_asked_before_the_first_image(tmp_path, monkeypatch):
    paths = [str(named(tmp_path/f"{k}.ome.tif", "m membrane", "s structure", "d dna")) for k in range(3)]
    monkeypatch.setattr("integrated_cell.data.own.read_image", None)
    table = pd.DataFrame(dict(path=paths, structure=["a", "a", "b"]))
    assert "class 'b' has one cell" in said(prepare_table, table, None, *ROOM)
    told = said(prepare_table, table.assign(path=[*paths[:2], "gone.tif"]), None, *ROOM)
    assert told.startswith("row 3 of the table: gone.tif does not exist")


@pytest.mark.parametrize("text, classes", [
    ("path;structure\n{0};a\n{1};b\n", ["a", "b"]), ("path\tstructure\n{0}\ta\n{1}\tb\n", ["a", "b"]),
    ("\ufeffpath,structure\r\n{0},1\r\n{1},2\r\n", ["1", "2"]), ("path,structure\n{0},golgi body\n{1}, golgi body\n", ["golgi body"]),
    ("path,structure,Metadata_who\n{0},NA,me\n\n{1},None,you\n", ["NA", "None"]), ("path;structure;\n{0};1.5;\n{1};01;\n", ["01", "1.5"]),
    ("sep=|\npath|structure\n{0}|a\n{1}|b\n", ["a", "b"])])
@pytest.mark.parametrize("code", ["utf-8", "utf-16"])
def test_tables_of_every_spreadsheet(tmp_path, text, classes, code):
    files = [named(tmp_path/f"{k}.ome.tif", "m membrane", "s structure", "d dna").name for k in range(2)]
    (tmp_path/"cells.csv").write_bytes(text.format(*files).encode(code))
    cells = prepare_table(tmp_path/"cells.csv", tmp_path/"store", *ROOM, test_fraction=0)
    assert cells.classes == classes and list(cells.table.cell_id) == ["0", "1"]


def test_classes_may_be_numbers_in_a_frame(tmp_path):
    paths = [str(named(tmp_path/f"{k}.ome.tif", "m membrane", "s structure", "d dna")) for k in range(4)]
    table = pd.DataFrame(dict(path=paths, structure=[1, 1, 2, 2], cell_id=[7, 8, 9, 10], group=[1, None, None, 4]))
    cells = prepare_table(table, tmp_path/"store", *ROOM)
    assert cells.classes == ["1", "2"] and list(cells.table.group) == ["1", "8", "9", "4"]


@pytest.mark.parametrize("raw, told", [
    ("path,structure\nM\u00fcller.tif,a\n".encode("latin-1"), "is not in UTF-8 (line 2); save it as UTF-8"),
    ("path,structure\na.tif,a\n".encode("utf-16-le"), "is not in UTF-8 (line 1)"), (b"sep=;\npath;structure\na.tif\n", "line 3 has 1 values"),
    (b"PK\x03\x04rest", "workbook"), (b"", "holds no rows"), (b"path,structure\n", "holds no rows"),
    (b"path,structure\na.tif,a,b\n", "line 2 has 3 values"), (b"path,structure\na.tif\n", "line 2 has 1 values"),
    (b"path,structure\n\"a.tif,a\n", "cannot be read as a table"), (b"path,path,structure\na,b,c\n", "names a column twice")])
def test_text_that_is_no_table(tmp_path, raw, told):
    (tmp_path/"cells.csv").write_bytes(raw)
    assert told in said(read_table, tmp_path/"cells.csv") and "cells.csv" in said(read_table, tmp_path/"cells.csv")


def test_a_table_that_is_not_there(tmp_path):
    assert "no such file" in said(read_table, tmp_path/"nothing.csv")
    assert "cannot be read (Is a directory)" in said(read_table, tmp_path)


@pytest.mark.parametrize("row, told", [
    (dict(cellmask="m.tif", label=1), "unknown column 'cellmask'; is cell_mask meant?"),
    (dict(Structure="x"), "unknown column 'Structure'; is structure meant?"), (dict(operator="me"), "unknown column 'operator'"),
    (dict(label=1), "row 1 of the table has a label and no cell_mask"), (dict(label=0, cell_mask="m.tif"), "0 is the background"),
    (dict(label="cell1", cell_mask="m.tif"), "has the label cell1"), (dict(label=1.5, cell_mask="m.tif"), "has the label 1.5"),
    (dict(cells="m.tif", label=1), "cells takes every cell"), (dict(nuclei="m.tif"), "has nuclei and no cells"),
    (dict(structure=None), "row 1 of the table has no structure"), (dict(path=""), "row 1 of the table has no path")])
def test_what_a_row_may_not_say(row, told):
    table = pd.DataFrame([dict(path="a.tif", structure="a") | row])
    assert told in said(prepare_table, table, None, *ROOM)


# ------------------------------------------------------------------------------------------------ masks and fields

@pytest.fixture
def field(tmp_path):
    "Two cells side by side, a third that the border cuts; nuclei numbered apart; images of masks by name"
    (stack, cell, nucleus), (other, cell_2, nucleus_2) = body(), body(90)
    far = np.concatenate([stack, other, stack[..., :70]], 3)
    cells = np.concatenate([cell*1, cell_2*2, cell[..., :70]*3], 2)
    nuclei = np.concatenate([nucleus*30, nucleus_2*10, nucleus[..., :70]*20], 2)
    ome(tmp_path/"field.ome.tif", far, Channel={"Name": ["membrane", "structure", "dna"]}, **UM)
    made = dict(cells=cells, nuclei=nuclei, inverted=(cells == 0)*255, background_1=cells + 1, swapped=nuclei, binary=nuclei > 0,
                fractions=cells/2, floats=cells*1., flat=cells[10])
    for name, x in made.items():
        tifffile.imwrite(tmp_path/f"{name}.tif", x.astype(np.float32 if x.dtype.kind == "f" else np.uint8), metadata=None)
    return lambda **row: prepare_table(pd.DataFrame([dict(path=str(tmp_path/"field.ome.tif"), structure="a") | {
        k: str(tmp_path/f"{v}.tif") if str(v) in made else v for k, v in row.items()}]), None, *ROOM, test_fraction=0)


def test_a_segmented_field_is_a_source(field, right, tmp_path):
    store = field(cells="cells", nuclei="nuclei")
    assert list(store.table.cell_id) == ["field_1", "field_2"] and list(store.table.label) == [1, 2]
    assert store.provenance["left_out"] == [dict(cell_id="field_3", why="the border of the field cuts it")]
    for x in store: assert np.corrcoef(x.ravel(), right.ravel())[0, 1] > .98
    for k, angle in enumerate((0, 90)):  # where each cell lies in the field stands in its row
        lies, nucleus = Frame.from_row(store.table.iloc[k]), np.argwhere(body(angle)[2]).mean(0)
        assert np.allclose(lies.centre, nucleus + (0, 0, 121*k)) and lies.shape == (21, 121, 312) and np.allclose(lies.voxel_um, (.5, .2, .2))
        assert abs((lies.turn_deg - angle + 90) % 180 - 90) < 1
    for labels in (dict(cells="cells", nuclei="binary"), dict(cells="floats", nuclei="nuclei"), dict(cells="cells")):
        assert list(field(**labels).table.cell_id) == ["field_1", "field_2"]
    assert own_image(store.table.iloc[1], "")["cell_mask"].sum() == body(90)[1].sum()


def test_a_field_in_the_plane_as_cellpose_writes_it(tmp_path):
    from PIL import Image
    stack, cell, nucleus = (a.max(-3) for a in body())
    ome(tmp_path/"a.ome.tif", np.concatenate([stack, stack], 2), axes="CYX", PhysicalSizeY=.2, PhysicalSizeX=.2)
    Image.fromarray(np.concatenate([cell*1, cell*2], 1).astype(np.uint16)).save(tmp_path/"a_cp_masks.png")
    row = dict(path="a.ome.tif", structure="a", cells="a_cp_masks.png")
    pd.DataFrame([row]).to_csv(tmp_path/"cells.csv", index=False)
    store = prepare_table(tmp_path/"cells.csv", tmp_path/"store", .4, (32, 56), test_fraction=0)
    assert list(store.table.cell_id) == ["a_1", "a_2"] and np.array_equal(store[0], store[1])


def test_masks_stand_for_images_that_there_are_not(field, tmp_path):
    tifffile.imwrite(tmp_path/"s.tif", tifffile.imread(tmp_path/"field.ome.tif")[1], metadata=dict(axes="ZYX"))
    store = field(path=None, structure_path=str(tmp_path/"s.tif"), cells="cells", nuclei="nuclei", voxel_um="0.5,0.2,0.2")
    assert len(store) == 2 and (store.images[:, 0].max((1, 2, 3)) == 255).all()


@pytest.mark.parametrize("row, told", [
    (dict(cells="inverted"), "inverted.tif: the image of cell labels covers 98% of the image's border"),
    (dict(cells="background_1"), "seems to be inverted"), (dict(cells="fractions"), "needs whole numbers"),
    (dict(cells="flat"), "has shape (121, 312) and the image (21, 121, 312)"),
    (dict(cells="nuclei", nuclei="cells"), "may be swapped"),
    (dict(cell_mask="inverted"), "inverted.tif: the cell mask covers 98%"),
    (dict(nucleus_mask="inverted"), "inverted.tif: the nucleus mask covers 98%"),
    (dict(cell_mask="cells"), "cells.tif: the mask holds 3 numbers (1, 2, 3), a cell each"),
    (dict(cell_mask="nuclei", nucleus_mask="cells", label=30), "may be swapped"),
    (dict(cell_mask="cells", label=9), "no voxel of label 9"),
    (dict(cell_mask="cells", label=3), "none of 1 cells can be used"), (dict(cell_mask="cells", label=3), "the border of the image cuts it"),
    (dict(cells="nothing.tif"), "nothing.tif does not exist")])
def test_masks_are_judged(field, row, told):
    assert told in said(field, **row)


def test_a_nucleus_is_matched_by_overlap(field, right):
    for label in (1, 2):
        x = field(cell_mask="cells", nucleus_mask="nuclei", label=label)[0]
        assert np.corrcoef(x.ravel(), right.ravel())[0, 1] > .98


def test_a_nucleus_larger_than_its_cell(tmp_path):
    stack, cell, nucleus = body()
    path = ome(tmp_path/"a.ome.tif", stack, **UM)
    for name, mask in dict(cell=cell, nucleus=nucleus, beside=np.roll(nucleus, 45, 2)).items():
        tifffile.imwrite(tmp_path/f"{name}.tif", mask.astype(np.uint8)*255)
    def masks(cell, nucleus): return dict(cell_mask=str(tmp_path/f"{cell}.tif"), nucleus_mask=str(tmp_path/f"{nucleus}.tif"))
    assert len(one(tmp_path, path, **masks("cell", "nucleus"))) == 1
    assert "may be swapped" in said(one, tmp_path, path, **masks("nucleus", "cell"))
    assert "outside the cell" in said(one, tmp_path, path, **masks("cell", "beside")) or \
        "no voxel inside the cell" in said(one, tmp_path, path, **masks("cell", "beside"))


def test_a_crop_to_the_cells_own_box_is_whole(tmp_path):
    stack, cell, nucleus = body()
    stack[0, ::2] //= 2  # so that what is most populous is the background
    box = tuple(slice(a.min(), a.max() + 1) for a in np.nonzero(cell))
    path = ome(tmp_path/"a.ome.tif", stack[(slice(None), *box)], **UM)
    tifffile.imwrite(tmp_path/"m.tif", cell[box].astype(np.uint8))
    assert len(one(tmp_path, path, cell_mask=str(tmp_path/"m.tif"))) == 1


# ------------------------------------------------------------------------------------------------ others' refusals

@pytest.mark.parametrize("raw", [b"II*\0", b"\x89PNG\r\n\x1a\nrest", b"not a picture", b"II*\0\x08\0\0\0\xff\xff" + b"x"*300])
@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.png", "a.oib"])
def test_other_libraries_are_not_heard(tmp_path, raw, name, caplog, capfd):
    (tmp_path/name).write_bytes(raw)
    with caplog.at_level(logging.DEBUG, "tifffile"): told = said(read_image, tmp_path/name)
    assert name in told and "cannot be read as TIFF" in told and "export it again" in told
    assert "specified readers" not in told and not capfd.readouterr().err


def test_a_place_where_nothing_can_be_written(tmp_path):
    path = named(tmp_path/"a.ome.tif", "m membrane", "s structure", "d dna")
    table = pd.DataFrame([dict(path=str(path), structure="a")])
    assert "nothing can be written there" in said(prepare_table, table, "/proc/nothing/cells", *ROOM, test_fraction=0)


def test_a_mask_is_an_image_with_one_channel(tmp_path):
    tifffile.imwrite(tmp_path/"a.tif", np.zeros((9, 9, 3), np.uint8) + 9, photometric="rgb")
    assert "in one channel" in said(read_labels, tmp_path/"a.tif", (9, 9))
    for x in (np.full((9, 9), -1, np.int16), np.full((9, 9), np.nan, np.float32), np.full((9, 9), .5, np.float32)):
        tifffile.imwrite(tmp_path/"a.tif", x)
        assert "needs whole numbers" in said(read_labels, tmp_path/"a.tif", (9, 9))
    tifffile.imwrite(tmp_path/"a.tif", np.zeros((9, 9), np.uint8))
    assert "has no voxel" in said(read_labels, tmp_path/"a.tif", (9, 9))


def test_a_speck_is_no_cell(tmp_path):
    from types import SimpleNamespace

    from integrated_cell.integration.own import image_rows, read_cells
    x = np.zeros((2, 12, 40, 60), np.uint8)
    x[0, 2:10, 10:30, 10:50], x[1, 4:8, 15:25, 20:40] = 200, 200
    tifffile.imwrite(tmp_path/"a.tif", x, photometric="minisblack")
    model = SimpleNamespace(settings=dict(shape=[16, 48, 64], voxel_um=[1., 1., 1.]))
    rows = {um: image_rows([tmp_path/"a.tif"], axes="CZYX", channels="membrane=0,dna=1", voxel_um=um) for um in ("1,1,1", ".1,.1,.1")}
    assert len(read_cells(rows["1,1,1"][0], model).cells) == 1
    with pytest.raises(BadInput, match="6 µm long.*correct the voxel size"): read_cells(rows[".1,.1,.1"][0], model)


# ------------------------------------------------------------------------------------------------ what a file says is heard

def described(path, x, names=(), scale=(1, .5, .2, .2), unit="micrometer", **more):
    "An OME-Zarr whose description can be anything"
    import zarr as z
    group = z.open_group(path, mode="w")
    group.create_array("0", shape=x.shape, dtype=x.dtype)[...] = x
    axes = [dict(name="c", type="channel"), *(dict(name=a, type="space", unit=unit) for a in "zyx")]
    level = dict(path="0", coordinateTransformations=[dict(type="scale", scale=list(scale))])
    about = dict(version="0.5", multiscales=[dict(axes=axes, datasets=[level])], omero=dict(channels=[dict(label=n) for n in names]))
    group.attrs["ome"] = about | more
    return path


SMALL = np.random.default_rng(0).integers(0, 255, (3, 5, 12, 16), dtype=np.uint8)


@pytest.mark.parametrize("names", [("dna", "membrane"), ("dna", "membrane", "structure", "none")])
def test_a_file_names_as_many_channels_as_it_has(tmp_path, names):
    told = f"names {len(names)} channels ({', '.join(names)}) and has 3; correct the names"
    path = described(tmp_path/"a.ome.zarr", SMALL, names)
    assert told in said(read_image, path) and told in said(read_image, path, channels=["membrane", "dna"])
    xml = tifffile.TiffFile(ome(tmp_path/"a.ome.tif", SMALL, Channel={"Name": ["n"]*3}, **UM)).ome_metadata
    xml = re.sub("<Channel .*(<TiffData)", "".join(f'<Channel Name="{n}"/>' for n in names) + "\\1", xml)
    tifffile.imwrite(tmp_path/"a.ome.tif", SMALL, description=xml.encode(), metadata=None, photometric="minisblack")
    assert told in said(read_image, tmp_path/"a.ome.tif")
    assert read_image(described(tmp_path/"b.ome.zarr", SMALL, ["", ""]))[2] == ["0", "1", "2"], "no names are none too few"


def test_colours_are_channels_of_one_name(tmp_path):
    tifffile.imwrite(tmp_path/"a.ome.tif", SMALL[:, 0].transpose(1, 2, 0), photometric="rgb",
                     metadata=dict(axes="YXS", Channel={"Name": "HE"}, PhysicalSizeY=.2, PhysicalSizeX=.2))
    x, _, names = read_image(tmp_path/"a.ome.tif")
    assert np.array_equal(x, SMALL[:, 0]) and names == ["HE"]*3


def test_labels_of_planes_name_channels(tmp_path, right):
    def made(labels): return imagej(tmp_path/"a.tif", body()[0][[2, 0, 1]], spacing=.5, unit="um", Labels=labels)
    for labels in (["dna", "membrane", "structure"]*21, ["dna", "membrane", "structure"], ["dna\nz", "membrane", "structure"]*21):
        made(labels)
        assert np.array_equal(one(tmp_path, tmp_path/"a.tif")[0], right)
    for labels in ([f"c:{c}/3 z:{z}/21 - a.czi" for z in range(21) for c in range(3)], [f"dna {z}" for z in range(63)], [""]*63):
        made(labels)
        assert read_image(tmp_path/"a.tif")[2] == ["0", "1", "2"], "these name planes"
    made(["dna", "", ""]*21)
    assert "called dna, 1, 2) is membrane" in said(one, tmp_path, tmp_path/"a.tif")


@pytest.mark.parametrize("channels, wanted, role, called", [
    ("membrane=2,structure=1,dna=0", None, "membrane=2", "dna"), ("membrane=DNA,dna=membrane", None, "membrane=DNA", "dna"),
    ("dna=1", ["membrane", "dna"], "dna=1", "Structure"), ("dna=0", ["dna"], "dna=0", "membrane")])
def test_channels_that_contradict_the_file(channels, wanted, role, called):
    names = ["membrane", "Structure ", "dna"]
    told = said(pick_channels, names, *[wanted or ROLES], choice=channel_choice(channels), path="a.tif")
    assert told.startswith(f"a.tif: channels say {role}, and the file calls that channel {called};")
    assert pick_channels(["dna", "dna", "GFP"], choice=channel_choice("membrane=1,dna=0,structure=2")) == [1, 2, 0], "not clear"


@pytest.mark.parametrize("ome", [False, True])
def test_numbers_of_a_palette_are_labels_and_no_intensities(tmp_path, ome):
    from PIL import Image
    x, ramp = SMALL[0, 0], np.zeros((3, 256), np.uint16)
    ramp[1] = np.arange(256)*257
    said_of = dict(axes="YX", PhysicalSizeX=.2, PhysicalSizeY=.2) if ome else dict(axes="YX")
    for name, colours in dict(green=ramp, inverse=ramp[:, ::-1]).items():
        path = tmp_path/(f"{name}.ome.tif" if ome else f"{name}.tif")
        tifffile.imwrite(path, x, photometric="palette", colormap=colours, metadata=said_of)
        grey = Image.fromarray(x, "P")
        grey.putpalette((colours.T//257).astype(np.uint8).tobytes())
        grey.save(tmp_path/f"{name}.png")
    for path in (tmp_path/("green.ome.tif" if ome else "green.tif"), tmp_path/"green.png"):
        assert np.array_equal(read_image(path, (.2, .2))[0][0], x), "ImageJ's green: the brighter, the more"
        dark = path.with_name(path.name.replace("green", "inverse"))
        assert "numbers of a palette's colours, which are no intensities; save each channel in grey" in said(read_image, dark, (.2, .2))
        assert np.array_equal(read_labels(dark, x.shape), x)


def pyramid(*levels, name=None):
    "Of an OME-Zarr's description; a level: its path and scale or None"
    axes = [dict(name="c", type="channel"), *(dict(name=a, type="space", unit="micrometer") for a in "zyx")]
    def steps(scale): return dict(coordinateTransformations=[dict(type="scale", scale=scale)]) if scale else {}
    return dict(axes=axes, datasets=[dict(path=path, **steps(scale)) for path, scale in levels]) | ({"name": name} if name else {})


def test_a_zarr_without_a_scale_has_no_size(tmp_path):
    path = described(tmp_path/"a.zarr", SMALL, multiscales=[pyramid(("0", None))])
    assert "does not say how large a voxel is along Z, Y, X" in said(read_image, path)
    assert np.array_equal(read_image(path, (.5, .2, .2))[0], SMALL)
    moved = pyramid(("0", None))
    moved["datasets"][0]["coordinateTransformations"] = [dict(type="translation", translation=[0, 1, 1, 1])]
    assert "does not say how large" in said(read_image, described(path, SMALL, multiscales=[moved]))


def test_a_zarr_of_several_images_or_levels(tmp_path):
    import zarr as z
    full, half = [1, .5, .2, .2], [1, .5, .4, .4]
    path = described(tmp_path/"a.zarr", SMALL, multiscales=[pyramid(("half", half), ("0", full))])
    z.open_group(path)["half"] = SMALL[..., ::2, ::2].copy()
    x, size, _ = read_image(path)
    assert np.array_equal(x, SMALL) and np.allclose(size, (.5, .2, .2)), "the finest, wherever it stands"
    about = dict(version="0.5", multiscales=[pyramid(("half", half), name="small"), pyramid(("0", full))])
    z.open_group(path).attrs["ome"] = about
    assert "holds 2 images (small, 1); say which in scene (--scene)" in said(read_image, path)
    assert read_image(path, scene="small")[0].shape == (3, 5, 6, 8) and read_image(path, scene="1")[0].shape == SMALL.shape


def test_pixels_are_plain_numbers(tmp_path):
    wave = ome(tmp_path/"a.ome.tif", SMALL.astype(np.complex64), **UM)
    assert "a.ome.tif holds complex numbers; save it in plain numbers" in said(read_image, wave)
    assert "complex numbers" in said(read_image, described(tmp_path/"a.zarr", SMALL*1j))
    assert read_image(described(tmp_path/"b.zarr", SMALL > 9))[0].dtype == bool


@pytest.mark.parametrize("unit, of_um", [("in", 1/25400), ("inch", 1/25400), ("m", 1e-6), ("pm", 1e6), ("dm", 1e-5), ("picometer", 1e6), ("metres", 1e-6)])
def test_known_units_are_converted(tmp_path, unit, of_um):
    sizes = {f"PhysicalSize{a}": v*of_um for a, v in zip("ZYX", (.5, .2, .2))} | {f"PhysicalSize{a}Unit": unit for a in "ZYX"}
    path = described(tmp_path/"a.zarr", SMALL, scale=[1, .5*of_um, .2*of_um, .2*of_um], unit=unit)
    for made in (ome(tmp_path/"a.ome.tif", SMALL, **sizes), path): assert np.allclose(read_image(made)[1], (.5, .2, .2))


@pytest.mark.parametrize("size, unit, told", [
    (.5, "pixel", "0.5 pixel along Z, 0.2 pixel along Y"), (.5, "parsec", "0.5 parsec along Z"), (.5, "Mm", "0.5 Mm along Z"),
    (-.29, "µm", "along Z; it says -0.29 µm along Z, which is no size in a known unit; give voxel_um"),
    (0., "um", "it says 0 um along Z"), (1/72, "inch", "0.01389 inch along Z")])
def test_what_is_no_size_is_named(tmp_path, size, unit, told):
    sizes = dict(UM, PhysicalSizeZ=size) | {f"PhysicalSize{a}Unit": unit for a in "ZYX"}
    assert told.replace("says 0 ", "says 0.0 ").replace("0.01389", str(1/72)) in said(read_image, ome(tmp_path/"a.ome.tif", SMALL, **sizes))
    assert told in said(read_image, described(tmp_path/"a.zarr", SMALL, scale=[1, size, .2, .2], unit=unit))
    imagej(tmp_path/"a.tif", SMALL, spacing=size, unit=unit.replace("µ", "u"))
    assert f"it says {size:.4g} {unit.replace('µ', 'u')} along Z" in said(read_image, tmp_path/"a.tif")


FULL = pyramid(("0", [1, .5, .2, .2]))


@pytest.mark.parametrize("about, told", [
    (dict(multiscales=[pyramid(("9", [1]*4))]), "it names the array '9', which is not there"), (dict(multiscales=[]), "it holds no image"),
    (dict(multiscales=[FULL | dict(axes="zyx")]), "it names 3 axes, and a scale of 4 numbers"),
    (dict(multiscales=[pyramid(("0", None)) | dict(axes="zyx")]), "it names 3 axes, and its array has 4"),
    (dict(multiscales=[FULL | dict(datasets=[])]), "its description names no array"),
    (dict(multiscales=None), "its multiscales, axes or omero are not as OME-Zarr has them"),
    (dict(multiscales=[dict(axes="czyx")]), "has them: there is no 'datasets'"), (dict(omero=dict(channels=["a"]*3)), "not as OME-Zarr has them"),
    (dict(multiscales=[pyramid(("0", [1, [], 1, 1]))]), "not as OME-Zarr has them")])
def test_a_zarr_of_a_wrong_description(tmp_path, about, told):
    refused = said(read_image, described(tmp_path/"a.zarr", SMALL, **about))
    assert told in refused and not re.search("Error|NoneType|object|store", refused)


@pytest.mark.parametrize("file, key, value, told", [
    ("0/zarr.json", "codecs", [], "the description of its array '0' is not as Zarr has it"), ("0/zarr.json", "data_type", "a", "of its array '0'"),
    ("0/zarr.json", "shape", [3, -5, 12, 16], "of its array '0'"), ("zarr.json", "zarr_format", 4, "the description of its group"),
    ("0/zarr.json", "codecs", [dict(name="bytes", configuration=dict(endian="little")), dict(name="mine")], "that no installed package knows"),
    ("0/c/0/0/0/0", None, b"no chunk", "the array '0' cannot be read to its end; a chunk is damaged")])
def test_zarr_is_not_heard(tmp_path, file, key, value, told):
    path = described(tmp_path/"a.zarr", SMALL, multiscales=[FULL])
    about = value if key is None else json.dumps(json.loads((path/file).read_text()) | {key: value}).encode()
    (path/file).write_bytes(about)
    refused = said(read_image, path)
    assert told in refused and not re.search("Error|Expected|Got|codec|Zstd", refused)


def test_a_compression_without_its_package_is_no_damage(tmp_path, monkeypatch):
    def lacks(*_): raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")
    path = ome(tmp_path/"a.ome.tif", SMALL, **UM)
    monkeypatch.setattr("integrated_cell.data.scenes._tiff_pixels", lacks)
    assert "needs the package imagecodecs; pip install -e '.[formats]'" in said(read_image, path)


def test_folders_that_are_no_zarr(tmp_path):
    path = described(tmp_path/"a.zarr", SMALL, omero=dict(channels=None))
    assert np.array_equal(read_image(path)[0], SMALL), "no names are said"
    assert "it is an array without OME's description" in said(read_image, path/"0")
    assert "it is a folder and no OME-Zarr" in said(read_image, tmp_path)
    for file in ("0/zarr.json", "zarr.json"):
        (path/file).write_text((path/file).read_text()[:-20])
        assert f"its {file} is damaged: it is no JSON" in said(read_image, path)
