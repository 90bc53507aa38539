"Profiles and mechanisms: bad input, agreement with libraries at size, tables of other tools, and real profiles"
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from integrated_cell.data.manifest import fetch
from integrated_cell.profiling.profiles import choose_eps, feature_select, nsc_accuracy, nsc_interval, predict_moa, profiles, read_profiles, scale_plates, tvn, whiten, write_profiles
from integrated_cell.results import BadInput

MIRROR = os.environ.get("INTEGRATED_CELL_MIRROR")
real = pytest.mark.skipif(not MIRROR or not (Path(MIRROR or ".")/"bbbc021_profiles").is_dir(), reason="INTEGRATED_CELL_MIRROR has no bbbc021_profiles")


def screen(n_moas=8, n_compounds=4, n_doses=3, d=30, seed=0):
    "Profiles (n, d), compounds, mechanisms, batches"
    rng = np.random.default_rng(seed)
    rows = [(f"{m}-{c}", f"moa{m}", f"week{rng.integers(4)}", m, 10*m + c) for m in range(n_moas) for c in range(n_compounds)]
    direction, side = rng.normal(size=(n_moas, d)), rng.normal(size=(10*n_moas, d))
    names = [row[:3] for row in rows for _ in range(n_doses)]
    x = np.stack([(k + 1)*(direction[m] + 1.4*side[c]) + rng.normal(size=d) for *_, m, c in rows for k in range(n_doses)])
    return (x, *(np.array(a, object) for a in zip(*names)))


def wells(n_plates=4, n_dmso=6):
    "A table of wells and features of them"
    rows = [(c, float(c != "DMSO"), c[:4], f"week{p//2}", f"plate{p}", f"B{i:02d}") for p in range(n_plates) for i, c in enumerate(["taxol", "emetine", "ALLN"] + ["DMSO"]*n_dmso)]
    table = pd.DataFrame(rows, columns=["compound", "concentration", "moa", "batch", "plate", "well"])
    return np.random.default_rng(0).normal(size=(len(table), 5)), table


def by_loops(x, compounds, moas, batches=None):
    "Right or wrong of each treatment that has a partner, without an array operation"
    right = {}
    for i in range(len(x)):
        others = [j for j in range(len(x)) if compounds[j] != compounds[i] and (batches is None or batches[j] != batches[i])]
        if batches is not None and not any(moas[j] == moas[i] for j in others): continue
        cosine = [x[i] @ x[j]/np.linalg.norm(x[i])/np.linalg.norm(x[j]) for j in others]
        right[i] = bool(others) and moas[others[int(np.argmax(cosine))]] == moas[i]
    return right


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("hard", [False, True])
def test_nsc_by_loops(seed, hard):
    x, compounds, moas, batches = screen(seed=seed)
    right = by_loops(x, compounds, moas, batches if hard else None)
    by_compound = pd.Series(right).groupby([compounds[i] for i in right]).mean()
    given = batches if hard else None
    assert 0 < sum(right.values()) < len(right)
    assert nsc_accuracy(x, compounds, moas, batches=given) == pytest.approx(np.mean(list(right.values())))
    assert nsc_accuracy(x, compounds, moas, "compound", given) == pytest.approx(by_compound.mean())
    found = predict_moa(x, compounds, moas, given)
    assert found.scored.sum() == len(right) and found.index[found.scored].tolist() == list(right)


@pytest.mark.parametrize("k", [3, 5, 7])
def test_votes_of_several_neighbours(k):
    x, compounds, moas, _ = screen(n_moas=3)
    found = predict_moa(x, compounds, moas, k=k)
    for i in range(len(x)):
        others = compounds != compounds[i]
        near = KNeighborsClassifier(k, metric="cosine").fit(x[others], moas[others]).kneighbors(x[i:i + 1], return_distance=False)[0]
        votes = pd.Series(moas[others][near]).value_counts()
        assert found.predicted[i] in votes.index[votes == votes.max()]


