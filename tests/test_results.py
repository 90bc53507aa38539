"Files that are whole or not there, folders that one run writes at a time, and what the operating system refuses"
import os
import subprocess
import sys
import time

import pytest
from conftest import ENV

from integrated_cell.results import BadInput, alone, whole


def gone():
    "Number of a process that is no more"
    p = subprocess.Popen([sys.executable, "-c", ""]); p.wait()
    return p.pid


@pytest.mark.parametrize("folder", [True, False])
def test_the_next_writer_removes_what_a_killed_one_left(tmp_path, folder):
    for pid in (gone(), os.getppid()):
        part = tmp_path/f".cells.{pid}.part"
        if folder: part.mkdir(); (part/"x").write_text("half")
        else: part.write_text("half")
    other = tmp_path/f".cells.csv.{gone()}.part"; other.write_text("of another place")
    with whole(tmp_path/"cells") as part: part.write_text("all")
    assert {p.name for p in tmp_path.iterdir()} == {"cells", f".cells.{os.getppid()}.part", other.name}


def test_a_store_that_was_killed_between_two_names_comes_back(tmp_path):
    old = tmp_path/f".cells.{gone()}.old"; old.mkdir(); (old/"x").write_text("whole")
    with pytest.raises(KeyError), whole(tmp_path/"cells"): raise KeyError
    assert (tmp_path/"cells"/"x").read_text() == "whole" and len(list(tmp_path.iterdir())) == 1


WRITER = """
import sys
from pathlib import Path
from integrated_cell.results import whole
for k in range(10**6):
    with whole(Path(sys.argv[1])/"store") as part:
        part.mkdir()
        for name in ("a", "b"): (part/name).write_text(str(k)*1000)
    if not k: print("ready", flush=True)
"""


def test_killed_at_any_moment_a_place_holds_the_old_or_the_new(tmp_path):
    for wait in (.02, .05, .08, .03, .06):
        p = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], env=ENV, stdout=subprocess.PIPE)
        p.stdout.readline(); time.sleep(wait); p.kill(); p.wait()
        with pytest.raises(KeyError), whole(tmp_path/"store"): raise KeyError
        assert [q.name for q in tmp_path.iterdir()] == ["store"]
        a, b = ((tmp_path/"store"/name).read_text() for name in ("a", "b"))
        assert a == b and len(a) % 1000 == 0


def test_a_full_disk_and_a_removed_folder_are_told(tmp_path):
    (tmp_path/"file").write_text("mine")
    with pytest.raises(BadInput, match="a part of its path is a file"), whole(tmp_path/"file"/"x") as part: part.write_text("")
    with pytest.raises(BadInput, match="its folder was removed"), whole(tmp_path/"a"/"x") as part: (tmp_path/"a").rmdir()
    with pytest.raises(FileNotFoundError), whole(tmp_path/"a"/"x"): open(tmp_path/"b")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_place_is_told(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(BadInput, match="may not be written .* give another place"), whole(tmp_path/"x") as part: part.write_text("")
        with pytest.raises(BadInput, match="may not be written"), alone(tmp_path): pass
    finally: tmp_path.chmod(0o700)


def test_a_read_only_disk_is_told(tmp_path):
    with pytest.raises(BadInput, match="may not be written"), whole(tmp_path/"x"): raise OSError(30, "Read-only file system", str(tmp_path/"x"))


HOLDER = "import sys\nfrom integrated_cell.results import alone\nwith alone(sys.argv[1]): print(1, flush=True); sys.stdin.read()"


def test_one_run_in_a_folder_and_no_stale_lock(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdout.readline()
    for _ in range(2):
        with pytest.raises(BadInput, match=f"process {other.pid} is at work there; wait for it"), alone(tmp_path): pass
    other.kill(); other.wait()
    with alone(tmp_path):
        code = f"from integrated_cell.results import alone\nwith alone({str(tmp_path)!r}): print('one run')"
        child = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True)
        assert child.stdout == "one run\n", "a process that a run started works under the same lock"
        with alone(tmp_path): assert (tmp_path/".lock").read_text() == f"{os.getpid()}\n"
        assert (tmp_path/".lock").exists()
    assert not list(tmp_path.iterdir())
