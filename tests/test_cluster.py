"The DAG on a cluster: what each job asks for, and what is done again after a node, or Snakemake itself, was lost"
import os
import re
import shutil
import signal
import subprocess

import pytest
from conftest import ENV, PROJECT, make_study, run

from integrated_cell.workflow import read_config, sign

ALL = ["data", "reference", "conditional", "classification"]
STUBS = {
    # a chapter that trains for two steps, a line of its checkpoint each, and goes on from there
    "chapter": """
        name=$2; out=results/toy/$name; mkdir -p $out; rm -f $out/metrics.json
        echo $name >> began
        for step in 1 2; do
            [ "$(wc -l 2> /dev/null < $out/checkpoint)" -ge $step ] 2> /dev/null || echo $name $step | tee -a steps >> $out/checkpoint
            [ -e die-$name ] && [ $step = 1 ] && rm die-$name && kill -9 0
        done
        echo '{}' > $out/metrics.json; touch $out/$(cat bin/$name.sign); echo $name >> ended""",
    # a cluster of one queue that works while one waits; a job that does not come back has lost its node
    "sbatch": """
        echo "$@" >> submitted; id=$(wc -l < submitted)
        for a; do case "$a" in --wrap=*) job=${a#--wrap=};; esac; done
        SLURM_JOB_ID=$id setsid sh -c "$job" > $id.log 2>&1; rc=$?
        case $rc in 0) state=COMPLETED;; 137) state=NODE_FAIL;; *) state=FAILED;; esac
        echo "$id|$state" >> states; echo $id""",
    "srun": """while [ "${1#-}" != "$1" ]; do shift; done; exec "$@" """,
    "sacct": """case "$*" in *JobIdRaw*) cat states;; *nodelist*) echo node7;; esac""",
    "sinfo": "echo 'main*'",
    "squeue": ":", "scancel": ":", "scontrol": ":",
}


@pytest.fixture
def lost(tmp_path):
    "The toy study with stubs for its chapters and for Slurm, and what each of them wrote down"
    make_study(tmp_path)
    shutil.copytree(PROJECT/"profiles", tmp_path/"profiles")
    for name, script in STUBS.items():
        (tmp_path/"bin").mkdir(exist_ok=True)
        (tmp_path/"bin"/name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path/"bin"/name).chmod(0o755)
    (tmp_path/"integrated_cell").mkdir()  # `python -m integrated_cell` finds it first, all else in the real one
    (tmp_path/"integrated_cell/__init__.py").write_text(f"__path__.append({str(PROJECT/'integrated_cell')!r})\n")
    (tmp_path/"integrated_cell/__main__.py").write_text("import os, sys\nos.execv('bin/chapter', ['chapter', *sys.argv[1:]])\n")
    config = read_config(tmp_path/"config/toy.yaml")
    for c in ALL: (tmp_path/"bin"/f"{c}.sign").write_text(sign(config, c))
    return tmp_path


def snakemake(root, last, *said):
    "Snakemake with the stubs first in the path, in a session of its own, so that `kill -9 0` in a chapter takes it along"
    env = ENV | {"PATH": f"{root/'bin'}{os.pathsep}{ENV['PATH']}"}
    return subprocess.run(["snakemake", "--config", "run=toy", *map(str, said), "--", f"results/toy/{last}/metrics.json"],
                          cwd=root, env=env, capture_output=True, text=True, timeout=300, start_new_session=True)


def lines(root, name): return (root/name).read_text().split("\n")[:-1]


def test_a_dry_run_asks_for_gpus_memory_and_hours_of_every_chapter(tmp_path):
    for name in ("Snakefile", "CITATION.cff"): shutil.copy(PROJECT/name, tmp_path)
    for name in ("nbs", "config", "book", "profiles"): shutil.copytree(PROJECT/name, tmp_path/name, ignore=shutil.ignore_patterns("published", ".*"))
    out, err = run(tmp_path, "snakemake", "--dry-run", "--profile", "profiles/slurm", "--config", "run=paper")
    asked = {name: dict(re.findall(r"(\w+)=(\d+)\b", said)) for name, said in re.findall(r"^rule (\w+):.*?^    resources: (.*?)$", out + err, re.M | re.S)}
    asked.pop("all")  # which asks for the others and does nothing
    assert set(asked) == {*read_config(tmp_path/"config/paper.yaml")["chapters"], "book"}
    for name, of in asked.items(): assert int(of["mem_mb"]) >= 8000 and int(of["runtime"]) >= 60 and of["nodes"] == "1", (name, of)
    assert {name: asked[name]["gpu"] for name in ("data", "prior", "reference", "conditional")} == {"data": "0", "prior": "1", "reference": "8", "conditional": "8"}


def test_a_machine_that_was_lost_repeats_nothing_that_was_done(lost):
    (lost/"die-reference").touch()
    assert snakemake(lost, "conditional", "--cores", 2).returncode == -signal.SIGKILL
    assert lines(lost, "ended") == ["data"]
    again = snakemake(lost, "conditional", "--cores", 2, "--rerun-incomplete")
    assert again.returncode and "--unlock" in again.stdout + again.stderr
    assert not snakemake(lost, "conditional", "--cores", 2, "--unlock").returncode
    assert not (done := snakemake(lost, "conditional", "--cores", 2, "--rerun-incomplete")).returncode, done.stderr
    assert lines(lost, "began") == ["data", "reference", "reference", "conditional"] and lines(lost, "ended") == ALL[:3]
    assert lines(lost, "steps") == [f"{name} {step}" for name in ALL[:3] for step in (1, 2)]  # the checkpoint was still there


def test_a_job_that_lost_its_node_goes_on_at_another(lost):
    (lost/"die-reference").touch()
    done = snakemake(lost, "reference", "--profile", "profiles/slurm", "--slurm-init-seconds-before-status-checks", 1, "--latency-wait", 5)
    assert not done.returncode, done.stderr
    assert lines(lost, "states") == ["1|COMPLETED", "2|NODE_FAIL", "3|COMPLETED"] and lines(lost, "ended") == ALL[:2]
    assert lines(lost, "steps") == [f"{name} {step}" for name in ALL[:2] for step in (1, 2)]
    first, second = lines(lost, "submitted")[1:]
    for asked in ("--mem 128000", "-t 1440", "--gpus=8", "--nodes=1", "--cpus-per-task=64"): assert asked in first, first
    for asked in ("--mem 192000", "-t 2160", "--gpus=8", "--exclude=node7"): assert asked in second, second
