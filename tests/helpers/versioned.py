"""A copy of the repository with small parameters and one training, in which Snakemake and DVC run
`star` or a stand-in."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from star.config.yaml_file import read_values
from tests.helpers.jobs import load_stages, parse_jobs
from tests.helpers.smoke import set_values, write_values

ROOT = Path(__file__).resolve().parents[2]
OWN_PROMPTS, START = "data/prompts/own.txt", "models/start/adapter_model.safetensors"


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
        """Return what every process gets: the stand-in first, the copy's own code, and no settings
        of this user."""
        others = ("GIT_", "DVC_", "MAKE", "ARGS")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        for role in ("AUTHOR", "COMMITTER"):
            kept |= {f"GIT_{role}_NAME": "test", f"GIT_{role}_EMAIL": "test@localhost"}
        programs = (str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"])
        return kept | {
            "DVC_SITE_CACHE_DIR": str(self.folder / "dvc"),
            "DVC_GLOBAL_CONFIG_DIR": str(self.folder / "dvc-global"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
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
        """Return the stages that ran since the last call; none may have run twice."""
        targets = self.journal.read_text(encoding="utf-8").split() if self.journal.exists() else []
        self.journal.unlink(missing_ok=True)
        assert len(targets) == len(set(targets)), targets
        names = self._names()
        return {names[target] for target in targets}

    def _names(self) -> dict[str, str]:
        return {stage.target: stage.name for stage in load_stages(self.root)}

    def reproduce(self) -> set[str]:
        """`dvc repro`; return the stages that ran."""
        self.run("dvc", "repro", "--no-run-cache")
        return self.ran()

    def snakemake(self) -> set[str]:
        """`snakemake`, as `make run` calls it; return the stages that ran."""
        self.run(*SNAKEMAKE)
        return self.ran()

    def pending(self) -> set[str]:
        """Return what `snakemake --dry-run` would run, as stages, or as rules that have none."""
        said = self.run(*SNAKEMAKE, "--dry-run")
        jobs = parse_jobs(said)
        assert bool(jobs) != ("Nothing to be done" in said), said[-2000:]
        names = self._names()
        return {
            next((names[file] for file in job.outputs if file in names), job.rule) for job in jobs
        } - {"all"}

    def status(self) -> dict[str, set[str]]:
        """Return `dvc status`: stage -> its changed files and keys of params.yaml, but outputs."""
        found: dict[str, set[str]] = {}
        for stage, changes in json.loads(self.run("dvc", "status", "--json")).items():
            changed = [c.get("changed deps", {}) for c in changes if isinstance(c, dict)]
            names = [
                name
                for files in changed
                for file, how in files.items()
                for name in (how if file == "params.yaml" else [file])
            ]
            found[stage] = set(names)
        return found

    def set(self, key: str, value: object) -> None:
        """Set a dotted key of params.yaml."""
        set_values(self.root / "params.yaml", {key: value})

    def results(self) -> dict[str, bytes]:
        """Return the contents of the result files."""
        files = (file for file in (self.root / "results").rglob("*") if file.is_file())
        return {
            str(file.relative_to(self.root)): file.read_bytes()
            for file in files
            if file.name[0] != "."
        }


SNAKEMAKE = ("snakemake", "--cores", "all")


def prepare(folder: Path, stand_in: bool = True) -> Project:
    """A project whose results are those of one `snakemake`, all committed.

    ``stand_in``: whether `star` is a stand-in or the real one.
    """
    project = Project(folder)
    for name in _files():
        (project.root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, project.root / name)
    own = "".join(f"a cat and {i} dogs\n" for i in range(12))
    (project.root / OWN_PROMPTS).write_text(own, encoding="utf-8")
    write_values(project.root / "params.yaml", _values())
    if stand_in:
        project.set("train.init_adapter", Path(START).parent.as_posix())
        (project.root / START).parent.mkdir()
        (project.root / START).touch()
        program = folder / "bin/star"
        program.parent.mkdir()
        helper = ROOT / "tests/helpers/stand_in.py"
        command = f'#!/bin/sh\nexec "{sys.executable}" "{helper}" "$@"\n'
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
    """Return tests/smoke/params.yaml with one training and every model below models/."""
    values = read_values(ROOT / "tests/smoke/params.yaml")
    values["runs"] = {"geneval": ["star"], "ocr": [], "preference": []}
    for section in (values["model"], values["rewards"]["preference"]):
        section["path"] = section["path"].removeprefix("../../")
    values["prompts"]["preference"]["train_file"] = OWN_PROMPTS
    return values
