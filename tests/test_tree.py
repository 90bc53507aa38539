"The tree that a clone gets: small, its texts name only what is there, its chapters can be read"
import ast
import json
import re
import subprocess
from fnmatch import fnmatch

import pytest
from conftest import PROJECT
from papermill import inspect_notebook

from integrated_cell.page import captions
from integrated_cell.parameters import declared
from integrated_cell.prose import slug
from integrated_cell.workflow import chapter_table


def tracked():
    said = subprocess.run(["git", "-C", str(PROJECT), "ls-files", "-z"], capture_output=True, text=True)
    if said.returncode: pytest.skip("no git repository")
    return [name for name in said.stdout.split("\0") if name]


def test_the_tree_is_small():
    sizes = {name: (PROJECT/name).stat().st_size for name in tracked() if (PROJECT/name).exists()}
    models = {name: size for name, size in sizes.items() if name.startswith("models/")}
    rest = {name: size for name, size in sizes.items() if name not in models}
    for part, of, most in (("models", models, 15), ("what is no model", rest, 20), ("the tracked tree", sizes, 32)):
        largest, total = sorted(of, key=of.get)[-8:], sum(of.values())/2**20
        assert total <= most, f"{part} {total:.1f} MiB; the largest: {', '.join(f'{n} {of[n]/2**20:.1f}' for n in largest)}"


# --- Paths that are named

TEXTS = ["README.md", "ARCHITECTURE.md", *(str(p.relative_to(PROJECT)) for p in sorted((PROJECT/"book").glob("*.md")))]
MADE = re.compile(r"(?:make|integrated-cell|nbdev_export|torchrun|sbatch)\b")  # a sentence that says what makes it
OWN = re.compile(r"my_|(^|/)mine\b|/mine\.|<Protein>|\.venv")  # what a user has, or names


def named(paragraph):
    "What a paragraph calls a path: in code, or where a link goes"
    code = re.findall(r"`([^`\n]+)`", paragraph) + re.findall(r"\]\(([^)#\s]+)", paragraph)
    words = [w for c in code for w in re.split(r"[\s,;:'\"()|]+", c)]
    return [w.strip(".") for w in words if re.fullmatch(r"[\w.<>*-]+(/[\w.<>*-]+)+/?", w) and "://" not in w]


@pytest.mark.parametrize("text", TEXTS)
def test_no_path_is_named_that_a_clone_lacks(text):
    files = tracked()
    folders = {"/".join(f.split("/")[:k]) for f in files for k in range(1, f.count("/") + 1)}
    missing = []
    for paragraph in re.split(r"\n\s*\n|\n(?=[|*-])", (PROJECT/text).read_text(encoding="utf-8")):
        for path in named(paragraph):
            pattern = re.sub(r"<[^>]*>|NN", "*", path.rstrip("/"))
            there = any(fnmatch(f, pattern) for f in (*files, *folders)) or any(fnmatch(f, f"book/{pattern}") for f in files)
            if not there and not MADE.search(paragraph) and not OWN.search(path): missing.append(path)
    assert not missing, f"{text} names {missing}: no such path; correct it, or say in the sentence what makes it"


# --- Chapters

CHAPTERS = sorted((PROJECT/"nbs/experiments").glob("*.ipynb"))
LIBRARY = [p for p in sorted((PROJECT/"nbs").glob("*.ipynb")) if p.stem != "index"]


def cells(notebook, kind):
    "Sources of a notebook's cells of a kind, but for parameters"
    said = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in said if c["cell_type"] == kind and "parameters" not in c["metadata"].get("tags", [])]


def form(source):
    "What is wrong with a code cell of a chapter"
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#|")]
    nodes = list(ast.walk(tree := ast.parse("\n".join(lines))))
    only_imports = all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in tree.body)
    if len(lines) > 10 and not only_imports: yield f"{len(lines)} lines, at most 10"
    for line in lines:
        if len(line) > 110: yield f"a line of {len(line)} characters, at most 110: {line.strip()[:50]}"
    for n in nodes:
        if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)): yield f"defines {n.name}"
        if isinstance(n, (ast.Assign, ast.NamedExpr)) and isinstance(n.value, ast.Lambda): yield "a lambda with a name"
        if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "Markdown":
            if any(isinstance(m, ast.JoinedStr) for m in ast.walk(n)): yield "an f-string as text"


