"""The profiles: equal plans, and what SLURM is asked for, by a stand-in that takes no job (a real
one is in test_slurm.py). How many jobs the GPUs of a machine let run at a time."""

import re
import time
from pathlib import Path

import pytest

from star.system.gpus import CHOOSING
from tests.helpers.versioned import Project, prepare

# On a machine of one core, which must not limit what jobs ask for.
SLURM = ("snakemake", "--profile", "profiles/slurm", "--cores", "1", "--retries", "0")
SLURM += ("--slurm-init-seconds-before-status-checks", "1")
PROGRAMS = {
    "sbatch": '#!/bin/sh\necho "$@" > "$STAR_JOURNAL.sbatch"\nexit 1\n',
    "sacct": "#!/bin/sh\n",
    "sinfo": "#!/bin/sh\necho main\n",  # the partitions
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose trainings and what follows are out of date, with a stand-in for SLURM."""
    project = prepare(tmp_path_factory.mktemp("profiles"))
    project.ran()
    for name, text in PROGRAMS.items():
        (project.folder / "bin" / name).write_text(text, encoding="utf-8")
        (project.folder / "bin" / name).chmod(0o755)
    project.set("allocation.lam", 2.0)
    return project


def test_every_profile_plans_the_same_jobs_with_the_settings_of_the_default(
    project: Project,
) -> None:
    plans = []
    for options in (("--cores", "2"), ("--profile", "profiles/slurm")):
        said = project.run("snakemake", *options, "--dry-run", expect=None)
        assert re.search("^Using .*workflow specific profile profiles/default ", said, re.M)
        plans.append(sorted(re.findall(r"^(?:local)?rule (\w+):", said, re.M)))
    assert plans[0] == plans[1]
    assert {"train_policy", "evaluate_checkpoint", "write_report"} <= set(plans[0])


def test_slurm_is_asked_for_what_the_profile_says(project: Project) -> None:
    """Also for more GPUs than this machine has."""
    profile = project.root / "profiles/slurm/config.yaml"
    text = profile.read_text(encoding="utf-8")
    profile.write_text(text.replace("gpu: 1\n", "gpu: 2\n"), encoding="utf-8")
    project.run(*SLURM, expect=1)
    asked = Path(f"{project.journal}.sbatch").read_text(encoding="utf-8")
    options = ("-t 1440", "--mem 64000", "--cpus-per-task=8", "--signal=TERM@120", "--gpus=2")
    for option in options:
        assert f" {option} " in asked, option


def test_make_leaves_the_number_of_cores_to_the_profile(project: Project) -> None:
    """One of this machine would limit the threads of jobs on others."""
    said = project.run("make", "--dry-run", "run", "PROFILE=profiles/slurm")
    assert "snakemake --profile profiles/slurm" in said and "--cores" not in said


def test_a_profile_that_is_not_there_runs_nothing(project: Project) -> None:
    """Given by its path, as in README; Snakemake would take a wrong workflow profile for none."""
    said = project.run("snakemake", "--profile", "profiles/slrum", expect=1)
    assert "slrum" in said and project.ran() == set()


@pytest.mark.parametrize(("each", "at_once"), [(1, 4), (2, 2), (8, 1)])
def test_no_more_jobs_run_at_a_time_than_there_are_gpus_for(
    project: Project, monkeypatch: pytest.MonkeyPatch, each: int, at_once: int
) -> None:
    """On device files of four. Eight for one job are refused by `star launch`, not made fewer."""
    (project.folder / "dev").mkdir(exist_ok=True)
    for number in range(4):
        (project.folder / f"dev/nvidia{number}").touch()
    for name in CHOOSING:
        monkeypatch.delenv(name, raising=False)
    code = project.root / "star/system/gpus.py"
    text = code.read_text(encoding="utf-8")
    devices = f'DEVICES = Path("{project.folder / "dev"}")'
    code.write_text(re.sub("^DEVICES = .*", devices, text, flags=re.M), encoding="utf-8")
    tasks = ("geneval", "ocr", "preference")
    project.set("runs", {task: ["star", "flow_grpo"] for task in tasks})  # six trainings
    project.ran()
    project.hold.touch()
    size = ("--set-resources", f"train_policy:gpu={each}", "--forcerun", "train_policy")
    running = project.start("snakemake", "--cores", "16", "--until", "train_policy", *size)

    def started() -> int:
        return len(project.journal.read_text().split()) if project.journal.exists() else 0

    while started() < at_once:
        assert running.poll() is None, running.communicate()[0][-3000:]
        time.sleep(0.1)
    time.sleep(3)  # the others would begin
    assert started() == at_once
    project.hold.unlink()
    said, _ = running.communicate(timeout=100)
    assert running.returncode == 0 and f"gpu={each}, gpus_here={min(each, 4)}" in said, said[-3000:]
