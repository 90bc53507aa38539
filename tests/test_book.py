"The book in a real browser, without network; by paper; and what stops its build"
import json
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import PROJECT, make_study, one_sentence, run, write_chapter

from integrated_cell.aims import needed, read_aims
from integrated_cell.claims import against_aims, readings

SLIDER = """
import plotly.graph_objects as go
from IPython.display import HTML
frames = [go.Frame(data=[go.Scatter(y=[k, 2*k])], name=str(k)) for k in range(3)]
steps = [dict(method="animate", label=str(k), args=[[str(k)], dict(mode="immediate", frame=dict(duration=0, redraw=True))]) for k in range(3)]
fig = go.Figure(data=[go.Scatter(y=[0, 0])], frames=frames, layout=dict(sliders=[dict(steps=steps)]))
HTML(fig.to_html(include_plotlyjs=False, auto_play=False, full_html=False, div_id="sliding"))
""".strip()

FIGURE = """
from matplotlib import pyplot as plt
from IPython.display import display
import pandas as pd
display(pd.DataFrame([range(10**9, 10**9 + 30)]))  # wider than a page
fig, ax = plt.subplots(figsize=(7.5, 2))
ax.plot([1, 2]); ax.set_xlabel("µm")
plt.close(fig)
fig
""".strip()
CAPTION = "\n\nFigure: A line of {{ reference_factor }} points. It rises.\n\nTable: Many numbers."


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    "The toy study, run to its end, but for the book"
    study = make_study(tmp_path_factory.mktemp("study"))
    (study/"data_manifest").mkdir()
    for p in (PROJECT/"data_manifest").glob("*.yaml"): shutil.copy(p, study/"data_manifest")
    shutil.copytree(PROJECT/"data_manifest/printed", study/"data_manifest/printed")
    shutil.copy(next((PROJECT/"nbs").glob("*_data.manifest.ipynb")), study/"nbs")
    write_chapter(study, "data", SLIDER)
    write_chapter(study, "reference", FIGURE, text=CAPTION)
    (study/"config/toy.yaml").write_text("chapters: [data, reference]\n")
    for chapter in ("data", "reference"): run(study, "integrated-cell", "chapter", chapter, "--config", "config/toy.yaml")
    return study


@pytest.fixture
def finished(once, tmp_path):
    return Path(shutil.copytree(once, tmp_path/"study"))


@pytest.fixture(scope="module")
def built(once, tmp_path_factory):
    "The toy study with its book, to be read only"
    study = Path(shutil.copytree(once, tmp_path_factory.mktemp("built")/"study"))
    out, err = run(study, "integrated-cell", "book", "--config", "config/toy.yaml")
    assert out.strip().endswith("results/toy/book/index.html") and (study/"results/toy/book/index.html").exists()
    return study


def prose(root, chapter, text):
    "Add a Markdown cell to a chapter that has run: its page has the prose of today"
    path = root/f"nbs/experiments/{chapter}.ipynb"
    nb = nbformat.read(path, 4)
    nb.cells.append(nbformat.v4.new_markdown_cell(text))
    nbformat.write(nb, path)


KEPT = sorted((PROJECT/"book/published").glob("*/*/notebook.ipynb"))


@pytest.mark.parametrize("page", KEPT, ids=lambda p: f"{p.parts[-3]}-{p.parts[-2]}")
def test_no_kept_page_prints_an_object_of_python(page):
    outputs = [o for c in json.loads(page.read_text(encoding="utf-8"))["cells"] for o in c.get("outputs", [])]
    bare = [text for o in outputs if {*o.get("data", {})} == {"text/plain"} for text in ["".join(o["data"]["text/plain"])]]
    assert not bare, f"{page}: {bare}"


def test_every_page_opens_without_network(built, browser):
    book = built/"results/toy/book"
    assert run(built, "integrated-cell", "names", "data", "--config", "config/toy.yaml")[0] == "data_factor = 2\ndata_seed = 0\n"
    pages = [p for p in book.rglob("*.html") if "_static" not in p.parts]
    assert {"intro", "part_1", "part_5", "own_images", "notation", "errata", "credit", "about", "data", "reference", "data.manifest"} <= {p.stem for p in pages}
    assert "no run of this book has asked yet: 1" in (book/"part_2.html").read_text()  # no chapter of it was run
    for p in pages:
        loads = re.findall(r"<(?:script|img|iframe)[^>]*src=\"([^\"]+)|<link[^>]*rel=\"(?:stylesheet|preload|icon|shortcut icon)\"[^>]*href=\"([^\"]+)", p.read_text())
        assert not [a or b for a, b in loads if re.match("(https?:)?//", a or b)], p
        asked, lost = browser.open(p, wait=.8)
        assert all(re.match("file:|data:|blob:", a) for a in asked) and not lost, (p, lost)
    browser.open(book/"toy/data.html")
    assert browser.run("document.querySelectorAll('mjx-container svg').length") >= 1
    assert browser.run("document.querySelector('.bd-article').innerText").count("the factor 2") == 1
    assert browser.run("document.querySelector('#sliding').data[0].y[1]") == 0
    move = "Plotly.animate('sliding', ['2'], {mode: 'immediate', frame: {duration: 0, redraw: true}}).then(() => document.querySelector('#sliding').data[0].y[1])"
    assert browser.run(move) == 4 and browser.run("document.querySelectorAll('#sliding .slider-container').length") == 1


