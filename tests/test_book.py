"The book in a real browser, without network; and what stops its build"
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from conftest import PROJECT, make_study, one_sentence, run, write_chapter

SLIDER = """
import plotly.graph_objects as go
from IPython.display import HTML
frames = [go.Frame(data=[go.Scatter(y=[k, 2*k])], name=str(k)) for k in range(3)]
steps = [dict(method="animate", label=str(k), args=[[str(k)], dict(mode="immediate", frame=dict(duration=0, redraw=True))]) for k in range(3)]
fig = go.Figure(data=[go.Scatter(y=[0, 0])], frames=frames, layout=dict(sliders=[dict(steps=steps)]))
HTML(fig.to_html(include_plotlyjs=False, auto_play=False, full_html=False, div_id="sliding"))
""".strip()


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    "The toy study, run to its end, but for the book"
    study = make_study(tmp_path_factory.mktemp("study"))
    (study/"data_manifest").mkdir()
    for p in (PROJECT/"data_manifest").glob("*.yaml"): shutil.copy(p, study/"data_manifest")
    write_chapter(study, "data", SLIDER)
    (study/"config/toy.yaml").write_text("chapters: [data, reference]\n")
    for chapter in ("data", "reference"): run(study, "integrated-cell", "chapter", chapter, "--config", "config/toy.yaml")
    return study


@pytest.fixture
def finished(once, tmp_path):
    return Path(shutil.copytree(once, tmp_path/"study"))


def prose(root, chapter, text):
    "Add a Markdown cell to an executed chapter"
    path = root/f"results/toy/{chapter}/notebook.ipynb"
    nb = nbformat.read(path, 4)
    nb.cells.append(nbformat.v4.new_markdown_cell(text))
    nbformat.write(nb, path)


def test_every_page_opens_without_network(finished, browser):
    out, err = run(finished, "integrated-cell", "book", "--config", "config/toy.yaml")
    book = finished/"results/toy/book"
    assert out.strip().endswith("results/toy/book/index.html") and (book/"index.html").exists()
    pages = [p for p in book.rglob("*.html") if "_static" not in p.parts]
    assert {"intro.html", "notation.html", "credit.html", "about.html", "data.html", "reference.html"} <= {p.name for p in pages}
    for p in pages:
        loads = re.findall(r"<(?:script|img|iframe)[^>]*src=\"([^\"]+)|<link[^>]*rel=\"(?:stylesheet|preload|icon|shortcut icon)\"[^>]*href=\"([^\"]+)", p.read_text())
        assert not [a or b for a, b in loads if re.match("(https?:)?//", a or b)], p
        asked, lost = browser.open(p, wait=1.5)
        assert all(re.match("file:|data:|blob:", a) for a in asked) and not lost, (p, lost)
    browser.open(book/"toy/data.html")
    assert browser.run("document.querySelectorAll('mjx-container svg').length") >= 1
    assert browser.run("document.querySelector('.bd-article').innerText").count("the factor 2") == 1
    assert browser.run("document.querySelector('#sliding').data[0].y[1]") == 0
    move = "Plotly.animate('sliding', ['2'], {mode: 'immediate', frame: {duration: 0, redraw: true}}).then(() => document.querySelector('#sliding').data[0].y[1])"
    assert browser.run(move) == 4 and browser.run("document.querySelectorAll('#sliding .slider-container').length") == 1
    assert browser.run("getComputedStyle(document.querySelector('.cell.tag_hide-input details')).display") == "block"


@pytest.mark.parametrize("text, words", [
    ("The accuracy is {{ data_accuracy }}.", ["no chapter wrote a number 'data_accuracy'", "reference/notebook.ipynb"]),
    ("As {ref}`figure-of-nothing` shows.", ["the book:", "figure-of-nothing"]),
    ("As [this](nowhere.md) shows.", ["the book:", "nowhere.md"]),
    ("As {cite}`nobody1999` said.", ["the book:", "nobody1999"]),
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


def test_kept_chapters_are_read_without_running_anything(finished):
    run(finished, "integrated-cell", "publish", "--config", "config/toy.yaml")
    kept = finished/"book/published/toy"
    assert sorted(p.name for p in kept.iterdir()) == ["data", "reference", "toy.yaml"]
    assert json.loads((kept/"data/run.json").read_text())["commit"]
    assert "papermill" not in (kept/"data/notebook.ipynb").read_text() and "stderr" not in (kept/"data/notebook.ipynb").read_text()
    shutil.rmtree(finished/"results")
    shutil.rmtree(finished/"nbs/experiments")  # nothing of it is needed to read
    shutil.rmtree(kept/"reference")  # a run that is kept in pieces
    run(finished, "integrated-cell", "read")
    page = (finished/"results/read/book/toy/data.html").read_text()
    assert "Data of the toy" in page and not (finished/"results/toy").exists()
    assert "Not kept yet: reference" in (finished/"results/read/book/toy/about.html").read_text()


def test_the_readme_says_what_was_measured():
    from integrated_cell.book import measured
    assert measured(PROJECT/"book/published") in (PROJECT/"README.md").read_text(), "run `make publish` for a kept run"