def test_ties_and_silent_profiles():
    x = np.array([[1, 0], [1, 0], [0, 1], [0, 0.]])
    found = predict_moa(x, list("abcd"), ["m", "m", "n", "n"])
    assert found.right.tolist()[:2] == [True, True] and np.isfinite(found.similarity).all()
    one_each = predict_moa(x, list("abcd"), list("mnop"))
    assert not one_each.right.any() and one_each.scored.all()  # no batches: nobody is left out
    assert not predict_moa(x, list("abcd"), list("mnop"), ["w1", "w1", "w2", "w2"]).scored.any()


def test_order_and_types_do_not_matter():
    x, compounds, moas, batches = screen()
    order = np.random.default_rng(0).permutation(len(x))
    frame = pd.DataFrame(x, index=pd.MultiIndex.from_arrays([compounds, moas]))
    assert nsc_accuracy(x, compounds, moas) == nsc_accuracy(frame.iloc[order], pd.Index(compounds)[order], pd.Series(moas)[order]) == nsc_accuracy(x.tolist(), list(compounds), list(moas))
    assert nsc_accuracy(x.astype(np.float32), pd.Categorical(compounds), moas) == nsc_accuracy(x, compounds, moas)


def test_interval_covers_and_pairs():
    rng, names = np.random.default_rng(0), np.repeat(np.arange(36), 3).astype(str).astype(object)
    share = np.repeat(rng.beta(1.4, .6, (100, 36)), 3, 1)  # a compound's doses succeed or fail together
    found = [pd.DataFrame(dict(compound=names, moa="m", scored=True, right=rng.random(108) < p)) for p in share]
    low, high = np.array([nsc_interval(f, n_boot=300)[1:] for f in found]).T
    assert np.mean((low <= .7) & (.7 <= high)) > .88
    a, b = found[0], found[0].assign(right=~found[0].right)
    assert nsc_interval(a, other=b)[0] == pytest.approx(2*a.right.mean() - 1)
    with pytest.raises(BadInput, match="same ones in the same order"): nsc_interval(a, other=a.iloc[::-1])


@pytest.mark.parametrize("n,d", [(200, 12), (20, 40)])  # more and fewer controls than features
def test_whitening_against_scikit_learn(n, d):
    rng = np.random.default_rng(0)
    controls, x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)), rng.normal(size=(9, d))
    k = min(n - 1, d)
    theirs = PCA(k, whiten=True, svd_solver="full").fit(controls)
    ours = whiten(x, controls, 1e-9)[:, :k]
    assert np.allclose(np.abs(ours), np.abs(theirs.transform(x)), rtol=1e-4)
    pca, zca = (whiten(x, controls, .1, m) for m in ("pca", "zca"))
    assert np.allclose(normalize(pca) @ normalize(pca).T, normalize(zca) @ normalize(zca).T)
    frame = pd.DataFrame(x, columns=[f"f{i}" for i in range(d)], index=list("abcdefghi"))
    assert np.allclose(whiten(frame, pd.DataFrame(controls), .1, "zca"), zca) and whiten(frame, controls, .1, "zca").columns[0] == "f0" and whiten(frame, controls).columns[0] == "pc0"


def test_a_feature_that_never_varies():
    x, table = wells()
    x[:, 2] = 7.1
    dmso = (table.compound == "DMSO").to_numpy()
    with pytest.warns(UserWarning, match="1 of 5 features do not vary"): scaled = scale_plates(x, table)
    assert (scaled[:, 2] == 0).all() and np.isfinite(scaled).all()
    x[0, 2] = 9  # only a treatment has it
    with pytest.warns(UserWarning, match="1 of 5"): white = whiten(x, x[dmso])
    assert np.isfinite(white).all() and np.abs(white).max() < 100
    with pytest.warns(UserWarning), pytest.raises(BadInput, match="divides by 0"): whiten(x, x[dmso], eps=0)
    with pytest.warns(UserWarning): assert np.isfinite(tvn(x, dmso, table.batch)).all()


