"Fetching from a server of our own: resume, checksums, lock file, mirror first, and what is said offline"
import gzip
import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from integrated_cell.data.manifest import cache_folder, fetch, read_source, sources
from integrated_cell.results import BadInput

A, B = b"membrane"*40_000, b"dna"*9_000


@pytest.fixture
def server():
    "Serves `files` with Range; cuts the connection after `cut` bytes, once; notes what was asked for"
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args): pass
        def do_GET(self):
            at = self.server
            body = at.files.get(self.path)
            at.asked.append((self.path, self.headers.get("Range")))
            if body is None: return self.send_error(404)
            asked = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
            start = int(asked[1]) if asked and at.ranges else 0
            if start and start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206 if start else 200)
            if start: self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Length", str(len(body) - start)); self.end_headers()
            if not at.cut or not at.cuts: return self.wfile.write(body[start:])
            at.cuts -= 1
            self.wfile.write(body[start:start + at.cut]); self.wfile.flush(); self.connection.close()
    s = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    s.handle_error = lambda *args: None
    s.files, s.asked, s.cut, s.cuts, s.ranges = {"/a.bin": A, "/deep/b.bin": B}, [], 0, 0, True
    s.url = f"http://127.0.0.1:{s.server_port}"
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown(); s.server_close()


@pytest.fixture
def place(tmp_path, monkeypatch, server):
    "A manifest folder with a source `toy` of two originals, and a cache of its own"
    monkeypatch.setenv("INTEGRATED_CELL_CACHE", str(tmp_path/"cache"))
    monkeypatch.delenv("INTEGRATED_CELL_MIRROR", raising=False)
    write(tmp_path/"manifest", [("a.bin", f"{server.url}/a.bin", A), ("deep/b.bin", f"{server.url}/deep/b.bin", B)])
    return tmp_path


def write(folder, files, record=False, kind="original", name="toy"):
    folder.mkdir(exist_ok=True)
    about = dict(title="a toy", licence="do as you like", citation="nobody", checksum="record" if record else "sha256")
    (folder/f"{name}.yaml").write_text(yaml.safe_dump(about))
    rows = [("path", "url", "bytes", "sha256", "kind")]
    for path, url, content in files:
        known = ("", "") if record else (str(len(content)), hashlib.sha256(content).hexdigest())
        rows.append((path, url, *known, kind))
    (folder/f"{name}.tsv").write_text("\n".join(map("\t".join, rows)) + "\n")


def test_a_second_fetch_asks_for_nothing(place, server, capsys):
    folder = fetch("toy", manifest=place/"manifest")
    assert (folder/"a.bin").read_bytes() == A and (folder/"deep"/"b.bin").read_bytes() == B
    assert "do as you like" in capsys.readouterr().err
    asked = len(server.asked)
    assert fetch("toy", manifest=place/"manifest") == folder and len(server.asked) == asked
    assert "do as you like" not in capsys.readouterr().err, "the licence is shown once"


def test_a_cut_connection_is_taken_up_again(place, server):
    server.cut, server.cuts = 100_000, 2
    assert (fetch("toy", manifest=place/"manifest")/"a.bin").read_bytes() == A
    ranges = [r for p, r in server.asked if p == "/a.bin"]
    assert ranges[0] is None and all(re.match(r"bytes=[1-9]\d*-", r) for r in ranges[1:]) and len(ranges) == 3


def test_what_arrived_is_kept_for_the_next_run(place, server):
    server.cut, server.cuts = 50_000, 99
    with pytest.raises(BadInput, match="cannot be reached"): fetch("toy", manifest=place/"manifest")
    part = cache_folder()/"toy"/"a.bin.part"
    have = part.stat().st_size
    assert 0 < have < len(A) and not (cache_folder()/"toy"/"a.bin").exists()
    server.cuts, server.asked[:] = 0, []
    folder = fetch("toy", manifest=place/"manifest")
    assert (folder/"a.bin").read_bytes() == A and server.asked[0] == ("/a.bin", f"bytes={have}-") and not part.exists()


@pytest.mark.parametrize("ranges,part", [(False, A[:1000]), (True, A), (True, A + b"more")])
def test_a_part_that_the_server_cannot_continue(place, server, ranges, part):
    server.ranges = ranges
    (cache_folder()/"toy").mkdir(parents=True); (cache_folder()/"toy"/"a.bin.part").write_bytes(part)
    assert (fetch("toy", manifest=place/"manifest")/"a.bin").read_bytes() == A


