"""The Snakefile and its rules: what is refused, planned and called, and how a job ends."""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from star.cli import _parser
from tests.helpers.jobs import Job, load_stages
from tests.helpers.smoke import set_values
from workflow.dependencies import RULES

ROOT = Path(__file__).resolve().parents[2]
STUDY_RULES = {rule for rule in RULES if not RULES[rule].in_dvc}

Snakemake = Callable[..., subprocess.CompletedProcess[str]]
Plan = Callable[..., list[Job]]


def test_a_log_that_cannot_be_written_fails_no_job(
    folder: Path, snakemake: Snakemake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snakemake would delete what the job made. The stage's own failure counts as ever."""
    nobody = {"url": "http://127.0.0.1:1/a.jsonl", "sha256": "0" * 64}
    set_values(folder / "params.yaml", {"prompts.geneval.train_file": nobody})
    tee = folder / "bin/tee"  # Snakemake removes old logs, so none can be a full device
    tee.parent.mkdir()
    tee.write_text(f"#!/bin/sh\nexec {shutil.which('tee')} /dev/full\n", encoding="utf-8")
    tee.chmod(0o755)
    monkeypatch.setenv("PATH", str(tee.parent), prepend=os.pathsep)
    run = snakemake(made := "results/prompts/ocr/train.jsonl")
    assert run.returncode == 0, run.stdout + run.stderr
    assert (folder / made).stat().st_size > 0
    assert "logs/prepare_prompts/ocr.log is incomplete" in run.stderr
    run = snakemake(made := "results/prompts/geneval/train.jsonl")
    assert run.returncode != 0 and nobody["url"] in run.stdout + run.stderr
    assert not (folder / made).exists()


STAGE = """
import signal, sys, time
def end(*_):
    time.sleep(0.2)  # the others of the job have the signal, too
    print("saved")
    sys.exit({status})
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGUSR1, end)
print("up", flush=True)
time.sleep({seconds})
end()
"""


@pytest.mark.parametrize("status", [0, 75])
@pytest.mark.parametrize("log", ["log", "/dev/full"])
@pytest.mark.parametrize("sent", [None, signal.SIGTERM, signal.SIGUSR1])
def test_a_job_ends_with_the_status_of_its_stage(
    sent: signal.Signals | None, log: str, status: int, tmp_path: Path
) -> None:
    """Also where a signal goes to the shell and to `tee` as well, and where the log takes
    nothing."""
    text = (ROOT / "Snakefile").read_text(encoding="utf-8")
    (calls,) = re.findall(r"^shell\.prefix\((.+?)^\)", text, re.M | re.S)
    prefix = ast.literal_eval(f"({calls})").format()
    stage = STAGE.format(status=status, seconds=30 if sent else 0)
    (tmp_path / "stage.py").write_text(stage, encoding="utf-8")
    command = ["bash", "-c", f"{prefix}{sys.executable} -S stage.py 2>&1 | tee {log}"]
    pipe, session = subprocess.PIPE, {"cwd": tmp_path, "start_new_session": True, "text": True}
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, **session) as job:
        assert job.stdout and job.stdout.readline() == "up\n"
        if sent:
            os.killpg(job.pid, sent)
        said, warned = job.communicate(timeout=30)
    assert (job.returncode, said) == (status, "saved\n"), warned
    assert ("the log /dev/full is incomplete" in warned) == (log == "/dev/full")
    assert log == "/dev/full" or (tmp_path / log).read_text(encoding="utf-8") == "up\nsaved\n"


STUDY = {
    "tasks": ["ocr"],
    "aim": "star",
    "seeds": 2,
    "epochs": 2,
    "evaluate_every": 1,
    "learning_rate": 1.5e-3,
    "second_reader": "template",
    "methods": {"flow_grpo": {"source": "uniform"}, "star": {}, "shuffled": {"source": "shuffled"}},
}
ENDS = ("0-0.0015", "1-0.0015")


def study_runs(jobs: list[Job]) -> set[str]:
    """Return the names of the study's runs among the jobs."""
    return {Path(file).stem for job in jobs if job.rule == "study_run" for file in job.outputs}