def words(sources):
    "Keywords, names and texts of code, as a key could hold them; does it put names together?"
    nodes = [n for source in sources for n in ast.walk(ast.parse(re.sub(r"^#\|.*", "", source, flags=re.M)))]
    found = {n.arg for n in nodes if isinstance(n, ast.keyword) and n.arg} | {n.id for n in nodes if isinstance(n, ast.Name)}
    found |= {slug(n.value) for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    calls = [n for n in nodes if isinstance(n, ast.Call)]
    said = [n.args[0] for n in calls if getattr(n.func, "attr", "") == "say" and n.args]
    told = [k.arg for n in calls if getattr(n.func, "attr", "") in ("tell", "close") for k in n.keywords]
    given = any(isinstance(n, ast.Name) for n in said) or None in told  # tell(**counts)
    return found - {""}, any(isinstance(n, ast.JoinedStr) for n in nodes), given


OF_LIBRARY = words(p.read_text(encoding="utf-8") for p in (PROJECT/"integrated_cell").glob("*/*.py"))[0]


def writes(code, key):
    "Can a chapter write this key? It begins with a word of its code, or is put together, or a library function gave its name"
    found, together, given = words(code)
    if any(f"{key}_".startswith(f"{w}_") for w in found): return True
    return together and any(len(w) > 2 and w in key for w in found) or given and key.removesuffix("_verdict") in OF_LIBRARY


def unknown(notebook, table):
    "Numbers that the text of a chapter names and that neither it nor a chapter before it writes"
    def follows(c): return {b.strip("?") for b in table.get(c, {"follows": ["data"]})["follows"]}
    before = {notebook.stem}
    while more := {b for c in before for b in follows(c)} - before: before |= more
    for name, _ in re.findall(r"\{\{ ([\w.]+)(\??) \}\}", "\n".join(cells(notebook, "markdown"))):
        chapter = max((c for c in table if name.startswith(f"{c}_")), key=len, default=None)
        if chapter not in before: yield f"{{{{ {name} }}}} is of no chapter that it follows from"; continue
        key = name[len(chapter) + 1:]
        if not writes(cells(notebook.with_stem(chapter), "code"), key): yield f"{{{{ {name} }}}} is not written by {chapter}"


def untold(notebook):
    "Figures and tables without a caption in the text before them"
    said = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    waiting = []
    for c in said:
        source = "".join(c["source"])
        if c["cell_type"] == "markdown": waiting = [kind for kind, _ in captions(source)[1]] or ([] if source.startswith("#") else waiting)
        shown = re.match(r"(?:plot|charts)\.(\w+)\(", source.strip().split("\n")[-1]) if c["cell_type"] == "code" else None
        if shown:
            kind = "Table" if shown[1] == "table" else "Figure"
            if kind in waiting: waiting.remove(kind)
            else: yield f"{shown[0]}...) has no caption"


@pytest.mark.parametrize("notebook", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_can_be_read(notebook):
    table = chapter_table(PROJECT)["chapters"]
    wrong = [f"the cell that begins '{source[:50]}': {w}" for source in cells(notebook, "code") for w in form(source)]
    wrong += [*unknown(notebook, table), *untold(notebook)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("notebook", CHAPTERS, ids=lambda p: p.stem)
def test_a_parameter_and_what_is_said_of_it_stand_on_one_line_of_110(notebook):
    said = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    lines = "\n".join("".join(c["source"]) for c in said if "parameters" in c["metadata"].get("tags", [])).splitlines()
    assert lines and not [line for line in lines if len(line) > 110 and "  # " in line]


def test_papermill_reads_every_parameter():
    for notebook in sorted((PROJECT/"nbs/experiments").glob("*.ipynb")):
        assert set(inspect_notebook(str(notebook))) == set(declared(notebook)), notebook.stem


@pytest.mark.parametrize("notebook", LIBRARY, ids=lambda p: p.stem)
def test_lines_of_the_library_are_no_wider_than_120(notebook):
    wide = [line for source in cells(notebook, "code") for line in source.splitlines() if len(line) > 120]
    assert not wide, "\n".join(wide)


def test_a_notebook_has_a_number_of_its_own():
    numbers = [p.stem.partition("_")[0] for p in LIBRARY]
    assert len({*numbers}) == len(numbers), sorted(n for n in numbers if numbers.count(n) > 1)
