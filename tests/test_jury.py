"A jury that is killed, asked twice, moved or damaged; what the report says in odd cases; what the silicon juror has seen"
import os
import signal
import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from integrated_cell.evaluation import jury as room
from integrated_cell.evaluation.jury import ANSWERS, Jury, ask, read_answers, report, silicon, verdict
from integrated_cell.results import BadInput


def images(n=6, shape=(10, 12), seed=0): return np.random.default_rng(seed).integers(1, 256, (n, 3, *shape), dtype=np.uint8)


def sit(path, seed=0): return Jury(images(), images(seed=1), path, seed)


def test_killed_between_answers(tmp_path):
    one, (read, write) = sit(tmp_path/"a.csv"), os.pipe()
    child = os.fork()
    if not child:  # answers until it is killed
        for i in one.left(): one.answer(i, "real"); os.write(write, bytes([i])); time.sleep(.05)
        os._exit(0)
    os.close(write)
    said = [os.read(read, 1)[0] for _ in range(4)]
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    kept = read_answers(tmp_path/"a.csv").image.tolist()
    assert kept[:4] == said == [int(i) for i in one.order[:4]] and len(kept) < 12
    again = sit(tmp_path/"a.csv")
    assert again.left() == [int(i) for i in again.order[len(kept):]]
    for i in again.left(): assert again.answer(i, "fake")
    table = read_answers(tmp_path/"a.csv")
    assert sorted(table.image) == list(range(12)) and table.attrs == dict(n_double=0, n_damaged=0) and not again.left()


def test_cut_at_any_byte(tmp_path):
    path = tmp_path/"a.csv"
    for i in sit(path).order[:2]: sit(path).answer(int(i), "real")
    text = path.read_bytes()
    for n in range(len(text) + 1):
        path.write_bytes(text[:n])
        whole = max(text[:n].count(b"\n") - 1, 0)
        one = sit(path)
        assert len(one.left()) == 12 - whole, text[:n]
        assert one.answer(one.left()[0], "fake") and len(read_answers(path)) == whole + 1 and read_answers(path).attrs["n_damaged"] == 0
        assert path.read_bytes().count(b"\n") == whole + 2


@pytest.mark.parametrize("tail", [b"\0\0\0\0\0", b"\0\0\0\n", b"fffffffff\n", b"ab,1,real,rea", "ü".encode()[:1], b"\xff,\n"])
def test_damaged_last_line(tmp_path, tail):
    path = tmp_path/"a.csv"
    for i in sit(path).order[:3]: sit(path).answer(int(i), "real")
    sound = path.read_bytes()
    path.write_bytes(sound + tail)
    assert len(read_answers(path)) == 3 and read_answers(path).attrs["n_damaged"] == 1 and report(path).n["right"] == 3
    again = sit(path)
    again.answer(again.left()[0], "fake")
    assert path.read_bytes().startswith(sound) and len(read_answers(path)) == 4 and tail not in path.read_bytes()


def test_damage_in_the_middle_is_told_and_kept(tmp_path):
    path = tmp_path/"a.csv"
    for i in sit(path).order[:3]: sit(path).answer(int(i), "real")
    lines = path.read_bytes().splitlines(True)
    path.write_bytes(damaged := lines[0] + lines[1] + b"?\n" + lines[3])
    with pytest.raises(BadInput, match="line 3: not an answer"): sit(path)
    assert path.read_bytes() == damaged


def test_saved_by_a_spreadsheet_with_other_line_ends(tmp_path):
    path = tmp_path/"a.csv"
    for i in sit(path).order[:3]: sit(path).answer(int(i), "real")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert sit(path).answer(sit(path).left()[0], "fake") and len(read_answers(path)) == 4


def test_two_tabs_and_double_answers(tmp_path):
    path = tmp_path/"a.csv"
    one, two = sit(path), sit(path)
    i = one.left()[0]
    assert one.answer(i, "real") and not two.answer(i, "fake") and two.left() == one.left() and i not in two.left()
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(True)[1].replace(b",real,2", b",fake,2"))
    assert read_answers(path).answer.tolist() == ["real"] and read_answers(path).attrs["n_double"] == 1 and report(path).n["right"] == 1


