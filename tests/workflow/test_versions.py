"""Snakemake and DVC run the same stages after the same edit, each knows what the other did, and
versions come back.

`snakemake`, `dvc`, `git` and `make` are the real ones. `star` is a stand-in
(tests/helpers/stand_in.py), since the subject is who runs which stage when, not what a stage
computes: tests/workflow/test_smoke.py runs the real stages."""

import csv
import io
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.edits import (
    COARSE,
    COARSE_BY_DVC,
    COARSE_BY_SNAKEMAKE,
    COMMENT,
    CORE,
    EVALUATIONS,
    EVERYTHING,
    GROUPS,
    MODEL,
    OTHER,
    PROMPTS,
    RECORD,
    REPORT,
    TASKS,
    TRAIN,
    TRAINED,
    Edit,
)
from tests.helpers.versioned import ROOT, SNAKEMAKE, Project, cloned, copied, prepare

# No Python to install with: an installation would point this environment at the test's copy of the
# code.
MAKE = ("make", "PYTHON=false")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = prepare(tmp_path_factory.mktemp("prepared"))
    assert project.ran() == PROMPTS | CORE | TRAIN | EVALUATIONS
    return project


@pytest.fixture
def project(prepared: Project, tmp_path: Path) -> Iterator[Project]:
    project = copied(prepared, tmp_path / "project")
    yield project
    project.hold.unlink(missing_ok=True)


def run_with(tool: str, project: Project) -> set[str]:
    """Run everything with one tool; afterwards the other has nothing to do."""
    if tool == "dvc":
        ran = project.reproduce()
        touch_models(project)
        assert project.pending() <= {RECORD}
    else:
        ran = project.snakemake()
        assert project.status() == {}
    return ran


def touch_models(project: Project) -> None:
    """As Git writes files anew with the same contents, which may run nothing."""
    for file in (project.root / "models").rglob("*"):
        os.utime(file)


def take_back(project: Project, *edits: Edit) -> None:
    """Undo the edits, not what ran since."""
    for target in {edit.target if "/" in edit.target else "params.yaml" for edit in edits}:
        project.run("git", "checkout", "--quiet", "--", target)


@pytest.mark.parametrize("name", GROUPS)
def test_an_edit_runs_exactly_what_depends_on_it(project: Project, name: str) -> None:
    group, before = GROUPS[name], project.results()
    for edit in group:
        edit.apply(project)
        assert project.pending() - {RECORD} == edit.stages, edit.target
        take_back(project, edit)
    for edit in group:
        edit.apply(project)
    status = project.status()
    for edit in group:
        assert {stage for stage, names in status.items() if edit.is_among(names)} == edit.direct, (
            edit.target
        )
    stages = frozenset[str]().union(*(edit.stages for edit in group))
    # Half of the groups are run by DVC and taken back by Snakemake, the others the other way round.
    tools = ("dvc", "snakemake") if list(GROUPS).index(name) % 2 == 0 else ("snakemake", "dvc")
    assert run_with(tools[0], project) == stages
    assert (project.results() == before) == (not stages)
    take_back(project, *group)
    assert run_with(tools[1], project) == stages
    assert project.results() == before


def test_dvc_alone_makes_everything_from_nothing(project: Project) -> None:
    before = project.results()
    for folder in ("results", ".dvc/cache", ".snakemake", ".star"):
        shutil.rmtree(project.root / folder)
    (project.root / "dvc.lock").unlink()
    assert run_with("dvc", project) == PROMPTS | CORE | TRAIN | EVALUATIONS
    assert project.results() == before and project.status() == {}


def test_where_dvc_runs_more_each_accepts_what_the_other_did(project: Project) -> None:
    before = project.results()
    for edit in COARSE:
        edit.apply(project)
    assert run_with("dvc", project) == COARSE_BY_DVC
    take_back(project, *COARSE)
    assert run_with("snakemake", project) == COARSE_BY_SNAKEMAKE
    assert project.results() == before


def test_dvc_stops_where_a_stage_wrote_what_it_had_written_before(project: Project) -> None:
    before = project.results()
    edit = Edit("star/rewards/mask2former.py", COMMENT)  # which the stand-in does not read
    edit.apply(project)
    assert project.reproduce() == MODEL
    assert project.results() == before
    assert project.pending() == REPORT | {RECORD}  # of a folder Snakemake sees the time only
    synchronise(project)
    assert project.pending() == set()
    take_back(project, edit)
    assert run_with("snakemake", project) == MODEL | REPORT
    edit.apply(project)  # as docs/versions.md has it, of an edit that changes no result
    project.run("dvc", "commit", "--force")
    synchronise(project)
    assert project.pending() == project.reproduce() == set()


