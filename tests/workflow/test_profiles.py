"""The profiles: equal plans, and the one for PBS through stand-ins of its commands (SLURM's has a
real scheduler)."""

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers.edits import REPORT, TRAIN, TRAINED
from tests.helpers.versioned import ROOT, Project, copied, prepare

pytestmark = pytest.mark.slow

# On a machine of one core, which must not limit what jobs ask for.
PBS = ("snakemake", "--profile", "workflow/profiles/pbs", "--cores", "1")
SLURM = ("snakemake", "--profile", "workflow/profiles/slurm", "--cores", "1", "--retries", "0")
SLURM += ("--slurm-init-seconds-before-status-checks", "1")

# Jobs run here at once, each in a folder of its own; PBS kills the next job of the rule that the
# file `killed` names.
QSUB = """#!/bin/bash
number=$(ls "$PBS_STATE" | wc -l) && job="$PBS_STATE/$number.pbs" && mkdir "$job" && echo "$@" > "$job/asked"
if grep -qs -- "-N $(cat "$PBS_STATE/../killed" 2> /dev/null) " "$job/asked"; then
  rm "$PBS_STATE/../killed"; echo 271 > "$job/status"
else
  { setsid bash "${@: -1}" > "$job/output" 2>&1; echo $? > "$job/status"; } > /dev/null 2>&1 &
fi
echo "$number.pbs"
"""
QSTAT = """#!/bin/bash
job="$PBS_STATE/${@: -1}"
test -d "$job" || { echo "qstat: Unknown Job Id ${@: -1}" >&2; exit 153; }
test -f "$job/status" || { echo "    job_state = R"; exit; }
echo "    job_state = F"
echo "    Exit_status = $(cat "$job/status")"
"""
QDEL = """#!/bin/bash
echo "$@" >> "$PBS_STATE/../deleted"
"""
# A SLURM that takes no job; a real one is in tests/workflow/test_slurm.py.
SBATCH = """#!/bin/bash
echo "$@" > "$PBS_STATE/../sbatch"
exit 1
"""
PROGRAMS = {"qsub": QSUB, "qstat": QSTAT, "qdel": QDEL, "sbatch": SBATCH}
PROGRAMS |= {"sacct": "#!/bin/sh\n", "sinfo": "#!/bin/sh\necho main\n"}  # accounts, partitions


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = prepare(tmp_path_factory.mktemp("profiles"))
    project.ran()
    return project


@pytest.fixture
def project(prepared: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose trainings and what follows are out of date, with stand-ins for the
    schedulers."""
    project = copied(prepared, tmp_path / "project")
    (project.folder / "pbs").mkdir()
    monkeypatch.setenv("PBS_STATE", str(project.folder / "pbs"))
    for name, text in PROGRAMS.items():
        (project.folder / "bin" / name).write_text(text, encoding="utf-8")
        (project.folder / "bin" / name).chmod(0o755)
    project.set("allocation.lam", 2.0)
    return project


def submitted(project: Project) -> list[str]:
    """What `qsub` was asked, job by job, without the script's name."""
    jobs = sorted((project.folder / "pbs").iterdir(), key=lambda job: int(job.stem))
    return [(job / "asked").read_text(encoding="utf-8").rpartition(" ")[0] for job in jobs]


def test_every_profile_plans_the_same_jobs(project: Project) -> None:
    profiles = sorted(path.name for path in (ROOT / "workflow/profiles").iterdir())
    plans = {
        name: re.findall(
            r"^(?:local)?rule (\w+):",
            project.run("snakemake", "--profile", f"workflow/profiles/{name}", "--dry-run"),
            re.MULTILINE,
        )
        for name in profiles
    }
    assert set(plans) == {"default", "pbs", "slurm"}
    assert all(sorted(plan) == sorted(plans["default"]) for plan in plans.values()), plans
    assert {"train_policy", "evaluate_checkpoint", "write_report"} <= set(plans["pbs"])


def test_jobs_are_submitted_with_their_resources_and_again_when_they_are_killed(
    project: Project,
) -> None:
    (project.folder / "killed").write_text("train_policy\n", encoding="utf-8")
    project.run(*PBS)
    assert project.ran() == TRAIN | TRAINED | REPORT
    trained = "-l select=1:ncpus=8:mem=64000mb:ngpus=1 -l walltime=1440:00"
    expected = [
        f"-V -j oe -o logs/pbs/ -N train_policy {trained}",
        f"-V -j oe -o logs/pbs/ -N train_policy {trained}",
        f"-V -j oe -o logs/pbs/ -N evaluate_checkpoint {trained.replace('1440', '480')}",
        "-V -j oe -o logs/pbs/ -N write_report -l select=1:ncpus=1:mem=2000mb:ngpus=0 -l walltime=20:00",
    ]
    assert submitted(project) == expected
    assert project.pending() == set() and project.status() == {}


def test_slurm_is_asked_for_what_the_profile_says(project: Project) -> None:
    project.run(*SLURM, expect=1)
    asked = (project.folder / "sbatch").read_text(encoding="utf-8")
    for option in ("-t 1440", "--mem 64000", "--cpus-per-task=8", "--signal=TERM@120"):
        assert f" {option} " in asked, option


def test_make_leaves_the_number_of_cores_to_the_profile(project: Project) -> None:
    """One of this machine would limit the threads of jobs on others."""
    said = project.run("make", "--dry-run", "run", "PROFILE=workflow/profiles/pbs")
    assert "snakemake --profile workflow/profiles/pbs" in said and "--cores" not in said


def test_an_interrupted_run_deletes_its_jobs(project: Project) -> None:
    project.hold.touch()
    with project.start(*PBS) as running:
        try:
            end = time.monotonic() + 60
            while not project.journal.exists():
                assert running.poll() is None and time.monotonic() < end
                time.sleep(0.1)
            running.send_signal(signal.SIGINT)
            said, _ = running.communicate(timeout=60)
        finally:
            project.hold.unlink()
    assert running.returncode != 0, said
    assert (project.folder / "deleted").read_text(encoding="utf-8").split() == ["0.pbs"]


@pytest.mark.parametrize(
    ("status", "answer"),
    [("0", "success"), ("1", "failed"), ("271", "failed"), (None, "running"), ("", "failed")],
)
def test_what_pbs_says_of_a_job(project: Project, status: str | None, answer: str) -> None:
    job = project.folder / "pbs/7.pbs"
    job.mkdir()
    if status is not None:
        (job / "status").write_text(status, encoding="utf-8")
    assert project.run("workflow/profiles/pbs/status.sh", "7.pbs") == f"{answer}\n"


def test_a_job_that_pbs_has_forgotten_is_no_running_one(project: Project) -> None:
    command = ["workflow/profiles/pbs/status.sh", "9.pbs"]
    run = subprocess.run(
        command, cwd=project.root, env=project.environment(), capture_output=True, text=True
    )
    assert run.stdout == "failed\n" and "job_history_enable" in run.stderr


def test_a_profile_that_is_not_there_runs_nothing(project: Project) -> None:
    """Given by its path, as in README; Snakemake would take a wrong workflow profile for none."""
    said = project.run("snakemake", "--profile", "workflow/profiles/slrum", expect=1)
    assert "slrum" in said and project.ran() == set()