def test_answers_of_another_jury(tmp_path):
    path = tmp_path/"a.csv"
    sit(path).answer(3, "real")
    kept = path.read_bytes()
    for other in ((images(seed=2), images(seed=1)), (images(seed=1), images()), (images(5), images(seed=1)[:7])):
        with pytest.raises(BadInput, match="another jury"): Jury(*other, path)
    assert path.read_bytes() == kept and Jury(images()/255, images(seed=1), path).left() == sit(path).left()  # the same images as floats
    other = Jury(images(seed=2), images(seed=1), tmp_path/"b.csv")
    other.answer(0, "real")
    path.write_bytes(kept + (tmp_path/"b.csv").read_bytes().splitlines(True)[1])
    with pytest.raises(BadInput, match=f"{sit(tmp_path/'c.csv').id}|{other.id}"): read_answers(path)


@pytest.mark.parametrize("text", [b"notes", b"a,b\n1,2\n", b"\n", b"jury,image\n", b"\x89PNG\r\n"])
def test_a_file_that_holds_no_answers_is_left_alone(tmp_path, text):
    path = tmp_path/"a.csv"
    path.write_bytes(text)
    with pytest.raises(BadInput, match="holds no answers of a jury; name another file"): sit(path)
    assert path.read_bytes() == text


@pytest.mark.parametrize("i, what", [(0, "maybe"), (12, "real"), (-1, "fake")])
def test_no_such_answer(tmp_path, i, what):
    with pytest.raises(BadInput, match="say fake or real of an image from 0 to 11"): sit(tmp_path/"a.csv").answer(i, what)
    assert not (tmp_path/"a.csv").exists()


@pytest.mark.parametrize("real, generated, said", [(images(3), images(), "better 100"), (images(), images(shape=(12, 10)), "bring both to one shape")])
def test_images_that_make_no_jury(tmp_path, real, generated, said):
    with pytest.raises(BadInput, match=said): Jury(real, generated, tmp_path/"a.csv")
    with pytest.raises(BadInput, match=f"silicon juror.*{said}"): silicon(real, generated)


def test_order_is_the_seed_s_and_survives_another():
    orders = {seed: sit("nowhere.csv", seed).order.tolist() for seed in (0, 1)}
    assert orders[0] != orders[1] and all(sorted(o) == list(range(12)) for o in orders.values()) and sit("nowhere.csv").order.tolist() == orders[0]


def test_the_view_goes_on_and_ends(tmp_path):
    one = sit(tmp_path/"a.csv")
    for i in one.left()[:9]: one.answer(i, "real")
    image, buttons, said = ask(sit(tmp_path/"a.csv"), pause=0).children
    assert said.value == "cell 10 of 12" and [b.description for b in buttons.children] == ["real", "fake"]
    for k in range(3): buttons.children[k % 2].click()
    assert all(b.disabled for b in buttons.children) and "last one" in said.value and "fooled" in said.value and image.layout.display == "none"
    buttons.children[0].click()
    assert len(read_answers(one.path)) == 12
    assert "last one" in ask(sit(tmp_path/"a.csv")).children[2].value


def test_the_view_says_that_the_disk_is_full(tmp_path, monkeypatch):
    image, buttons, said = ask(sit(tmp_path/"a.csv"), pause=.05).children
    first = image.value
    buttons.children[0].click()  # too soon to have looked
    assert said.value == "cell 1 of 12" and not (tmp_path/"a.csv").exists()
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(room.os, "fsync", full)
    time.sleep(.06)
    buttons.children[0].click()
    assert "Not kept" in said.value and "No space left" in said.value and image.value == first