@pytest.mark.parametrize("served", [A[:-1], b"x" + A[1:], b""])
def test_another_file_than_the_manifest_says_is_not_kept(place, server, served):
    server.files["/a.bin"] = served
    with pytest.raises(BadInput, match="a.bin.*checksum"): fetch("toy", manifest=place/"manifest")
    assert not list((cache_folder()/"toy").glob("a.bin*"))
    server.files["/a.bin"] = A
    assert (fetch("toy", manifest=place/"manifest")/"a.bin").read_bytes() == A


def test_without_published_checksum_the_first_file_is_held_to(place, server):
    write(place/"manifest", [("a.bin", f"{server.url}/a.bin", A)], record=True)
    folder = fetch("toy", manifest=place/"manifest")
    assert hashlib.sha256(A).hexdigest() in (cache_folder()/"toy.lock").read_text()
    (folder/"a.bin").unlink(); server.files["/a.bin"] = A + b"!"
    with pytest.raises(BadInput, match="checksum"): fetch("toy", manifest=place/"manifest")
    assert not (folder/"a.bin").exists()
    (place/"mirror"/"toy").mkdir(parents=True); (place/"mirror"/"toy"/"a.bin").write_bytes(B)
    with pytest.raises(BadInput, match="recorded in"): fetch("toy", place/"mirror", manifest=place/"manifest")


PAGE = b"\n<!DOCTYPE html><title>Please log in</title>"


@pytest.mark.parametrize("record", [True, False])
def test_a_web_page_with_status_200_is_no_file(place, server, record):
    write(place/"manifest", [("a.bin", f"{server.url}/a.bin", A)], record=record)
    server.files["/a.bin"] = PAGE
    with pytest.raises(BadInput, match="gave a web page and not a.bin"): fetch("toy", manifest=place/"manifest")
    assert not list((cache_folder()/"toy").glob("a.bin*")) and not (cache_folder()/"toy.lock").exists()
    server.files["/a.bin"] = A
    assert (fetch("toy", manifest=place/"manifest")/"a.bin").read_bytes() == A


def test_damaged_notes_of_earlier_fetches(place, server):
    write(place/"manifest", [("a.bin", f"{server.url}/a.bin", A)], record=True)
    fetch("toy", manifest=place/"manifest")
    (cache_folder()/"toy.checked.json").write_text("{\"")
    assert (fetch("toy", manifest=place/"manifest")/"a.bin").read_bytes() == A
    (cache_folder()/"toy.lock").write_text("path\tsha256\na\tb\tc\td\n\"")
    with pytest.raises(BadInput, match="toy.lock: .*cannot be read; remove"): fetch("toy", manifest=place/"manifest")


def test_offline_says_which_file_from_where_and_what_to_do(place, server):
    server.shutdown(); server.server_close()
    with pytest.raises(BadInput) as e: fetch("toy", manifest=place/"manifest")
    said = str(e.value)
    by_hand = cache_folder()/"toy"/"a.bin"
    assert "a.bin" in said and f"{server.url}/a.bin" in said and str(by_hand) in said
    assert "INTEGRATED_CELL_MIRROR" in said and "\n" not in said
    (by_hand.parent/"deep").mkdir(parents=True); by_hand.write_bytes(A); (by_hand.parent/"deep"/"b.bin").write_bytes(B)
    assert fetch("toy", manifest=place/"manifest") == by_hand.parent


def test_missing_at_the_origin(place, server):
    del server.files["/deep/b.bin"]
    with pytest.raises(BadInput, match="answered 404"): fetch("toy", manifest=place/"manifest")