def test_a_compound_on_one_plate_only():
    x, table = wells()
    few = ~((table.compound == "taxol") & (table.plate != "plate0"))
    with pytest.warns(UserWarning, match="1 of 3 treatments stand on one plate only .*taxol"): profiles(x[few], table[few])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert profiles(x, table).shape == (4, 5) and profiles(x, table, ["plate", "well"]).shape == (36, 5) and len(profiles(x, table, "compound")) == 4


@pytest.mark.parametrize("what,said", [
    (lambda x, t: whiten(x, x[:0]), "DMSO is missing"), (lambda x, t: whiten(x, None), "DMSO is missing"), (lambda x, t: whiten(x, x[:1]), "at least 2"),
    (lambda x, t: whiten(x, x[:, :3]), "same"), (lambda x, t: whiten(x, x, method="cholesky"), "pca or zca"),
    (lambda x, t: scale_plates(x, t[t.compound != "DMSO"]), "same order"), (lambda x, t: scale_plates(x[:3], t[:3]), "'DMSO' is missing"),
    (lambda x, t: scale_plates(x, t, "week"), "no column 'week'"), (lambda x, t: scale_plates(x, t, "well"), "fewer than 2 rows of DMSO"),
    (lambda x, t: scale_plates(x, t, spread="none"), "own or pooled"), (lambda x, t: profiles(x, t, how="mode"), "mean or median"), (lambda x, t: profiles(x, t, ["dose"]), "no column 'dose'"),
    (lambda x, t: profiles(np.where(np.arange(5) == 3, np.nan, x), t), "36 values are not finite, the first in row 0, feature 3"),
    (lambda x, t: nsc_accuracy(np.where(np.arange(5) == 3, np.nan, x), t["compound"], t.moa), "not finite"), (lambda x, t: whiten(x, x*np.inf), "controls"),
    (lambda x, t: nsc_accuracy(x, t["compound"], t.moa), "24 of 36 rows are DMSO"), (lambda x, t: nsc_accuracy(x[:3], t["compound"][:3], ["a", None, "a"]), "1 of 3 treatments have no mechanism .*emetine"),
    (lambda x, t: nsc_accuracy(x[:3], list("aab"), list("mm")), "one of each"), (lambda x, t: nsc_accuracy(x[:3], ["a"]*3, ["m"]*3), "one compound or batch"),
    (lambda x, t: nsc_accuracy(x[:3], list("abc"), list("mnn"), batches=[1]*3), "one compound or batch"), (lambda x, t: nsc_accuracy(x[:3], list("abc"), list("mno"), batches=[1, 2, 3]), "no treatment has a partner"),
    (lambda x, t: nsc_accuracy(x[:3], list("abc"), list("mmm"), "well"), "treatment or compound"), (lambda x, t: choose_eps(x, ["one"]*36), "one plate only"),
    (lambda x, t: tvn(x, t.compound == "DMSO", t.well), "fewer than 2 control rows"),
    (lambda x, t: nsc_accuracy(x[:3], list("abc"), list("mmm"), k=0), "k=0 neighbours"), (lambda x, t: nsc_accuracy(x[:3], list("abc"), list("mmm"), k=1.5), "k=1.5 neighbours"),
    (lambda x, t: nsc_accuracy(x[:3], list("abc"), list("mmm"), batches=[1, 2]), "3 rows and 2 batches"), (lambda x, t: nsc_accuracy(x[:3], list("abc"), list("mmm"), batches=[1, np.nan, 2]), "1 of 3 batches are missing, the first in row 1"),
    (lambda x, t: nsc_accuracy(x[:3], ["a", np.nan, "b"], list("mmm")), "1 of 3 compounds are missing"), (lambda x, t: tvn(x, t.compound == "DMSO", t.plate[:5]), "36 rows and 5 batches"),
    (lambda x, t: tvn(x, (t.compound == "DMSO")[:5], t.plate), "36 rows and 5 marks of controls"), (lambda x, t: tvn(x, t.compound == "DMSO", np.where(t.plate == "plate1", None, t.plate)), "9 of 36 batches are missing"),
    (lambda x, t: choose_eps(x, t.plate[:5]), "36 rows and 5 plates or batches"), (lambda x, t: choose_eps(x, [None, *t.plate[1:]]), "missing, the first in row 0"), (lambda x, t: choose_eps(x, t.plate, [0, 1]), "no number above 0"),
    (lambda x, t: whiten(x, x, eps=np.nan), "eps nan"), (lambda x, t: whiten(x, x, eps=-1), "eps -1"), (lambda x, t: whiten(x, x, eps=np.inf), "eps inf"), (lambda x, t: whiten(x, x[:4], eps=0), "divides by 0"),
    (lambda x, t: scale_plates(x, t.rename(columns={"compound": "pert_iname"})), "no column 'compound' .*pert_iname"), (lambda x, t: scale_plates(x, t.assign(plate=[None, *t.plate[1:]]), "plate"), "1 of 36 values of 'plate' are missing"), (lambda x, t: read_profiles("nowhere.csv"), "no file nowhere.csv")])