def test_the_study_is_one_job_a_run_on_one_core(folder: Path, plan: Plan) -> None:
    set_values(folder / "params.yaml", {"study": STUDY})
    studied = [job for job in plan("study") if job.rule in STUDY_RULES]
    assert study_runs(studied) == {f"ocr-{m}-{end}" for m in STUDY["methods"] for end in ENDS}
    (report,) = (job for job in studied if job.rule == "study_report")
    assert report.inputs == {file for job in studied for file in job.outputs} - report.outputs
    for job in studied:
        command, _, log = job.command.partition(" 2>&1 | tee ")
        assert log == job.log
        options = _parser().parse_args(command[command.index("star ") :].split()[1:])
        if job.rule == "study_run":
            assert command.startswith("OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 star study-run ")
            names = options.task, options.method, options.seed, options.rate
            assert options.output.stem == "{}-{}-{}-{!r}".format(*names)
            assert {"results/core/ocr/train.jsonl", "results/core/ocr/test.jsonl"} <= job.inputs


def test_a_failed_or_changed_run_of_the_study_reruns_no_other(
    folder: Path, snakemake: Snakemake, plan: Plan
) -> None:
    path = folder / "params.yaml"
    set_values(path, {"study": STUDY})
    for output in (output for job in plan("study") for output in job.outputs):
        (folder / output).parent.mkdir(parents=True, exist_ok=True)
        (folder / output).touch()
    assert snakemake("--touch", "--forceall", "study").returncode == 0
    assert plan("study") == []
    more = {"study.seeds": 3, "study.methods.ones": {"source": "uniform"}}
    set_values(path, {**more, "study.methods.star": {"lam": 2.0}})
    expected = {f"ocr-{m}-{end}" for m in ("ones", "star") for end in (*ENDS, "2-0.0015")}
    expected |= {"ocr-flow_grpo-2-0.0015", "ocr-shuffled-2-0.0015"}
    assert study_runs(plan("study")) == expected
    set_values(path, {"study": STUDY})
    failed = folder / "results/study/runs/ocr-star-0-0.0015.json"
    failed.unlink()  # as Snakemake does with what a failed job had made
    assert study_runs(plan("study")) == {failed.stem}


def test_runs_come_from_the_parameter_file(folder: Path, plan: Plan) -> None:
    runs = {"geneval": ["flow_grpo"], "ocr": [], "preference": ["star"]}
    set_values(folder / "params.yaml", {"runs": runs})
    shutil.copy(ROOT / "dvc.yaml", folder)
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(command, cwd=folder, check=True)
    adapters = {
        f"results/train/{name}/adapter" for name in ("geneval-flow_grpo", "preference-star")
    }
    stages = {stage.target for stage in load_stages(folder) if stage.rule == "train_policy"}
    jobs = {file for job in plan() for file in job.outputs if file.endswith("/adapter")}
    assert stages == jobs == adapters


def test_own_prompt_files_are_inputs_and_fetched_ones_are_not(folder: Path, plan: Plan) -> None:
    own = "data/prompts/signs.txt"
    (folder / own).parent.mkdir(parents=True)
    (folder / own).write_text('a sign that says "HI"\n', encoding="utf-8")
    fetched = {"url": "http://127.0.0.1:1/signs.txt", "sha256": "0" * 64}  # where nobody answers
    files = {"prompts.ocr.train_file": own, "prompts.ocr.test_file": fetched}
    set_values(folder / "params.yaml", files)
    (job,) = (job for job in plan() if job.wildcards == {"task": "ocr"})
    assert job.inputs == {own}
    assert [file for file in (folder / "data").rglob("*") if file.is_file()] == [folder / own]


def test_wrong_parameters_are_refused_before_any_job(folder: Path, snakemake: Snakemake) -> None:
    """`test_support.py` has more of them."""
    run = snakemake("--dry-run", "--config", "sede=3")
    said = run.stdout + run.stderr
    assert run.returncode != 0 and "--config sede: " in said and "Building DAG" not in said


def test_snakemakes_own_lint_finds_no_more_than_that_rules_name_no_container(
    folder: Path, snakemake: Snakemake
) -> None:
    """The environment is that of `make install`, for all rules."""
    run = snakemake("--lint")
    found = set(re.findall(r"^    \* (.+):$", run.stdout + run.stderr, re.M))
    assert found == {"Specify a conda environment or container for each rule."}, run.stderr
