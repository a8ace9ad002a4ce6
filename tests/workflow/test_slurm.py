"""The slurm profile against a real scheduler: the smoke pipeline, jobs that are killed or out of
time, a run ended."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from star.config.yaml_file import read_values
from tests.helpers import edits, programs, slurm
from tests.helpers.versioned import prepare

ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / "workflow/profiles/slurm/config.yaml"
TRAINED = ("train_policy", "evaluate_checkpoint")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[None]:
    if reason := slurm.missing():
        pytest.skip(reason)
    pytest.importorskip(
        "snakemake_executor_plugin_slurm", reason="the extra `slurm` is not installed"
    )
    folder = tmp_path_factory.mktemp("slurm")
    for path in (folder, *folder.parents):
        if path.owner() == "root" and path != Path("/"):
            path.chmod(
                path.stat().st_mode | 0o055
            )  # munge refuses a socket that others cannot reach
    with slurm.scheduler(folder):
        yield


def write_profile(folder: Path, **train: object) -> Path:
    """The profile of the project with this machine's sizes, and resources of the training rule."""
    profile = yaml.safe_load(PROFILE.read_text(encoding="utf-8"))
    profile |= {"latency-wait": 10, "slurm-init-seconds-before-status-checks": 2, "set-threads": {}}
    for rule in TRAINED:
        profile["set-resources"][rule] |= {"mem_mb": 6000, "cpus_per_task": 2}
        profile["set-threads"][rule] = 2
    del profile["set-resources"]["train_policy"][
        "slurm_extra"
    ]  # two minutes are longer than these jobs
    profile["set-resources"]["train_policy"] |= train
    (folder / "profile").mkdir()
    (folder / "profile" / "config.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    return folder / "profile"


def write_smoke(folder: Path, **train: object) -> None:
    """tests/smoke/params.yaml with the models where they are, one training, and other values of
    `train`."""
    values = read_values(ROOT / "tests/smoke/params.yaml")
    values["runs"] = {"geneval": ["star"], "ocr": [], "preference": []}
    for section in (values["model"], values["rewards"]["preference"]):
        section["path"] = str((ROOT / "tests/smoke" / section["path"]).resolve())
    values["train"] |= train
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts Snakemake with a profile; whatever happens, it ends with the test."""
    started: list[subprocess.Popen[str]] = []
    yield lambda *arguments: started.append(_started(*arguments)) or started[-1]
    for process in started:
        process.kill()


def _started(folder: Path, profile: Path, *targets: str) -> "subprocess.Popen[str]":
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(ROOT / "Snakefile"),
        "--directory",
        str(folder),
    ]
    log = open(folder / "snakemake.log", "a", encoding="utf-8")  # noqa: SIM115
    return subprocess.Popen(
        [*command, "--profile", str(profile), *targets],
        env=environment,
        cwd=ROOT,
        stdout=log,
        stderr=log,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # background shells have it ignored
    )


def finish(process: "subprocess.Popen[str]", folder: Path) -> str:
    status = process.wait(900)
    log = (folder / "snakemake.log").read_text(encoding="utf-8")
    assert status == 0, log[-4000:]
    return log


def jobs() -> dict[int, dict[str, str]]:
    """What the scheduler knows of every job: its fields."""
    shown = subprocess.run(
        ["scontrol", "--oneliner", "show", "job"], capture_output=True, text=True, check=True
    )
    fields = [
        dict(re.findall(r"(\w+)=(\S*)", line))
        for line in shown.stdout.splitlines()
        if "JobId=" in line
    ]
    return {int(job["JobId"]): job for job in fields}


def wait_for(
    condition: Callable[[], object], process: "subprocess.Popen[str] | None", folder: Path
) -> None:
    for _ in range(1200):
        if condition():
            return
        assert process is None or process.poll() is None, (folder / "snakemake.log").read_text(
            encoding="utf-8"
        )[-4000:]
        time.sleep(0.25)
    pytest.fail((folder / "snakemake.log").read_text(encoding="utf-8")[-4000:])


def test_packages_that_do_not_come_in_time_are_a_reason_to_skip(tmp_path, monkeypatch):
    def hang(command: list[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setenv("CI", "1")
    monkeypatch.setattr(slurm, "CONFIG", tmp_path / "slurm.conf")
    monkeypatch.setattr(slurm.os, "geteuid", lambda: 0)
    monkeypatch.setattr(
        programs.shutil, "which", lambda program: program if program == "apt-get" else None
    )
    monkeypatch.setattr(programs.subprocess, "run", hang)
    assert "apt-get install" in slurm.missing() and "timed out after 600" in slurm.missing()


def test_the_whole_pipeline_with_two_processes_a_training(cluster, tmp_path, start):
    write_smoke(tmp_path)
    known = set(jobs())
    finish(start(tmp_path, write_profile(tmp_path, processes=2)), tmp_path)
    assert (tmp_path / "results/report/index.html").is_file()
    mine = [job for number, job in jobs().items() if number not in known]
    assert {job["JobState"] for job in mine} == {"COMPLETED"}
    by_rule = {rule: [job for job in mine if f"rule_{rule}_" in job["Comment"]] for rule in TRAINED}
    assert [len(found) for found in by_rule.values()] == [1, 2], [job["Comment"] for job in mine]
    trained = [job for found in by_rule.values() for job in found]
    for job in trained:
        assert re.search("gres[:/]gpu:1", job["TresPerJob"])
        assert (job["NumCPUs"], job["MinMemoryNode"]) == ("2", "6000M")
        log = Path(job["StdOut"])
        assert tmp_path / "logs/slurm" in log.parents and log.is_file()
    assert not any("TresPerJob" in job for job in mine if job not in trained)
    assert "2 processes" in (tmp_path / "logs/train_policy/geneval-star.log").read_text(
        encoding="utf-8"
    )


def test_one_training_on_two_machines(cluster, tmp_path, start):
    """`srun` starts a torchrun on each node of the job, and they meet on the first."""
    write_smoke(tmp_path)
    known = set(jobs())
    spread = {
        "gpu": 2,
        "nodes": 2,
        "tasks": 2,
        "tasks_per_gpu": 0,
        "mpi": "srun",
        "slurm_partition": "both",
    }
    finish(
        start(tmp_path, write_profile(tmp_path, **spread), "results/train/geneval-star/log.jsonl"),
        tmp_path,
    )
    (job,) = (job for number, job in jobs().items() if number not in known)
    assert (job["JobState"], job["NumNodes"]) == ("COMPLETED", "2")
    assert re.search("gres[:/]gpu:2", job["TresPerJob"])
    assert "2 processes" in (tmp_path / "logs/train_policy/geneval-star.log").read_text(
        encoding="utf-8"
    )


def test_dvc_repro_submits_each_stage(cluster, tmp_path, monkeypatch):
    project = prepare(tmp_path / "project")
    project.ran()
    known = set(jobs())
    monkeypatch.setenv("SNAKEMAKE_PROFILE", str(write_profile(tmp_path)))
    project.set("allocation.lam", 2.0)
    assert project.reproduce() == edits.TRAIN | edits.TRAINED | edits.REPORT
    mine = [job for number, job in sorted(jobs().items()) if number not in known]
    rules = ("train_policy", "evaluate_checkpoint", "write_report")
    assert [rule for job in mine for rule in rules if f"rule_{rule}" in job["Comment"]] == list(
        rules
    ) and len(mine) == 3
    assert {job["JobState"] for job in mine} == {"COMPLETED"}


def test_a_killed_job_and_one_out_of_time_go_on_and_the_run_ends_its_jobs(cluster, tmp_path, start):
    """One training in three jobs. That what is resumed equals what was left alone is proven in
    test_kills."""
    write_smoke(tmp_path, epochs=10_000, sample_every=10_000)
    known = set(jobs())

    def trainings() -> list[tuple[int, str]]:
        """Numbers and states of the training's jobs so far."""
        found = [
            (k, j["JobState"])
            for k, j in jobs().items()
            if k not in known and "rule_train_policy_" in j["Comment"]
        ]
        return sorted(found)

    def epochs() -> list[int]:
        found = list((tmp_path / ".star/state").glob("*/log.jsonl"))
        return (
            [json.loads(line)["epoch"] for line in found[0].read_text().splitlines()]
            if found
            else []
        )

    process = start(
        tmp_path, write_profile(tmp_path, runtime=1), "results/train/geneval-star/log.jsonl"
    )
    wait_for(lambda: len(epochs()) >= 3, process, tmp_path)
    subprocess.run(
        ["scancel", "--signal=KILL", "--full", str(trainings()[0][0])]
    )  # says 1 if a step is gone already
    for count in (2, 3):  # after the killed one, and after one that is out of time
        wait_for(lambda count=count: len(trainings()) >= count, process, tmp_path)
        reached, least = len(epochs()), [10_000]

        def goes_on(goal: int = reached + 2, least: list[int] = least) -> bool:
            least[0] = min(least[0], len(epochs()))
            return len(epochs()) >= goal

        wait_for(goes_on, process, tmp_path)
        assert least[0] >= reached - 1, "it started over"
    states = [state for _, state in trainings()]
    assert states[0] in ("FAILED", "CANCELLED") and states[1:] == ["TIMEOUT", "RUNNING"], states
    assert epochs() == list(range(1, len(epochs()) + 1))
    process.send_signal(signal.SIGINT)
    assert process.wait(120) != 0
    wait_for(lambda: trainings()[-1][1] == "CANCELLED", None, tmp_path)
    assert len(trainings()) == 3