def test_bad_input_in_one_sentence(what, said):
    with pytest.raises(BadInput, match=said) as e: what(*wells())
    assert len(str(e.value).splitlines()) == 1 and len(str(e.value)) < 250


def test_held_out_controls_choose_a_sensible_eps():
    rng = np.random.default_rng(1)
    few = np.repeat(rng.normal(size=(120, 10)), 8, 1) + .5*rng.normal(size=(120, 80))  # noise of variance 0.25
    eps, curve = choose_eps(few, np.repeat(np.arange(20), 6))
    assert .03 < eps < 1 and curve.idxmax() == eps and curve.is_monotonic_increasing is False
    assert choose_eps(few, np.repeat(np.arange(20), 6), grid=[1e-6, .1])[0] == .1


@pytest.mark.parametrize("ending", ["parquet", "csv", "csv.gz"])
def test_tables_of_other_tools(tmp_path, ending):
    x, table = wells()
    theirs = pd.concat([table.add_prefix("Metadata_").rename(columns=str.title), pd.DataFrame(x).add_prefix("Nuclei_Texture_"), pd.Series(["ok"]*36, name="QC")], axis=1)
    path = tmp_path/f"theirs.{ending}"
    theirs.to_parquet(path) if ending == "parquet" else theirs.to_csv(path, index=False)
    features, said = read_profiles(path)
    assert np.allclose(features, x) and set(said) == {*table, "QC"} and said["plate"].tolist() == table.plate.tolist()
    ours = write_profiles(tmp_path/f"ours.{ending}", profiles(features, said), profiles(features, said).index.to_frame())
    assert ours.columns[:2].tolist() == ["Metadata_compound", "Metadata_concentration"] and read_profiles(tmp_path/f"ours.{ending}", needs=("compound",))[0].shape == (4, 5)
    (tmp_path/"plain.csv").write_text("a,b\n1,2\n")
    with pytest.raises(BadInput, match="no column begins with Metadata_"): read_profiles(tmp_path/"plain.csv")


def theirs(tmp_path, name="theirs.csv", change=None):
    "A table as pycytominer writes it"
    x, table = wells()
    both = pd.concat([table.add_prefix("Metadata_"), pd.DataFrame(x).add_prefix("Cells_f")], axis=1)
    (both if change is None else change(both)).to_csv(tmp_path/name, index=False)
    return tmp_path/name


def test_files_that_are_no_tables(tmp_path):
    x, table = wells()
    write_profiles(tmp_path/"whole.parquet", pd.DataFrame(x), table)
    write_profiles(tmp_path/"whole.csv.gz", pd.DataFrame(x), table)
    for name, content in (("cut.parquet", (tmp_path/"whole.parquet").read_bytes()[:300]), ("cut.csv.gz", (tmp_path/"whole.csv.gz").read_bytes()[:300]), ("empty.csv", b""), ("empty.parquet", b""),
                          ("binary.csv", bytes(range(256))*30), ("plain.csv.gz", b"Metadata_compound,Cells_a\n"), ("heads.csv", b"Metadata_compound,Cells_a\n")):
        (tmp_path/name).write_bytes(content)
        with pytest.raises(BadInput, match="cannot be read as a table|holds no row|is not in UTF-8") as e: read_profiles(tmp_path/name)
        assert name in str(e.value) and len(str(e.value).splitlines()) == 1


