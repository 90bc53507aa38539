"""Measure this machine: run what bench/aims.csv asks of a device, the important first, within so many minutes.

    python bench/measure.py --device gpu --minutes 10      (make bench DEVICE=gpu MINUTES=10 says the same)

First comes what is asked of such a device alone, in the order of the table, then what is asked of any, then the scripts that no
aim speaks of. A command that ended well is not run again. One that the time stopped keeps what its script had written by then; it
is tried again after those that were not tried yet, once there is more time than it had. The results lie in bench/results/<card>/,
and beside them in commands.csv what became of each command on this machine: called again, this goes on from there. What another
machine of the same name has measured is measured anew.
"""
import argparse
import csv
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from integrated_cell.aims import commands, read_aims
from integrated_cell.results import BadInput, whole
from integrated_cell.workflow import commit

BENCH = Path(__file__).resolve().parent
NO_QUESTION = {"as_published.py", "measure.py", "record.py"}
COLUMNS = ("command", "state", "seconds", "commit", "date", "machine")


def asked_here(device, table=BENCH/"aims.csv", folder=BENCH):
    "Every command for a device, the important first; at the end the scripts that no aim speaks of"
    first = commands(read_aims(table, "costs"), device)
    known = {shlex.split(c)[1] for c in first}
    scripts = sorted(p.name for p in folder.glob("*.py") if p.name not in NO_QUESTION)
    return first + [f"python bench/{s}" for s in scripts if f"bench/{s}" not in known]


def read_done(path, machine):
    "What became of each command on this machine, by the command"
    if not path.exists(): return {}
    with open(path, newline="") as f: rows = [row for row in csv.DictReader(f) if row.get("machine") == machine]
    return {row["command"]: row | {"seconds": float(row["seconds"])} for row in rows}


def write_done(path, done):
    "commands.csv, whole or not at all"
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part, open(part, "w", newline="") as f:
        table = csv.DictWriter(f, COLUMNS)
        table.writeheader()
        table.writerows(done.values())


def in_order(asked, done):
    "What is left to run: what was not tried, what the time stopped, what failed"
    states = [None, "stopped", "failed"]
    state = {c: done[c]["state"] if c in done else None for c in asked}
    return [c for s in states for c in asked if state[c] == s]


def run_one(command, seconds, cwd, env):
    "finished, failed, or stopped after so many seconds: asked to end, and a while later made to"
    _, *rest = shlex.split(command)
    going = subprocess.Popen([sys.executable, *rest], cwd=cwd, env=env, start_new_session=True)
    try: return "failed" if going.wait(seconds) else "finished"
    except subprocess.TimeoutExpired: return "stopped"
    finally: end(going)


def end(going, patience=20):
    "End a process and those that it started"
    for sent in (signal.SIGINT, signal.SIGKILL):
        if going.poll() is None: os.killpg(going.pid, sent)
        try: return going.wait(patience)
        except subprocess.TimeoutExpired: continue


def measure(asked, folder, minutes, cwd=BENCH.parent, env=None, machine=""):
    "Run what is left, as long as there is time; how every command stands"
    path, until = folder/"commands.csv", time.monotonic() + 60*minutes
    done = read_done(path, machine)
    for command in in_order(asked, done):
        left, had = until - time.monotonic(), done.get(command, {})
        if left <= 0: break
        if had.get("state") == "stopped" and left <= had["seconds"]: continue
        print(f"== {command}", flush=True)
        start = time.monotonic()
        state = run_one(command, left, cwd, env)
        taken, day = round(time.monotonic() - start, 1), time.strftime("%Y-%m-%d", time.gmtime())
        done[command] = dict(zip(COLUMNS, (command, state, taken, commit(cwd), day, machine)))
        write_done(path, done)
    return done


def tell(asked, done):
    "A line a command, and how many are left"
    for c in asked: print(f"{done[c]['state'] if c in done else 'not yet':9} {c}")
    left = in_order(asked, done)
    print(f"{len(asked) - len(left)} of {len(asked)} are measured" + ("; call again to go on" if left else ""))


def chosen(device, card):
    "cpu or gpu, the name of its folder, what the scripts are told of both, and the machine in words"
    env = os.environ | ({"CUDA_VISIBLE_DEVICES": "-1"} if device == "cpu" else {})
    os.environ.update(env)  # before PyTorch looks
    import torch
    from record import device_name, machine
    if device == "gpu" and not torch.cuda.is_available():
        raise BadInput("DEVICE=gpu: PyTorch sees no GPU here; give DEVICE=cpu, or install a PyTorch with CUDA")
    card = card or device_name()
    return device or ("gpu" if torch.cuda.is_available() else "cpu"), card, env | {"BENCH_CARD": card}, machine()


def minutes(text):
    "A number of minutes; 0 only tells how things stand"
    if not 0 <= float(text) < float("inf"): raise ValueError
    return float(text)


def main():
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("--device", choices=["gpu", "cpu"], help="without it: the GPU where there is one")
    said.add_argument("--minutes", type=minutes, default=60., help="after which nothing runs any more; 0: how things stand")
    said.add_argument("--card", help="name of the folder of results; without it: what the device calls itself")
    said.add_argument("--aims", type=Path, default=BENCH/"aims.csv", help="another table; then only its commands are run")
    said.add_argument("--again", action="store_true", help="measure anew what was measured")
    a = said.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this ends what it runs
    try:
        device, card, env, machine = chosen(a.device, a.card)
        asked = asked_here(device, a.aims, BENCH if a.aims == BENCH/"aims.csv" else BENCH/"none")
    except BadInput as e: sys.exit(f"{e}")
    folder = BENCH/"results"/card
    if a.again: (folder/"commands.csv").unlink(missing_ok=True)
    try: done = measure(asked, folder, a.minutes, env=env, machine=machine)
    except KeyboardInterrupt: sys.exit("stopped; call again to go on")
    tell(asked, done)
    sys.exit(any(done[c]["state"] == "failed" for c in asked if c in done))


if __name__ == "__main__": main()