def test_a_training_that_is_added_runs_alone_and_without_it_only_the_report_runs(
    project: Project,
) -> None:
    edit = Edit("runs.geneval", ["star", "flow_grpo"])
    edit.apply(project)
    assert run_with("dvc", project) == OTHER | REPORT
    take_back(project, edit)
    assert run_with("snakemake", project) == REPORT


def test_what_failed_over_older_results_runs_again(project: Project) -> None:
    program = project.folder / "bin/star"
    stand_in = program.read_text(encoding="utf-8")
    for key, value, stages in (
        ("prompts.ocr.test", 3, EVERYTHING),
        ("evaluate.batch", 8, EVALUATIONS),
        ("allocation.lam", 2.0, TRAIN | TRAINED | REPORT),
    ):
        project.set(key, value)
        program.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        project.run(*SNAKEMAKE, expect=1)
        program.write_text(stand_in, encoding="utf-8")
        assert run_with("snakemake", project) == stages, key


def test_results_stand_that_dvc_cannot_record(project: Project) -> None:
    """As in a cache whose files are another user's. No result is a link into it, which Snakemake
    could not write anew."""
    (project.folder / "dvc-global").mkdir(exist_ok=True)
    (project.folder / "dvc-global/config").write_text("[cache]\ntype = hardlink,symlink\n")
    project.set("report.images", 2)
    program = project.folder / "bin/dvc"
    program.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    program.chmod(0o755)
    assert "Only the record of DVC is missing" in project.run(*SNAKEMAKE)
    program.unlink()
    assert project.ran() == REPORT
    assert project.pending() == set() and project.status() != {}
    project.run("dvc", "commit", "--force")  # as the line says
    assert project.status() == {}
    page = project.root / "results/report/index.html"
    assert not page.is_symlink() and page.stat().st_nlink == 1


def make(project: Project, target: str, expect: int = 0) -> str:
    """A target of the Makefile in the environment of the tests; what it said."""
    if not (environment := project.root / ".venv").exists():
        environment.symlink_to(sys.prefix)
    if "pip install" in project.run(*MAKE, "--dry-run", "install"):
        pytest.skip(f"{sys.prefix} was not made by `make install` with these pins")
    return project.run(*MAKE, target, expect=expect)


def synchronise(project: Project) -> None:
    make(project, "sync")


def test_a_clone_and_an_older_revision_have_their_results_and_run_nothing(project: Project) -> None:
    synchronise(project)
    first = project.results()
    project.run("dvc", "remote", "add", "--default", "storage", str(project.folder / "remote"))
    project.commit("Where the results are kept")
    project.set("evaluate.batch", 8)
    assert project.snakemake() == EVALUATIONS
    project.commit("Smaller batches")
    project.run("dvc", "push", "--all-commits")
    clone, second = cloned(project), project.results()
    clone.run("dvc", "pull")
    check_synchronised(clone, second)
    clone.run("git", "checkout", "--quiet", "HEAD~1")
    clone.run("dvc", "pull")
    check_synchronised(clone, first)
    clone.run("git", "checkout", "--quiet", "main")
    check_synchronised(clone, second)


def check_synchronised(project: Project, results: dict[str, bytes]) -> None:
    """After `make sync` both tools have nothing to do, and the results are these."""
    synchronise(project)
    touch_models(project)
    assert project.pending() == set()
    assert project.status() == {}
    assert project.ran() == set()
    assert project.results() == results
    assert project.run("git", "status", "--porcelain") == ""


def test_sync_refuses_what_dvc_does_not_know(project: Project) -> None:
    synchronise(project)
    project.set("report.images", 2)
    make(project, "sync", expect=2)
    assert project.pending() >= REPORT


def test_snakemakes_own_report_lies_beside_the_page_with_captions(project: Project) -> None:
    make(project, "report")
    page = (project.root / "results/report/workflow.html").read_text(encoding="utf-8")
    for caption in (project.root / "workflow/report").glob("*.rst"):
        fixed = caption.read_text(encoding="utf-8").rpartition("}}")[2]  # what no wildcard fills
        assert fixed.partition(",")[0].strip(" .\n") in page, caption.name
    assert project.pending() == set() and project.status() == {}
    assert 'href="workflow.html"' in (ROOT / "star/report/page.html.j2").read_text(encoding="utf-8")