def test_columns_with_other_names(tmp_path):
    path = theirs(tmp_path, change=lambda t: t.rename(columns={"Metadata_compound": "Metadata_pert_iname", "Metadata_moa": "Metadata_MOA_name"}))
    with pytest.raises(BadInput, match="no column Metadata_compound; it has Metadata_pert_iname, .*names="): read_profiles(path)
    with pytest.raises(BadInput, match="no column Metadata_moa"): read_profiles(path, {"Metadata_pert_iname": "compound"})
    with pytest.raises(BadInput, match="no column Metadata_dose to rename"): read_profiles(path, {"Metadata_dose": "concentration"})
    features, table = read_profiles(path, {"Metadata_pert_iname": "compound", "moa_name": "moa"})
    assert list(table) == list(wells()[1]) and features.shape == (36, 5)
    assert "pert_iname" in read_profiles(path, needs=())[1]
    with pytest.raises(BadInput, match="two columns mean 'batch'"): read_profiles(path, {"pert_iname": "batch"}, ())


def test_what_is_no_feature_is_told(tmp_path):
    path = theirs(tmp_path, change=lambda t: t.astype({"Cells_f3": object}).set_axis([f"row{i}" for i in range(36)]).pipe(lambda u: u.where(~((u.index == "row4")[:, None] & (u.columns == "Cells_f3")), "1..5")))
    with pytest.raises(BadInput, match=r"feature Cells_f3 holds text in 1 of 36 rows, the first '1\.\.5'"): read_profiles(path)
    path = theirs(tmp_path, change=lambda t: t.assign(ImageNumber=range(36), ObjectNumber=1, QC="ok"))
    with pytest.warns(UserWarning, match="ImageNumber, ObjectNumber"): features, table = read_profiles(path)
    assert features.shape == (36, 5) and {"ImageNumber", "ObjectNumber", "QC"} < set(table)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_profiles(theirs(tmp_path, change=lambda t: t.assign(Cells_Number=1.)))[0].shape == (36, 6)


def test_a_german_table_and_an_index_are_read(tmp_path):
    both = pd.read_csv(theirs(tmp_path))
    right, table = read_profiles(tmp_path/"theirs.csv")
    for name, csv in (("semicolon", dict(sep=";")), ("german", dict(sep=";", decimal=",")), ("tab", dict(sep="\t")),
                      ("german", dict(sep=";", decimal=",", compression="gzip"))):
        path = tmp_path/(f"{name}.csv.gz" if "compression" in csv else f"{name}.csv")
        both.to_csv(path, index=False, **csv)
        features, about = read_profiles(path)
        assert np.allclose(features, right) and about.equals(table)
    both.set_index(["Metadata_plate", "Metadata_well"]).to_parquet(tmp_path/"index.parquet")
    features, about = read_profiles(tmp_path/"index.parquet")
    assert np.allclose(features, right) and about[list(table)].equals(table)
    both.assign(replicate=range(36)).set_index("replicate").to_parquet(tmp_path/"bare.parquet")
    features, about = read_profiles(tmp_path/"bare.parquet")
    assert features.shape == right.shape and about["replicate"].tolist() == list(range(36)), "never a feature"


def as_csv(both, sep=",", decimal=".", above="", encoding="utf-8"):
    "Bytes of a csv; what holds the separator is quoted"
    return (above + both.to_csv(index=False, sep=sep, decimal=decimal)).encode(encoding)


@pytest.mark.parametrize("how", [dict(encoding="utf-16"), dict(encoding="utf-8-sig"), dict(sep="|"), dict(sep=";", above="sep=;\n"), dict(decimal=","), dict(sep="|", decimal=","),
                                 dict(sep=";", decimal=",", encoding="utf-16"), dict(above="# ours\n\n"), dict(above="Screen of May, by us\r\n", sep="\t")])