def test_the_mirror_comes_first_and_nothing_is_copied(place, server, monkeypatch):
    mirror = place/"mirror"; (mirror/"toy"/"deep").mkdir(parents=True)
    (mirror/"toy"/"a.bin").write_bytes(A); (mirror/"toy"/"deep"/"b.bin").write_bytes(B)
    monkeypatch.setenv("INTEGRATED_CELL_MIRROR", str(mirror))
    assert fetch("toy", manifest=place/"manifest") == mirror/"toy" and not server.asked
    assert not (cache_folder()/"toy").exists()
    (mirror/"toy"/"a.bin").write_bytes(A[:-5])
    with pytest.raises(BadInput, match="truncated"): fetch("toy", manifest=place/"manifest")
    (mirror/"toy"/"a.bin").write_bytes(b"!" + A[1:])
    with pytest.raises(BadInput, match="checksum of the manifest"): fetch("toy", manifest=place/"manifest")
    (mirror/"toy"/"a.bin").unlink()
    assert (fetch("toy", manifest=place/"manifest")/"deep"/"b.bin").read_bytes() == B
    assert [p for p, _ in server.asked] == ["/a.bin"], "what the mirror has is not asked for"
    with pytest.raises(BadInput, match="not a folder"): fetch("toy", place/"nowhere", manifest=place/"manifest")


def test_derived_files_are_preferred(place, server):
    with open(place/"manifest"/"toy.tsv", "a") as f:
        f.write(f"cells.npz\t\t{len(B)}\t{hashlib.sha256(B).hexdigest()}\tderived\n")
    mirror = place/"mirror"; (mirror/"toy").mkdir(parents=True); (mirror/"toy"/"cells.npz").write_bytes(B)
    assert fetch("toy", mirror, manifest=place/"manifest") == mirror/"toy" and not server.asked
    with pytest.raises(BadInput, match="only a mirror has them"): fetch("toy", files="*.npz", manifest=place/"manifest")


def test_a_full_disk_is_told(place, monkeypatch):
    def full(*args, **kwargs): raise OSError(28, "No space left on device")
    monkeypatch.setattr("integrated_cell.data.manifest.Resume.take", full)
    with pytest.raises(BadInput, match="disk is full"): fetch("toy", manifest=place/"manifest")


@pytest.mark.parametrize("row,said", [
    ("../a\thttp://x/a\t1\t" + "0"*64 + "\toriginal", "outside the folder"),
    ("/etc/a\thttp://x/a\t1\t" + "0"*64 + "\toriginal", "outside the folder"),
    ("b/../../a\thttp://x/a\t1\t" + "0"*64 + "\toriginal", "outside the folder"),
    ("a\thttp://x/a\t1\t\toriginal", "no checksum"),
    ("a\thttp://x/a\t1\t123\toriginal", "64 hexadecimal"),
    ("a\t\t1\t" + "0"*64 + "\toriginal", "without an http"),
    ("a\tfile:///etc/passwd\t1\t" + "0"*64 + "\toriginal", "without an http"),
    ("a\thttp://x/a\tmany\t" + "0"*64 + "\toriginal", "number of bytes"),
    ("a\thttp://x/a\t1\t" + "0"*64 + "\tstolen", "original or derived")])
def test_bad_rows_are_refused_before_anything_is_opened(place, row, said):
    (place/"manifest"/"toy.tsv").write_text(f"path\turl\tbytes\tsha256\tkind\n{row}\n")
    with pytest.raises(BadInput, match=f"toy.tsv line 2.*{said}"): fetch("toy", manifest=place/"manifest")
    assert not cache_folder().exists()


def test_unknown_source():
    with pytest.raises(BadInput, match="hela3d"): fetch("hela4d")
    with pytest.raises(BadInput, match="no folder of manifests"): read_source("toy", "/nowhere")


def test_every_source_of_the_project_is_sound():
    table = sources()
    known = {"hela3d", "yeast_paired", "bbbc021_cells", "bbbc021_profiles", "allen_hipsc", "bbbc021", "lin_yeast"}
    assert known <= set(table.index)
    for name in table.index:
        source = read_source(name)
        assert source.record == (source.files.sha256 == "").any() and source.note
    assert len(read_source("bbbc021").files) == 5 + 55


def test_a_packed_list_says_the_same_and_a_damaged_one_is_told(place, server):
    plain = place/"manifest"/"toy.tsv"
    said, packed = read_source("toy", place/"manifest").files, place/"manifest"/"toy.tsv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert read_source("toy", place/"manifest").files.equals(said)
    for damaged in (packed.read_bytes()[:-20], b"path\turl", b""):
        packed.write_bytes(damaged)
        with pytest.raises(BadInput, match="toy.tsv.gz cannot be unpacked|lists no file"):
            read_source("toy", place/"manifest")
