"""The slurm profile against a real scheduler: the smoke pipeline, jobs that are killed or out of
time, a run ended."""

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.helpers import edits, programs, slurm
from tests.helpers.runs import epochs_so_far, said_so_far, start_snakemake
from tests.helpers.smoke import smoke_values, write_values
from tests.helpers.versioned import prepare

ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / "profiles/slurm/config.yaml"
TRAINED = ("train_policy", "evaluate_checkpoint")
LOG = "results/train/geneval-star/log.jsonl"

pytestmark = pytest.mark.slow

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if reason := slurm.missing():
        pytest.skip(reason)
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="no extra `slurm`")
    folder = tmp_path_factory.mktemp("slurm")
    for path in (folder, *folder.parents):
        if path.owner() == "root" and path != Path("/"):
            # munge refuses a socket that others cannot reach
            path.chmod(path.stat().st_mode | 0o055)
    with slurm.scheduler(folder):
        yield


# Python runs it first: the jobs' GPUs are SLURM's word alone, and no torch can use them.
NO_CHECK = "import star.system.gpus as gpus; gpus.check_gpus = lambda asked: None"


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start Snakemake with a profile; whatever happens, it ends with the test."""
    started: list[subprocess.Popen[str]] = []
    (tmp_path / "python").mkdir()
    (tmp_path / "python/sitecustomize.py").write_text(NO_CHECK)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'python'}:{ROOT}")

    def start(profile: Path, *targets: str) -> "subprocess.Popen[str]":
        started.append(start_snakemake(tmp_path, "--profile", str(profile), *targets))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def known(cluster: None) -> set[int]:
    """The jobs that the scheduler knew before the test."""
    return set(jobs())


def write_profile(folder: Path, **train: object) -> Path:
    """Write the project's profile with this machine's sizes, and resources of the training rule."""
    profile = yaml.safe_load(PROFILE.read_text(encoding="utf-8"))
    profile |= {"latency-wait": 10, "slurm-init-seconds-before-status-checks": 2}
    profile["set-threads"] = dict.fromkeys(TRAINED, 2)
    resources = profile["set-resources"]
    for rule in TRAINED:
        resources[rule] |= {"mem_mb": 6000, "cpus_per_task": 2}
    del resources["train_policy"]["slurm_extra"]  # two minutes are longer than these jobs
    resources["train_policy"] |= train
    (folder / "profile").mkdir()
    (folder / "profile/config.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    return folder / "profile"


def write_smoke(folder: Path, **train: object) -> None:
    """Write the parameters of the smoke run with one training, and other values of `train`."""
    values = smoke_values()
    values["runs"] = {"geneval": ["star"], "ocr": [], "preference": []}
    values["train"] |= train
    write_values(folder / "params.yaml", values)


def finish(process: "subprocess.Popen[str]", folder: Path) -> None:
    assert process.wait(900) == 0, said_so_far(folder)


def jobs() -> dict[int, dict[str, str]]:
    """Return the fields of every job that the scheduler knows."""
    command = ["scontrol", "--oneliner", "show", "job"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in shown.stdout.splitlines() if "JobId=" in line]
    fields = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]
    return {int(job["JobId"]): job for job in fields}


def wait_for(
    happened: Callable[[], object], process: "subprocess.Popen[str] | None", folder: Path
) -> None:
    """Wait five minutes at most, and no longer than the process runs."""
    for _ in range(1200):
        if happened():
            return
        assert process is None or process.poll() is None, said_so_far(folder)
        time.sleep(0.25)
    pytest.fail(said_so_far(folder))


def test_packages_that_do_not_come_in_time_are_a_reason_to_skip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(command: list[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setenv("CI", "1")
    monkeypatch.setattr(slurm, "CONFIG", tmp_path / "slurm.conf")
    monkeypatch.setattr(slurm.os, "geteuid", lambda: 0)
    only_apt = {"apt-get": "/usr/bin/apt-get"}
    monkeypatch.setattr(programs.shutil, "which", only_apt.get)
    monkeypatch.setattr(programs.subprocess, "run", hang)
    assert "timed out after 600" in str(slurm.missing())


def test_the_whole_pipeline_with_two_processes_a_training(
    known: set[int], tmp_path: Path, start: Start
) -> None:
    write_smoke(tmp_path)
    finish(start(write_profile(tmp_path, processes=2)), tmp_path)
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
    assert "2 processes" in (tmp_path / "logs/train_policy/geneval-star.log").read_text()


def test_one_training_on_two_machines(known: set[int], tmp_path: Path, start: Start) -> None:
    """`srun` starts a torchrun on each node of the job, and they meet on the first."""
    write_smoke(tmp_path)
    spread = {"gpu": 2, "nodes": 2, "tasks": 2, "tasks_per_gpu": 0, "mpi": "srun"}
    finish(start(write_profile(tmp_path, **spread, slurm_partition="both"), LOG), tmp_path)
    (job,) = (job for number, job in jobs().items() if number not in known)
    assert (job["JobState"], job["NumNodes"]) == ("COMPLETED", "2")
    assert re.search("gres[:/]gpu:2", job["TresPerJob"])
    assert "2 processes" in (tmp_path / "logs/train_policy/geneval-star.log").read_text()


def test_dvc_repro_submits_each_stage(
    known: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = prepare(tmp_path / "project")
    project.ran()
    monkeypatch.setenv("SNAKEMAKE_PROFILE", str(write_profile(tmp_path)))
    project.set("allocation.lam", 2.0)
    assert project.reproduce() == edits.TRAIN | edits.TRAINED | edits.REPORT
    mine = [job for number, job in sorted(jobs().items()) if number not in known]
    submitted = [re.search(r"rule_([a-z]+_[a-z]+)", job["Comment"]) for job in mine]
    assert [rule and rule[1] for rule in submitted] == [*TRAINED, "write_report"]
    assert {job["JobState"] for job in mine} == {"COMPLETED"}


def test_a_killed_job_and_one_out_of_time_go_on_and_the_run_ends_its_jobs(
    known: set[int], tmp_path: Path, start: Start
) -> None:
    """One training in three jobs. That what is resumed equals what was left alone is proven in
    test_kills."""
    write_smoke(tmp_path, epochs=10_000, sample_every=10_000, evaluate_every=0)

    def trainings() -> list[tuple[int, str]]:
        """Return numbers and states of the training's jobs so far."""
        mine = ((number, job) for number, job in sorted(jobs().items()) if number not in known)
        return [(n, job["JobState"]) for n, job in mine if "rule_train_policy_" in job["Comment"]]

    process = start(write_profile(tmp_path, runtime=1), LOG)
    wait_for(lambda: len(epochs_so_far(tmp_path)) >= 3, process, tmp_path)
    # says 1 if a step is gone already
    subprocess.run(["scancel", "--signal=KILL", "--full", str(trainings()[0][0])])
    for count in (2, 3):  # after the killed one, and after one that is out of time
        wait_for(lambda count=count: len(trainings()) >= count, process, tmp_path)
        reached, seen = len(epochs_so_far(tmp_path)), []

        def goes_on(goal: int = reached + 2, seen: list[int] = seen) -> bool:
            seen.append(len(epochs_so_far(tmp_path)))
            return seen[-1] >= goal

        wait_for(goes_on, process, tmp_path)
        assert min(seen) >= reached - 1, "it started over"
    states = [state for _, state in trainings()]
    assert states[0] in ("FAILED", "CANCELLED") and states[1:] == ["TIMEOUT", "RUNNING"], states
    epochs = epochs_so_far(tmp_path)
    assert epochs == list(range(1, len(epochs) + 1))
    process.send_signal(signal.SIGINT)
    assert process.wait(120) != 0
    wait_for(lambda: trainings()[-1][1] == "CANCELLED", None, tmp_path)
    assert len(trainings()) == 3