def test_experiments_run_and_are_compared(project: Project) -> None:
    stages = TRAIN | TRAINED | REPORT
    # DVC writes these by YAML 1.2: a bare 1e-05 is a number and a bare no is a text.
    here = ("--set-param", "allocation.lam=2.0", "--set-param", "train.learning_rate=1e-5")
    project.run("dvc", "exp", "run", *here, "--name", "here")
    assert project.ran() == stages
    assert project.pending() <= {RECORD}
    check_comparison(project)
    before = project.results()
    project.run(
        "dvc", "exp", "run", "--queue", "--set-param", "allocation.lam=3.0", "--name", "queued"
    )
    project.run("dvc", "exp", "run", "--temp", "--set-param", "report.title=no", "--name", "aside")
    assert project.ran() == REPORT
    project.run("dvc", "exp", "run", "--run-all")
    assert project.ran() == stages
    assert project.results() == before  # the other two ran in folders of their own
    shown = project.run("dvc", "exp", "show", "--only-changed", "--csv")
    table = {row["Experiment"]: row for row in csv.DictReader(io.StringIO(shown))}
    assert {name: table[name]["allocation.lam"] for name in NAMES} == {
        "here": "2.0",
        "queued": "3.0",
        "aside": "2.0",
    }
    scores = [f"results/evaluate/geneval-star/metrics.json:{task}" for task in TASKS]
    assert [name for name in table["here"] if "metrics.json" in name] == scores
    means = {name: [table[name][score] for score in scores] for name in NAMES}
    assert means["here"] == means["aside"] != means["queued"]  # `aside` changes the report alone
    project.run("dvc", "exp", "apply", "queued")
    changes = json.loads(project.run("dvc", "params", "diff", "--json"))["params.yaml"]
    new = {key: change["new"] for key, change in changes.items()}
    assert new == {"allocation.lam": 3.0, "train.learning_rate": 1e-5}
    assert project.reproduce() == set()


def test_the_commands_of_the_docs_work_as_they_are_written(project: Project) -> None:
    page = (ROOT / "docs/versions.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"## Commands\n.+?```shell\n(.+?)```", page, re.S)
    commands = [line for line in block.splitlines() if not line.startswith("#")]
    assert len(commands) == 10
    for command in commands:
        if command.startswith("make "):
            make(project, command.removeprefix("make "))
            continue
        project.run(
            "bash", "-ec", command.replace("/path/to/storage", str(project.folder / "storage"))
        )
        if "dvc queue start" in command:  # which works in the background
            end = time.monotonic() + 300
            while (said := project.run("dvc", "queue", "status")).count("Success") < 2:
                assert "Failed" not in said and time.monotonic() < end, said
                time.sleep(1)


NAMES = ("here", "queued", "aside")


def check_comparison(project: Project) -> None:
    """With the last commit: a row a checkpoint, a column a benchmark, and both learning curves."""
    diff = json.loads(project.run("dvc", "metrics", "diff", "--all", "--json"))
    assert set(diff) == {
        f"results/evaluate/{name}/metrics.json" for name in ("base", "geneval-star")
    }
    assert all(set(means) == set(TASKS) for means in diff.values())
    assert {mean["diff"] for mean in diff["results/evaluate/base/metrics.json"].values()} == {0.0}
    (curves,) = json.loads(project.run("dvc", "plots", "diff", "--json"))["data"]["rewards"]
    points = curves["content"]["data"]["values"]
    assert {point["rev"] for point in points} == {"workspace", "HEAD"}
    assert {(point["task"], point["method"]) for point in points} == {("geneval", "star")}
    assert len(points) == 2 * 2  # epochs, revisions


@pytest.mark.parametrize(
    ("first", "second"),
    [(("dvc", "repro"), SNAKEMAKE), (SNAKEMAKE, ("dvc", "repro"))],
    ids=["snakemake beside dvc", "dvc beside snakemake"],
)
def test_the_second_of_two_at_once_is_refused(
    project: Project, first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    owner = "dvc repro" if first[0] == "dvc" else "snakemake"
    project.set("report.images", 2)
    project.hold.touch()
    with project.start(*first) as running:
        try:
            end = time.monotonic() + 180
            while not project.journal.exists():
                assert running.poll() is None and time.monotonic() < end, "no stage started"
                time.sleep(0.1)
            refused = project.run(*second, expect=None, seconds=180)  # it does not wait
            assert re.search(rf"{owner} \(process \d+ on .+\) is at work in this folder", refused)
            assert "is at work in this folder" in make(project, "sync", expect=2)
            assert running.poll() is None
        finally:
            project.hold.unlink()
            said, _ = running.communicate(timeout=180)
    assert running.returncode == 0, said
    assert project.ran() == REPORT
    assert project.pending() <= {RECORD}
    assert project.status() == {}