def test_figures_tables_and_code_of_a_page(built, browser):
    book = built/"results/toy/book"
    browser.send("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=False)
    for page in (p for p in book.rglob("*.html") if "_static" not in p.parts):
        browser.open(page, wait=.8)
        assert browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0, f"{page} scrolls sideways"
        assert browser.run("[...document.querySelectorAll('article img')].every(i => i.alt && i.naturalWidth)"), page
    browser.open(book/"toy/reference.html")
    assert browser.run("document.querySelector('article figure img').alt") == "A line of 2 points."
    assert browser.run("document.querySelector('article figcaption').innerText").strip().endswith("A line of 2 points. It rises.")
    assert browser.run("[...document.querySelectorAll('article .caption')].map(e => e.innerText.trim())") == ["Many numbers."]
    last = "document.querySelector('article table.named tbody tr').lastElementChild"
    assert browser.run(f"{last}.dataset.of") == "29" and browser.run(f"getComputedStyle({last}).display") == "block"  # a row is a card
    browser.open(book/"errata.html")
    assert browser.run("document.querySelector('article table.named td:nth-child(2)').dataset.of") == "printed"
    browser.open(book/"toy/reference.html")
    assert "Figure:" not in browser.run("document.querySelector('article').innerText")
    folds = "document.querySelectorAll('article details.sd-dropdown')"
    assert browser.run(f"{folds}.length") == 1  # of the one section
    assert not browser.run(f"{folds}[0].open") and "factor = 2" in browser.run(f"{folds}[0].textContent")
    assert browser.run("document.querySelectorAll('article .cell_input').length") == 0  # no row of empty bars
    browser.run("document.documentElement.dataset.theme = 'dark'")
    assert browser.run("getComputedStyle(document.querySelector('article figure img')).backgroundColor") == "rgb(255, 255, 255)"


@pytest.mark.parametrize("text, words", [
    ("The accuracy is {{ data_accuracy }}.", ["no chapter wrote a number 'data_accuracy'", "reference/notebook.ipynb"]),
    ("The accuracy is {{ gans_accuracy }}.", ["no chapter wrote a number 'gans_accuracy'"]),
    ("As {ref}`figure-of-nothing`, [this](nowhere.md) and {cite}`nobody1999` show.",
     ["the book:", "figure-of-nothing", "nowhere.md", "nobody1999"]),
])
def test_what_does_not_exist_fails_the_build(finished, text, words):
    prose(finished, "reference", text)
    out, err = run(finished, "integrated-cell", "book", "--config", "config/toy.yaml", rc=2)
    assert one_sentence(err) and all(w in err for w in words), err
    assert not (finished/"results/toy/book").exists()


def test_a_missing_or_failed_chapter_fails_the_build(finished):
    path = finished/"results/toy/reference/notebook.ipynb"
    nb = nbformat.read(path, 4)
    nb.cells[4].outputs = [nbformat.v4.new_output("error", ename="KeyError", evalue="x", traceback=[])]
    nbformat.write(nb, path)
    out, err = run(finished, "integrated-cell", "book", "--config", "config/toy.yaml", rc=2)
    assert one_sentence(err) and "ends in an error" in err
    (finished/"results/toy/reference/metrics.json").unlink()
    out, err = run(finished, "integrated-cell", "book", "--config", "config/toy.yaml", rc=2)
    assert one_sentence(err) and "chapter reference has not run to its end" in err
    run(finished, "integrated-cell", "book", "--config", "config/toy.yaml", "--partly")
    assert (finished/"results/toy/book/toy/data.html").exists() and not (finished/"results/toy/book/toy/reference.html").exists()
    assert "no run of this book has asked yet: 2" in (finished/"results/toy/book/part_1.html").read_text()
    (finished/"results/toy/data/metrics.json").unlink()
    out, err = run(finished, "integrated-cell", "book", "--config", "config/toy.yaml", "--partly", rc=2)
    assert one_sentence(err) and "no chapter has run to its end" in err


def test_kept_chapters_are_read_by_paper_without_running_anything(finished):
    "Two runs are kept, one of them in pieces: each chapter stands once, its sister below it"
    for name in ("truth", "real"):
        shutil.copytree(finished/"results/toy", finished/"results"/name)
        shutil.copy(finished/"config/toy.yaml", finished/"config"/f"{name}.yaml")
        run(finished, "integrated-cell", "publish", "--config", f"config/{name}.yaml")
    kept = finished/"book/published/truth"
    assert sorted(p.name for p in kept.iterdir()) == ["data", "reference", "truth.yaml"]
    assert json.loads((kept/"data/run.json").read_text())["commit"]
    assert "papermill" not in (kept/"data/notebook.ipynb").read_text() and "stderr" not in (kept/"data/notebook.ipynb").read_text()
    small, large = (p.stat().st_size for p in (kept/"reference/notebook.ipynb", finished/"results/truth/reference/notebook.ipynb"))
    assert small < .7*large  # pictures as small as they look the same
    shutil.rmtree(finished/"results")
    shutil.rmtree(finished/"nbs/experiments")  # nothing of it is needed to read
    shutil.rmtree(finished/"book/published/real/reference")
    run(finished, "integrated-cell", "read")
    book = finished/"results/read/book"
    assert "Data of the toy" in (book/"truth/data.html").read_text() and not (finished/"results/truth").exists()
    assert "are not in this book: reference" in (book/"real/about.html").read_text()
    links = re.findall(r'href="([^"#]*)"[^>]*>\s*([^<]*?)\s*</a>', (book/"intro.html").read_text())
    listed = [(to, text) for to, text in links if re.match(r"(truth|real)/(data|reference)", to)]
    assert listed.count(("truth/reference.html", "Reference of the toy")) == 1 and ("real/data.html", "the same on HeLa cells") in listed
    one_page = (book/"part_1.html").read_text()
    assert one_page.count("not in this run") >= 2 and ">simulated cells" in one_page  # no claim is made where nothing was measured


def test_every_page_of_the_book_and_each_chapter_stands_somewhere():
    table = yaml.safe_load((PROJECT/"book/chapters.yaml").read_text())
    pages = {*table["parts"], *(p for of in table["parts"].values() for p in of.get("pages", []))}
    assert {p.stem for p in (PROJECT/"book").glob("*.md")} == pages - {"notation"} | {"intro"}
    assert {p.stem for p in (PROJECT/"nbs/experiments").glob("*.ipynb")} == {*table["chapters"]}
    assert {of["part"] for of in table["chapters"].values()} <= {*table["parts"]}
    for c, of in table["chapters"].items(): assert {b.strip("?") for b in of["follows"]} <= {*table["chapters"]} - {c}, c


@pytest.mark.parametrize("page", sorted(p for c in ("comparison", "one_model", "trained") for p in (PROJECT/"book/published").glob(f"*/{c}")),
                         ids=lambda p: f"{p.parent.name}-{p.name}")
def test_a_kept_page_that_gathers_numbers_has_those_of_the_pages_beside_it(page):
    source = json.loads((page.parent/"data/metrics.json").read_text())["source"]
    wanted = read_aims(PROJECT/"bench/aims.csv", page.name, None if page.name == "comparison" else source)
    of = {c: page.parent/c/"metrics.json" for c in needed(wanted)}
    found = against_aims(wanted, readings({c: json.loads(p.read_text()) for c, p in of.items() if p.is_file()}))
    said = pd.DataFrame(json.loads((page/"metrics.json").read_text())["rows"])
    differ = [r.key for r, v in zip(said.itertuples(), found.value) if not np.isclose(r.value, v, rtol=1e-9, equal_nan=True)]
    assert len(said) == len(found) and not differ, f"run {page.name} of {page.parent.name} again and keep it: {', '.join(differ)}"


def test_every_claim_names_what_a_kept_chapter_wrote():
    "A name that no kept run has carries a question mark; of names with a bar between them one is enough"
    from integrated_cell.contents import made_run
    from integrated_cell.standing import read_claims, word
    claims = read_claims(PROJECT/"book/claims.csv").fillna("")
    runs = [made_run(p, p.parent, partly=True) for p in (PROJECT/"book/published").glob("*/*.yaml")]
    known = {k for r in runs for k, v in r["values"].items() if v is not None and v is not ...}
    for c in claims.itertuples():
        asked = re.findall(r"\{\{ ([\w|]+) \}\}", c.found)
        new = "no kept run has this number yet: write {{ name? }} in the column found"
        for names in asked: assert {*names.split("|")} & known, f"'{c.claim}', {names}: {new}"
        judged = "?" in c.found or not c.rule or any(word(c, r["values"]) != "not in this run" for r in runs)
        assert judged, f"'{c.claim}', {c.rule}: {new}"


def test_the_words_are_explained():
    "Every word that a claim can get stands in the one table that the pages include"
    from integrated_cell.claims import UNASKED, Estimate, aimed, claimed, counted, doubt
    from integrated_cell.prose import ABSENT
    a, b, aims = Estimate(1, 0, 2), Estimate(1), (0, .5, 1.5, 3)
    said = {claimed(e, Estimate(at)) for e in (a, b) for at in (-1, 1.5, 3)} | {counted(k, 3) for k in range(4)}
    said |= {aimed(a, aim) for aim in aims} | {doubt("under-trained"), doubt("not judged"), UNASKED, ABSENT}
    table = (PROJECT/"book/shared/words.md").read_text()
    for word in said: assert f"`{word.removesuffix(' by the number alone')}`" in table, word
    assert "`… by the number alone`" in table
    for page in ("intro", *(f"part_{k}" for k in range(1, 5))): assert "shared/words.md" in (PROJECT/f"book/{page}.md").read_text()


def test_the_readme_says_what_was_measured():
    from integrated_cell.book import measured
    assert measured(PROJECT/"book/published") in (PROJECT/"README.md").read_text(), "run `make publish` for a kept run"