def test_report_in_odd_cases(tmp_path):
    with pytest.raises(BadInput, match="no answer is kept yet"): report(tmp_path/"a.csv")
    one = sit(tmp_path/"a.csv")
    for i in range(6): one.answer(i, "real")  # real ones only
    told = report(one.path)
    assert np.isnan(told.share["fooled"]) and told.n["fooled"] == 0 and np.allclose(told.loc["fooled", ["low", "high"]].astype(float), [0, 1]) and told.share["real taken for real"] == 1
    for i in range(6, 12): one.answer(i, "real")  # a juror who trusts everybody
    told = report(one.path)
    assert told.share["fooled"] == 1 and told.share["told apart"] == 0 and told.low["told apart"] < 0 < told.high["told apart"] and told.share["right"] == .5


def test_report_against_scipy_and_the_truth():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(100):
        a, b = rng.random(50) < .8, rng.random(50) < .3
        table = pd.DataFrame(dict(source=["real"]*50 + ["generated"]*50, answer=np.array(ANSWERS)[np.r_[a, b].astype(int)]))
        told = report(table)
        for row, v in (("fooled", b), ("real taken for real", a)):
            exact = stats.binomtest(int(v.sum()), 50).proportion_ci(method="wilson")
            assert np.allclose(told.loc[row, ["n", "k", "share", "low", "high"]], [50, v.sum(), v.mean(), exact.low, exact.high])
        assert np.isclose(told.share["right"], (a.mean() + 1 - b.mean())/2)
        covered += told.low["told apart"] <= .5 <= told.high["told apart"]
    assert covered >= 88  # of 95 %, expected 95


def test_silicon_juror_answers_about_what_it_has_not_seen(monkeypatch):
    seen = []
    fit = room.fit_classifier
    def watched(net, batches, *args, **kwargs):
        seen.append(set(batches.rows.tolist()))
        return fit(net, batches, *args, **kwargs)
    monkeypatch.setattr(room, "fit_classifier", watched)
    real, generated = images(9, (16, 16)), images(8, (16, 16), 1)
    a = silicon(real, generated, n_epochs=1, batch_size=4)
    assert len(seen) == 2 and not seen[0] & seen[1] and seen[0] | seen[1] == set(range(17)) and all(len([i for i in s if i >= 9]) == 4 for s in seen)
    assert a.source.tolist() == ["real"]*9 + ["generated"]*8 and ((a.answer == "real") == (a.p_real > .5)).all() and a.p_real.between(0, 1).all()
    pd.testing.assert_frame_equal(a, silicon(real, generated/255, n_epochs=1, batch_size=4))
    assert report(a).n["right"] == 17 and not a.p_real.equals(silicon(real, generated, n_epochs=1, batch_size=4, seed=1).p_real)


def test_verdict_of_nobody_of_half_a_juror_and_of_many(tmp_path):
    one = sit(tmp_path/"a"/"anna.csv")
    table, foreign = verdict(tmp_path/"a", one)
    assert not len(table) and foreign == [] and list(table) == ["person", "n", "fooled", "low", "high", "real_taken_for_real"]
    for i in range(5): one.answer(i, "fake")  # real ones only
    table, _ = verdict(tmp_path/"a", one)
    assert len(table) == 1 and table.n[0] == 5 and np.isnan(table.fooled[0]) and table.real_taken_for_real[0] == 0
    for name, said in (("bert", "real"), ("carl", "fake")):
        other = sit(tmp_path/"a"/f"{name}.csv")
        for i in range(12): other.answer(i, said)
    sit(tmp_path/"a"/"empty.csv"), Jury(images(seed=5), images(seed=6), tmp_path/"a"/"zoe.csv").answer(0, "real")
    table, foreign = verdict(tmp_path/"a", one, n_boot=50)
    assert table.person.tolist() == ["anna", "bert", "carl", "mean"] and foreign == ["zoe"]
    assert table.loc[3, ["fooled", "low", "high"]].tolist() == [.5, .5, .5] and table.n[3] == 29  # bert 1, carl 0, on every cell