def test_a_csv_however_it_was_written(tmp_path, how):
    both = pd.read_csv(theirs(tmp_path))
    right, table = read_profiles(tmp_path/"theirs.csv")
    (tmp_path/"how.csv").write_bytes(as_csv(both.rename(columns={"Cells_f1": "Cells_f1 "}), **how))
    with warnings.catch_warnings(record=True) as said: features, about = read_profiles(tmp_path/"how.csv")
    assert features.equals(right) and about.equals(table)
    assert len(said) == ("above" in how and "sep=" not in how["above"]) and all("left out (1 lines, '" in str(w.message) for w in said)


def test_names_stay_as_they_were_written(tmp_path):
    change = dict(Metadata_plate=["007", "7"]*18, Metadata_well=["1E05", "10E04"]*18, Metadata_compound=["0012", "12", "None", "NA"]*9, Metadata_moa=["NA", "M"]*18, Metadata_note="1,5")
    path = theirs(tmp_path, change=lambda t: t.assign(**change))
    with pytest.warns(UserWarning, match=r"the compound 'None' is read as a name, not as missing \(18 rows, the first is row 2\)"): _, table = read_profiles(path)
    assert [table[c].tolist() for c in ("plate", "well", "compound", "note")] == [change[f"Metadata_{c}"] for c in ("plate", "well", "compound")] + [["1,5"]*36]
    assert table.moa.isna().tolist() == [True, False]*18 and table.concentration.dtype == float
    _, table = read_profiles(theirs(tmp_path, change=lambda t: t.assign(Metadata_compound="NA", Metadata_concentration="0.1 uM")))
    assert table["compound"].isna().all() and set(table.concentration) == {"0.1 uM"}, "a column of nothing is missing"


@pytest.mark.parametrize("change, how, says", [
    (dict(Cells_t="x"), {}, "feature Cells_t holds text in 36 of 36 rows, the first 'x' in row 0"),
    (dict(Image_t=["1", "-"]*18), {}, "feature Image_t holds text in 18 of 36 rows, the first '-' in row 1"),
    (dict(Metadata_concentration=["1", "low"]*18), {}, "column concentration holds text in 18 of 36 rows, the first 'low' in row 1"),
    (dict(Cells_t=["987", "1,234"]*18), dict(sep=";"), r"\(feature Cells_f0, row 0\) has a point and '1,234' \(feature Cells_t, row 1\) a comma; write"),
    (dict(Cells_t=["987", "1.234"]*18), dict(sep=";", decimal=","), r"'1\.234' \(feature Cells_t, row 1\) has a point and .* \(feature Cells_f0, row 0\) a comma"),
    (dict(Cells_t=["987,1", "1.234,5"]*18), dict(sep=";", decimal=","), r"'1\.234,5' \(feature Cells_t, row 1\) has a point"),
    (dict(Metadata_concentration="0,5"), {}, r"'0,5' \(column concentration, row 0\) a comma"),
    ({f"Cells_f{k}": ["987", "1,234"]*18 for k in range(5)} | dict(Metadata_concentration="1"), {}, r"'1,234' \(feature Cells_f0, row 1\) may mean thousands"),
    (dict(Metadata_note="\xb5"), dict(encoding="latin-1"), r"is not in UTF-8 .line 2.; save it as UTF-8"), ({}, dict(encoding="utf-16-le"), "is not in UTF-8 .line 1"),
    ({}, dict(sep="^"), "nothing parts the columns of 'Metadata_compound^")])
def test_what_a_csv_says_is_read_or_refused(tmp_path, change, how, says):
    (tmp_path/"t.csv").write_bytes(as_csv(pd.read_csv(theirs(tmp_path)).assign(**change), **how))
    with pytest.raises(BadInput, match=says.replace("^", r"\^")) as e: read_profiles(tmp_path/"t.csv")
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize("old, new, says", [("Cells_f1", "Cells_f0", "two columns are called 'Cells_f0'"), ("Cells_f", "Metadata_f", "holds no feature"), ("\n", ",7\n", "cannot be read as a table")])
def test_columns_that_cannot_be(tmp_path, old, new, says):
    head, _, rest = theirs(tmp_path).read_text().partition("\n")
    text = (head + "\n" + rest.replace(old, new)) if old == "\n" else head.replace(old, new) + "\n" + rest
    (tmp_path/"t.csv").write_text(text)
    with pytest.raises(BadInput, match=says): read_profiles(tmp_path/"t.csv")


