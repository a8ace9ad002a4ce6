"""A copy of the repository with small parameters and one training, in which Snakemake and DVC run a
stand-in `star`."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from star.config.yaml_file import read_values
from tests.helpers.jobs import Job, parse_jobs

ROOT = Path(__file__).resolve().parents[2]
OWN_PROMPTS = "data/prompts/own.txt"


@dataclass(frozen=True)
class Project:
    """A Git and DVC repository in ``folder``/repo, with what its processes write elsewhere beside
    it."""

    folder: Path
    name: str = "repo"

    @property
    def root(self) -> Path:
        return self.folder / self.name

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    @property
    def hold(self) -> Path:
        """While this file exists, stages wait."""
        return self.folder / "hold"

    def environment(self) -> dict[str, str]:
        """Of every process: the stand-in first, the copy's own code, and no settings of this
        user."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("GIT_", "DVC_", "MAKE", "ARGS"))
        }
        programs = (str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"])
        person = {
            f"GIT_{role}_{key}": "test@localhost"
            for role in ("AUTHOR", "COMMITTER")
            for key in ("NAME", "EMAIL")
        }
        folders = {
            "DVC_SITE_CACHE_DIR": "dvc",
            "DVC_GLOBAL_CONFIG_DIR": "dvc-global",
            "XDG_CACHE_HOME": "cache",
        }
        return {
            **kept,
            **person,
            **{name: str(self.folder / folder) for name, folder in folders.items()},
            "GIT_CONFIG_GLOBAL": os.devnull,
            "DVC_NO_ANALYTICS": "1",
            "PATH": os.pathsep.join(programs),
            "PYTHONPATH": str(self.root),
            "STAR_JOURNAL": str(self.journal),
            "STAR_HOLD": str(self.hold),
        }

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command in the repository, its messages to one pipe."""
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A process started from a background shell has it ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *command: str, expect: int | None = 0, seconds: float = 600) -> str:
        """Run a command in the repository; its standard output. Fails with all it said if it ends
        otherwise."""
        run = subprocess.run(
            command,
            cwd=self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        said = run.stdout + run.stderr
        assert expect is None or run.returncode == expect, f"{' '.join(command)}: {said[-4000:]}"
        return run.stdout if expect == 0 else said

    def commit(self, message: str) -> None:
        """Record all files that Git does not ignore."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", f"--message={message}")

    def ran(self) -> set[str]:
        """The stages that ran since the last call; none may have run twice."""
        names = self.journal.read_text(encoding="utf-8").split() if self.journal.exists() else []
        self.journal.unlink(missing_ok=True)
        assert len(names) == len(set(names)), names
        return set(names)

    def reproduce(self) -> set[str]:
        """`dvc repro`; the stages that ran."""
        self.run("dvc", "repro", "--no-run-cache")
        return self.ran()

    def snakemake(self) -> set[str]:
        """`snakemake`, as `make run` calls it; the stages that ran."""
        self.run(*SNAKEMAKE)
        return self.ran()

    def pending(self) -> set[str]:
        """What `snakemake --dry-run` would run, as stages, or as rules where no stage belongs to
        one."""
        said = self.run(*SNAKEMAKE, "--dry-run")
        jobs = parse_jobs(said)
        assert bool(jobs) != ("Nothing to be done" in said), said[-2000:]
        return {stage_of(job) for job in jobs} - {"all"}

    def status(self) -> dict[str, set[str]]:
        """`dvc status`: stage -> its changed files and keys of params.yaml, its outputs left
        out."""
        found: dict[str, set[str]] = {}
        for stage, changes in json.loads(self.run("dvc", "status", "--json")).items():
            names = [
                name for change in changes if isinstance(change, dict) for name in _names(change)
            ]
            found[stage] = set(names)
        return found

    def set(self, key: str, value: object) -> None:
        """Set a dotted key of params.yaml."""
        path = self.root / "params.yaml"
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        *parents, last = key.split(".")
        node = values
        for part in parents:
            node = node[part]
        node[last] = value
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")

    def results(self) -> dict[str, bytes]:
        """Contents of the result files."""
        files = (
            file
            for file in (self.root / "results").rglob("*")
            if file.is_file() and file.name[0] != "."
        )
        return {file.relative_to(self.root).as_posix(): file.read_bytes() for file in files}


SNAKEMAKE = ("snakemake", "--profile", "workflow/profiles/default", "--cores", "all")


def _names(change: dict) -> Iterable[str]:
    for name, kind in change.get("changed deps", {}).items():
        yield from kind if name == "params.yaml" else [name]


def stage_of(job: Job) -> str:
    """The stage in dvc.yaml of a job."""
    wild = job.wildcards
    match job.rule:
        case "prepare_prompts":
            return f"prompts@{wild['task']}"
        case "extract_core":
            return f"core@{wild['task']}-{wild['split']}"
        case "train_policy":
            return f"train_{wild['task']}@{wild['task']}-{wild['method']}"
        case "evaluate_checkpoint" if wild["checkpoint"] != "base":
            return f"evaluate_{wild['checkpoint'].partition('-')[0]}@{wild['checkpoint']}"
        case "evaluate_checkpoint":
            return "evaluate_base"
        case "write_report":
            return "report"
    return job.rule


def prepare(folder: Path) -> Project:
    """A project whose results are those of one `snakemake`, all committed."""
    project = Project(folder)
    for name in _files():
        (project.root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, project.root / name)
    (project.root / OWN_PROMPTS).write_text("a cat\n", encoding="utf-8")
    params = yaml.safe_dump(_values(), sort_keys=False)
    (project.root / "params.yaml").write_text(params, encoding="utf-8")
    program = folder / "bin/star"
    program.parent.mkdir()
    command = f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "tests/helpers/stand_in.py"}" "$@"\n'
    program.write_text(command, encoding="utf-8")
    program.chmod(0o755)
    project.run("git", "init", "--quiet", "--initial-branch=main")
    project.commit("Code and parameters")
    project.run(*SNAKEMAKE)
    project.commit("First results")
    return project


def copied(project: Project, folder: Path) -> Project:
    """A copy to change, times of files included."""
    shutil.copytree(project.folder, folder)
    return Project(folder)


def cloned(project: Project) -> Project:
    """`git clone` of a project, beside it, with the same DVC remote."""
    other = Project(project.folder, "clone")
    project.run("git", "clone", "--quiet", str(project.root), str(other.root))
    return other


def _files() -> list[str]:
    """Files of the repository that Git knows or would add; not the results of its own
    parameters."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a Git repository: its files cannot be told from others")
    names = {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    return sorted(name for name in names if name != "dvc.lock" and not name.startswith("results/"))


def _values() -> dict:
    """tests/smoke/params.yaml with one training and every model below models/."""
    values = read_values(ROOT / "tests/smoke/params.yaml")
    values["runs"] = {"geneval": ["star"], "ocr": [], "preference": []}
    for section in (values["model"], values["rewards"]["preference"]):
        section["path"] = section["path"].removeprefix("../../")
    values["prompts"]["preference"]["train_file"] = OWN_PROMPTS
    return values
