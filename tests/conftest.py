"What several tests need: a tiny study of four chapters, the command line, a browser without network"
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml

from integrated_cell.results import wait_briefly

wait_briefly()  # before a test loads torch
PROJECT = Path(__file__).resolve().parent.parent
ENV = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

CHAPTER = """
import json
from pathlib import Path
from IPython.display import Markdown
from integrated_cell.results import BadInput, write_json
""".strip()


def write_chapter(root, name, body, parameters="factor = 2  # of the toy", text=""):
    "A toy experiment notebook with the marks that a real one has"
    code, prose = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    first = code(f'results = "results/toy"  # folder of the run\nseed = 0\n{parameters}')
    first.metadata["tags"] = ["parameters"]
    nb = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_raw_cell("---\nskip_exec: true\n---"),
        prose(f"# {name.capitalize()} of the toy\n\nA formula, $z_r = \\frac{{1}}{{2}} x^2$, and the factor {{{{ {name}_factor }}}}. {text}"),
        first, code(CHAPTER), code(body), code(f'write_json(Path(results)/"{name}"/"metrics.json", {{"factor": factor, "seed": seed}})')],
        metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}})
    path = root/"nbs/experiments"/f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)
    return path


def make_study(root):
    "A project folder with the real Snakefile and book pages, and four chapters that take a second"
    for name in ("data", "reference", "conditional", "classification"): write_chapter(root, name, "Markdown(f'{factor * 21} is the answer')")
    for name in ("Snakefile", "CITATION.cff", "README.md"): shutil.copy(PROJECT/name, root)
    shutil.copytree(PROJECT/"book", root/"book", ignore=shutil.ignore_patterns("published", "_build"))
    rows = [f"{part},1,{c},Toys of {c} grow,1,factor {{{{ {c}_factor }}}},{c}_factor > 1" for part, c in
            (("part_1", "reference"), ("part_1", "conditional"), ("part_2", "gans"))]
    (root/"book/claims.csv").write_text("\n".join(["part,front,chapter,claim,printed,found,rule", *rows, ""]))
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Notation\n\n$x_r$ is a reference image.")]), root/"nbs/index.ipynb")
    set_config(root, chapters=["data", "reference", "conditional", "classification"])
    return root


LONGEST = ["test_study", "test_resume", "test_book", "test_workflow", "test_killed", "test_devices"]


def pytest_collection_modifyitems(items):
    "The longest files first, so that no worker is alone with one at the end"
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path)


def set_config(root, **said):
    (root/"config").mkdir(exist_ok=True)
    (root/"config/toy.yaml").write_text(yaml.safe_dump(said))


def run(root, *command, rc=0):
    "Run a command in `root`, require its exit status, return stdout and stderr"
    said = subprocess.run([str(c) for c in command], cwd=root, env=ENV, capture_output=True, text=True, timeout=600)
    assert said.returncode == rc, f"{command} ended with {said.returncode}\n{said.stdout[-3000:]}\n{said.stderr[-3000:]}"
    return said.stdout, said.stderr


def one_sentence(text):
    "True where the text is a single line and no traceback"
    return len(text.strip().splitlines()) == 1 and "Traceback" not in text


class Browser:
    "Headless Chromium over its DevTools socket; every address but files is out of reach"

    def __init__(self, program, folder):
        from websocket import create_connection
        self.process = subprocess.Popen([
            program, "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--remote-debugging-port=0", "--remote-allow-origins=*",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-proxy-server",
            "--allow-file-access-from-files", "--window-size=1300,1600", f"--user-data-dir={folder}", "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = Path(folder)/"DevToolsActivePort"
        for _ in range(300):
            if port.exists() and port.read_text().strip(): break
            time.sleep(.1)
        number = port.read_text().split()[0]
        from urllib.request import ProxyHandler, build_opener
        tabs = json.load(build_opener(ProxyHandler({})).open(f"http://127.0.0.1:{number}/json"))
        self.socket = create_connection(next(t for t in tabs if t["type"] == "page")["webSocketDebuggerUrl"], timeout=60, http_no_proxy=["127.0.0.1"])
        self.n, self.events = 0, []
        for domain in ("Page", "Network", "Runtime", "Log"): self.send(f"{domain}.enable")

    def send(self, method, **params):
        self.n += 1
        self.socket.send(json.dumps({"id": self.n, "method": method, "params": params}))
        while True:
            said = json.loads(self.socket.recv())
            if said.get("id") == self.n: return said.get("result", said)
            self.events.append(said)

    def open(self, path, wait=3.):
        "Show a page; return the addresses asked for and the requests and scripts that failed"
        self.events.clear()
        self.send("Page.navigate", url=Path(path).resolve().as_uri())
        for _ in range(int(wait*10)):
            time.sleep(.1)
            self.run("1")
        asked = {e["params"]["requestId"]: e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"}
        lost = [asked.get(e["params"]["requestId"], "?") + " " + e["params"]["errorText"] for e in self.events if e.get("method") == "Network.loadingFailed"]
        thrown = [e["params"]["exceptionDetails"]["exception"].get("description", "") for e in self.events if e.get("method") == "Runtime.exceptionThrown"]
        return list(asked.values()), lost + thrown

    def run(self, script):
        "The value of a JavaScript expression"
        return self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)["result"].get("value")

    def picture(self, path):
        "The whole page as a PNG, for a person to look at"
        import base64
        height = self.run("document.documentElement.scrollHeight")
        self.send("Emulation.setDeviceMetricsOverride", width=1300, height=height, deviceScaleFactor=1, mobile=False)
        Path(path).write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))
        self.send("Emulation.clearDeviceMetricsOverride")

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture
def browser(tmp_path_factory):
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not program: pytest.skip("no Chromium to open the book in")
    b = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield b
    b.close()