def test_only_features_are_features(tmp_path):
    more = dict(concentration=1.5, Plate=range(36), Spots_n=2, Image_Count=3, Image_FileName_DNA="a.tif", Mean_Cells_a=.5)
    with pytest.warns(UserWarning, match=r"no features and stay in the table \(concentration, Plate, Spots_n\)"):
        features, table = read_profiles(theirs(tmp_path, change=lambda t: t.drop(columns="Metadata_concentration").assign(**more)))
    assert set(features) == {*(f"Cells_f{k}" for k in range(5)), "Image_Count", "Mean_Cells_a"} and table.concentration.eq(1.5).all()
    with pytest.warns(UserWarning, match=r"stay in the table \(Plate\)"):
        features, table = read_profiles(theirs(tmp_path, change=lambda t: t.assign(Plate=1).rename(columns=lambda c: c.removeprefix("Cells_"))))
    assert list(features) == [f"f{k}" for k in range(5)], "no compartment is named: all numbers but the plate's"


@pytest.mark.parametrize("name", ["t.parquet", "T.PARQUET", "t.pq"])
def test_a_parquet_of_any_ending_whose_index_is_also_a_column(tmp_path, name):
    both = pd.read_csv(theirs(tmp_path))
    right, table = read_profiles(tmp_path/"theirs.csv")
    both.set_index(["Metadata_plate", "Metadata_well"], drop=False).to_parquet(tmp_path/name)
    features, about = read_profiles(tmp_path/name)
    assert features.equals(right) and about.equals(table)
    assert write_profiles(tmp_path/name, right, table).shape == read_profiles(tmp_path/name)[0].shape[:1] + (11,)
    both.set_index("Metadata_plate", drop=False).assign(Metadata_plate="else").to_parquet(tmp_path/name)
    with pytest.raises(BadInput, match="its index and its column Metadata_plate do not say the same"): read_profiles(tmp_path/name)


def test_missing_values_are_named_and_never_a_traceback(tmp_path):
    lacking = pd.array([None if i in (2, 7) else i % 4 for i in range(36)], "Int64")
    pd.read_csv(theirs(tmp_path)).assign(Cells_n=lacking, Cells_flag=pd.array([True]*36, "boolean")).to_parquet(tmp_path/"t.parquet")
    says = r"t.parquet: values are missing \(2\), in 1 of 7 features, the first in feature Cells_n, row 2; .*drop_na"
    with pytest.warns(UserWarning, match=says): features, table = read_profiles(tmp_path/"t.parquet")
    assert features.dtypes.eq(float).all() and features.Cells_n.isna().sum() == 2
    for x in (features, features.astype("Float64")):
        with pytest.raises(BadInput, match="2 values are not finite, the first in row 2, feature Cells_n"):
            scale_plates(x, table)
    whole = feature_select(features, "drop_na_columns")
    assert whole.attrs["left_out"] == {"drop_na_columns": ["Cells_n"]} and scale_plates(whole, table).shape == (36, 6)


def many(n=60, seed=0):
    rng = np.random.default_rng(seed)
    x = pd.DataFrame(rng.normal(size=(n, 6)), columns=[f"Cells_{c}" for c in "abcdef"])
    for k, (of, noise) in enumerate((("a", .1), ("a", .3), ("b", .2), ("c", 2.), ("c", .05))):
        x[f"Nuclei_{k}"] = (1 - 2*(k == 2))*x[f"Cells_{of}"] + noise*rng.normal(size=n)
    x["Cytoplasm_still"], x["Cytoplasm_nearly"] = 7., 7 + 1e-4*rng.normal(size=n)
    x["Cells_few"] = x.Cells_d.where(x.index % 30 > 0); x["Cells_many"] = x.Cells_e.where(x.index % 3 > 0)
    return x


EVERY = ["drop_na_columns", "variance_threshold", "correlation_threshold", "blocklist"]

def by_a_loop(x, threshold):
    "What correlation_threshold leaves out, pair by pair"
    r = {(a, b): x[a].corr(x[b]) for a in x for b in x}
    total = {a: sum(abs(r[a, b]) for b in x) for a in x}
    pairs = [(a, b) for i, a in enumerate(x) for b in list(x)[:i] if r[a, b] > threshold]
    return {max(pair, key=total.get) for pair in pairs}


@pytest.mark.parametrize("seed", range(4))
def test_selected_features_are_those_of_a_loop(seed):
    x = many(seed=seed)
    whole = feature_select(x, EVERY[:2])
    assert {*x} - {*whole} == {"Cells_many", "Cytoplasm_still", "Cytoplasm_nearly"} and "Cells_few" in whole
    for threshold in (.3, .9, .99):
        kept = feature_select(whole, "correlation_threshold", corr_threshold=threshold)
        assert {*whole} - {*kept} == by_a_loop(whole, threshold)
    assert "Nuclei_2" in kept, "what goes against another is kept, as there"
    kept = feature_select(x, EVERY, blocklist=["Cells_f", "Cells_none_such"])
    assert "Cells_f" not in kept and kept.attrs["left_out"]["blocklist"] == ["Cells_f"]


def test_selected_features_are_those_of_pycytominer():
    theirs = pytest.importorskip("pycytominer").feature_select  # where it is installed; no requirement
    for seed in range(4):
        x = many(seed=seed)
        for threshold in (.3, .9):
            asked = dict(operation=EVERY, corr_threshold=threshold, blocklist=["Cells_f"])
            assert list(feature_select(x, **asked)) == list(theirs(x, **asked))


@pytest.mark.parametrize("asked, says", [
    (dict(operation="drop_outliers"), "'drop_outliers' is not known; choose among variance_threshold"),
    (dict(operation="variance_threshold", min_variance=1e9), "variance_threshold leaves no feature")])
def test_a_selection_that_cannot_be(asked, says):
    with pytest.raises(BadInput, match=says): feature_select(many(), **asked)
    with pytest.raises(BadInput, match="not finite, the first in row 0, feature a"):
        feature_select(pd.DataFrame({"a": [np.inf, 1], "b": [1., 2]}))


@real
def test_real_profiles_reach_what_is_known_of_them():
    folder = fetch("bbbc021_profiles")
    features, table = read_profiles(next(folder.rglob("ljosa_*.csv.gz")), needs=("plate", "well"))
    sites = pd.read_csv(next(folder.rglob("BBBC021_v1_image.csv.gz")))[[f"Image_Metadata_{c}" for c in ("Plate_DAPI", "Well_DAPI", "Compound", "Concentration")]]
    table = table.merge(sites.drop_duplicates().set_axis(["plate", "well", "compound", "concentration"], axis=1), how="left").merge(pd.read_csv(next(folder.rglob("BBBC021_v1_moa.csv"))), how="left")
    table["batch"], dmso = table.plate.str.split("_").str[0], (table.compound == "DMSO").to_numpy()
    scaled = scale_plates(features, table)
    eps, _ = choose_eps(scaled[dmso], table.plate[dmso])  # no mechanism is looked at
    of = {name: profiles(x, table, ["compound", "concentration", "moa", "batch"]).drop("DMSO") for name, x in (("scaled", scaled), ("whitened", whiten(scaled, scaled[dmso], eps)))}
    compounds, moas, batches = (of["scaled"].index.get_level_values(c) for c in ("compound", "moa", "batch"))
    assert features.shape == (632, 516) and len(moas) == 103 and len(set(compounds)) == 38
    assert nsc_accuracy(of["scaled"], compounds, moas) >= .86 and nsc_accuracy(of["whitened"], compounds, moas) >= .90
    assert predict_moa(of["scaled"], compounds, moas, batches).scored.sum() == 103 - 11
