"""Snakemake and DVC describe one pipeline: same files, same parameters, same code, same commands.

A key or file that only one of the two knows makes the other skip work silently. The study is
Snakemake's alone."""

import ast
import configparser
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from star.system.errors import StarError
from tests.helpers.jobs import Job, parse_jobs
from workflow import support

ROOT = Path(__file__).resolve().parents[2]
NOT_VERSIONED = {"all", "record_versions"}
COMMAND = re.compile(
    r"snakemake --cores all --nolock --max-checksum-file-size 5GB --allowed-rules (?P<rule>\w+) -- (?P<targets>.+)"
)

Snakemake = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Stage:
    """One resolved stage of dvc.yaml."""

    name: str
    rule: str
    targets: frozenset[str]
    dependencies: frozenset[str]
    outputs: frozenset[str]
    parameters: frozenset[str]


def load_stages(root: Path) -> list[Stage]:
    """The stages of a repository's dvc.yaml, templates resolved."""
    stages = []
    with Repo(str(root)) as repo:
        for stage in repo.index.stages:
            command = COMMAND.fullmatch(stage.cmd)
            assert command, f"{stage.addressing}: {stage.cmd}"
            parameters = [key for dep in stage.deps if hasattr(dep, "params") for key in dep.params]
            stages.append(
                Stage(
                    name=stage.addressing,
                    rule=command["rule"],
                    targets=frozenset(command["targets"].split()),
                    dependencies=frozenset(
                        dep.def_path for dep in stage.deps if not hasattr(dep, "params")
                    ),
                    outputs=frozenset(out.def_path for out in stage.outs),
                    parameters=frozenset(parameters),
                )
            )
    return stages


def is_code(path: str) -> bool:
    return path.startswith(("star/", "workflow/"))


def covers(dependency: str, file: str) -> bool:
    return file == dependency or file.startswith(f"{dependency}/")


def expanded(paths: frozenset[str]) -> set[str]:
    """Files of the repository's paths, those below folders included."""
    files = set()
    for path in paths:
        below = (ROOT / path).rglob("*") if (ROOT / path).is_dir() else [ROOT / path]
        files |= {
            file.relative_to(ROOT).as_posix()
            for file in below
            if file.is_file() and file.suffix != ".pyc"
        }
    return files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with the default parameters and stand-ins for the model directories."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    for name, file in (("miniature", "model_index.json"), ("miniature-preference", "config.json")):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / file).write_text("{}", encoding="utf-8")
    return tmp_path


@pytest.fixture
def jobs(folder: Path, snakemake: Snakemake) -> list[Job]:
    run = snakemake("--dry-run", "--forceall", "--printshellcmds")
    assert run.returncode == 0, run.stdout + run.stderr
    return parse_jobs(run.stdout + run.stderr)


def edit(folder: Path, **values: object) -> None:
    """Set dotted keys, given with __ for the dot, in the folder's params.yaml."""
    path = folder / "params.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key, value in values.items():
        *parents, last = key.split("__")
        node = content
        for part in parents:
            node = node[part]
        node[last] = value
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def test_stages_and_jobs_agree(jobs: list[Job]) -> None:
    stages = load_stages(ROOT)
    versioned = [job for job in jobs if job.rule not in NOT_VERSIONED]
    assert len(versioned) == len(stages)
    for stage in stages:
        (job,) = (job for job in versioned if stage.targets <= job.outputs)
        assert stage.rule == job.rule, stage.name
        assert stage.outputs == job.outputs, stage.name
        assert stage.parameters == {
            key.format(**job.wildcards) for key in support.SECTIONS[job.rule]
        }, stage.name
        files = {path for path in stage.dependencies if not is_code(path)}
        unknown = {file for file in job.inputs if not any(covers(path, file) for path in files)}
        assert not unknown, f"{stage.name}: DVC does not see {unknown}"
        unused = {path for path in files if not any(covers(path, file) for file in job.inputs)}
        assert unused <= {support.PROMPT_FOLDER.as_posix()}, (
            f"{stage.name}: the rule does not read {unused}"
        )


def test_every_rule_has_a_stage_but_those_of_the_study() -> None:
    staged = {stage.rule for stage in load_stages(ROOT)}
    assert (
        staged
        == support.ENTRY.keys() - set(support.NOT_IN_DVC)
        == support.SECTIONS.keys() - set(support.NOT_IN_DVC)
    )


def test_stages_depend_on_exactly_the_code_that_runs() -> None:
    for stage in load_stages(ROOT):
        listed = expanded(frozenset(filter(is_code, stage.dependencies)))
        rule_file = {
            file.relative_to(ROOT).as_posix()
            for file in (ROOT / "workflow/rules").glob("*.smk")
            if f"rule {stage.rule}:" in file.read_text(encoding="utf-8")
        }
        expected = set(support.code_files(stage.rule)) | rule_file
        assert listed == expected, (
            f"dvc.yaml, {stage.name}: add {sorted(expected - listed)}, remove {sorted(listed - expected)}"
        )


def test_dvc_sends_no_statistics_and_asks_for_no_newer_version() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / ".dvc/config")
    assert not config.getboolean("core", "analytics") and not config.getboolean(
        "core", "check_update"
    )


def test_a_rule_names_every_section_that_its_code_reads() -> None:
    for rule, keys in support.SECTIONS.items():
        known = [key.split("{")[0].rstrip(".") for key in keys]
        for file in support.code_files(rule):
            for read in parameters_read(ROOT / file) if file.endswith(".py") else ():
                assert any(covers_key(key, read) for key in known), (
                    f"{file} reads {read}, rule {rule} does not name it"
                )


def parameters_read(file: Path) -> Iterator[str]:
    """Dotted keys of expressions like `params.train.epochs`; those that only lead to a longer one
    are left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    sections = set(support.read_values(ROOT / "params.yaml"))
    for node in ast.walk(tree):
        chain = (
            ast.unparse(node) if isinstance(node, ast.Attribute) and id(node) not in inner else ""
        )
        found = re.fullmatch(r"(?:\w+\.)*params\.(\w+(?:\.\w+)*)", chain)
        if found and found[1].split(".")[0] in sections:
            yield found[1]


def covers_key(known: str, read: str) -> bool:
    """Whether a named key contains what is read, or is the part of a section that code indexes
    (`params.methods`)."""
    return (
        f"{read}.".startswith(f"{known}.")
        or (known.startswith(f"{read}.") and "." not in read)
        or known == read
    )


def test_every_rule_has_log_benchmark_resources_and_its_own_dependencies() -> None:
    for rule in support.SECTIONS:
        (text,) = (
            file.read_text(encoding="utf-8")
            for file in (ROOT / "workflow/rules").glob("*.smk")
            if f"rule {rule}:" in file.read_text(encoding="utf-8")
        )
        assert re.search(rf'sections=.*support\.sections\(values, "{rule}"', text), rule
        assert f'code=support.code_digest("{rule}")' in text, rule
        for directive in ("log:", "benchmark:", "threads:", "mem_mb=", "runtime="):
            assert directive in text, f"{rule}: {directive}"


def test_commands_show_progress_and_keep_it(jobs: list[Job]) -> None:
    for job in jobs:
        if job.rule != "all":
            assert job.command.endswith(f"2>&1 | tee {job.log}"), job.rule
        if job.rule not in NOT_VERSIONED:
            assert job.command.startswith("star "), job.rule


def test_a_log_that_cannot_be_written_fails_no_job(
    folder: Path, snakemake: Snakemake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snakemake would delete what the job made. The stage's own failure counts as ever."""
    edit(
        folder,
        prompts__geneval__train_file={"url": "http://127.0.0.1:1/a.jsonl", "sha256": "0" * 64},
    )
    tee = folder / "bin/tee"  # Snakemake removes old logs, so none can be a full device
    tee.parent.mkdir()
    tee.write_text(f"#!/bin/sh\nexec {shutil.which('tee')} /dev/full\n", encoding="utf-8")
    tee.chmod(0o755)
    monkeypatch.setenv("PATH", str(tee.parent), prepend=os.pathsep)
    run = snakemake(made := "results/prompts/ocr/train.jsonl")
    assert run.returncode == 0, run.stdout + run.stderr
    assert (folder / made).stat().st_size > 0
    assert "warning: the log logs/prepare_prompts/ocr.log is incomplete" in run.stderr
    run = snakemake(made := "results/prompts/geneval/train.jsonl")
    assert run.returncode != 0 and "http://127.0.0.1:1/a.jsonl" in run.stdout + run.stderr
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
    (calls,) = re.findall(
        r"^shell\.prefix\((.+?)^\)", (ROOT / "Snakefile").read_text(encoding="utf-8"), re.M | re.S
    )
    prefix = ast.literal_eval(f"({calls})").format()
    stage = STAGE.format(status=status, seconds=30 if sent else 0)
    (tmp_path / "stage.py").write_text(stage, encoding="utf-8")
    pipe, session = subprocess.PIPE, {"cwd": tmp_path, "start_new_session": True, "text": True}
    command = ["bash", "-c", f"{prefix}{sys.executable} -S stage.py 2>&1 | tee {log}"]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, **session) as job:
        assert job.stdout and job.stdout.readline() == "up\n"
        if sent:
            os.killpg(job.pid, sent)
        said, warned = job.communicate(timeout=30)
    assert (job.returncode, said) == (status, "saved\n"), warned
    assert ("warning: the log /dev/full is incomplete" in warned) == (log == "/dev/full")
    assert log == "/dev/full" or (tmp_path / log).read_text(encoding="utf-8") == "up\nsaved\n"


def test_the_rules_call_the_command_line_as_it_is(jobs: list[Job]) -> None:
    from star.cli import _parser

    for job in jobs:
        if job.rule not in NOT_VERSIONED:
            _parser().parse_args(
                job.command.split(" 2>&1")[0].split()[1:]
            )  # exits on an unknown option


STUDY = {
    **{
        "tasks": ["ocr"],
        "aim": "star",
        "seeds": 2,
        "epochs": 2,
        "evaluate_every": 1,
        "learning_rate": 1.5e-3,
    },
    **{
        "other_rates": [1e-5],
        "rate_seeds": 1,
        "second_reader": "template",
        "methods": {"flow_grpo": {}, "star": {}, "shuffled": {}},
    },
}


def study_runs(output: str) -> set[str]:
    """Names of the study's runs among the jobs of a dry run."""
    jobs = (job for job in parse_jobs(output) if job.rule == "study_run")
    return {Path(file).stem for job in jobs for file in job.outputs}


def test_the_study_is_one_job_a_run_on_one_core_and_only_on_request(
    folder: Path, snakemake: Snakemake, jobs: list[Job]
) -> None:
    from star.cli import _parser

    assert not {"study", *support.NOT_IN_DVC} & {job.rule for job in jobs}
    edit(folder, study=STUDY)
    run = snakemake("--dry-run", "--printshellcmds", "study")
    studied = [job for job in parse_jobs(run.stdout + run.stderr) if job.rule in support.NOT_IN_DVC]
    ends = ("0-0.0015", "1-0.0015", "0-1e-05")
    assert study_runs(run.stdout + run.stderr) == {
        f"ocr-{method}-{end}" for method in STUDY["methods"] for end in ends
    }
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


def pretend_to_run(folder: Path, snakemake: Snakemake, *targets: str) -> None:
    """Empty files and folders as outputs, which Snakemake takes for up to date."""
    run = snakemake("--dry-run", "--forceall", *targets)
    for output in (output for job in parse_jobs(run.stdout + run.stderr) for output in job.outputs):
        path = folder / output
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch() if path.suffix or output.startswith(".star") else path.mkdir(exist_ok=True)
    assert snakemake("--touch", "--forceall", *targets).returncode == 0


@pytest.mark.slow
def test_a_run_of_the_study_that_failed_over_older_results_runs_again(
    folder: Path, snakemake: Snakemake
) -> None:
    edit(folder, study=STUDY)
    pretend_to_run(folder, snakemake, "study")
    failed = folder / "results/study/runs/ocr-star-0-0.0015.json"
    failed.unlink()  # as Snakemake does with what a failed job had made
    run = snakemake("--dry-run", "study")
    assert study_runs(run.stdout + run.stderr) == {failed.stem}


@pytest.mark.slow
def test_a_new_method_or_seed_of_the_study_reruns_no_other_run(
    folder: Path, snakemake: Snakemake
) -> None:
    edit(folder, study=STUDY)
    pretend_to_run(folder, snakemake, "study")
    wider = {
        "seeds": 3,
        "tasks": ["ocr"],
        "methods": {**STUDY["methods"], "ones": {"source": "uniform"}},
    }
    edit(folder, study={**STUDY, **wider}, study__methods__star={"lam": 2.0})
    run = snakemake("--dry-run", "study")
    ends = ("0-0.0015", "1-0.0015", "2-0.0015", "0-1e-05")
    changed = {f"ocr-{method}-{end}" for method in ("ones", "star") for end in ends}
    assert study_runs(run.stdout + run.stderr) == changed | {
        "ocr-flow_grpo-2-0.0015",
        "ocr-shuffled-2-0.0015",
    }


def test_runs_come_from_the_parameter_file(folder: Path, snakemake: Snakemake) -> None:
    edit(folder, runs={"geneval": ["flow_grpo"], "ocr": [], "preference": ["star"]})
    shutil.copy(ROOT / "dvc.yaml", folder)
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(command, cwd=folder, check=True)
    trained = {"geneval-flow_grpo", "preference-star"}
    assert {
        s.name.split("@")[1] for s in load_stages(folder) if s.rule == "train_policy"
    } == trained
    run = snakemake("--dry-run")
    outputs = {file for job in parse_jobs(run.stdout + run.stderr) for file in job.outputs}
    assert {f"results/train/{name}/adapter" for name in trained} == {
        f for f in outputs if f.endswith("/adapter")
    }


def test_own_prompt_files_are_inputs_and_must_be_where_dvc_looks(
    folder: Path, snakemake: Snakemake
) -> None:
    edit(folder, prompts__ocr__train_file="data/prompts/signs.txt")
    (folder / "data/prompts").mkdir(parents=True)
    (folder / "data/prompts/signs.txt").write_text('a sign that says "HI"\n', encoding="utf-8")
    run = snakemake("--dry-run")
    job = next(j for j in parse_jobs(run.stdout + run.stderr) if j.wildcards == {"task": "ocr"})
    assert job.inputs == {"data/prompts/signs.txt"}
    values = support.read_values(folder / "params.yaml")
    for outside in (
        "signs.txt",
        "data/prompts/../signs.txt",
        "/etc/passwd",
        "data/prompts/fetched/signs.txt",
    ):
        values["prompts"]["ocr"]["test_file"] = outside
        with pytest.raises(StarError, match=r"prompts\.ocr\.test_file"):
            support.prompt_files(values, "ocr")


def test_a_prompt_set_by_url_is_a_parameter_and_a_dry_run_fetches_nothing(
    folder: Path, snakemake: Snakemake
) -> None:
    source = {"url": "http://127.0.0.1:1/signs.txt", "sha256": "0" * 64}  # where nobody answers
    edit(folder, prompts__ocr__test_file=source)
    run = snakemake("--dry-run")
    assert run.returncode == 0, run.stdout + run.stderr
    job = next(j for j in parse_jobs(run.stdout + run.stderr) if j.wildcards == {"task": "ocr"})
    assert not job.inputs
    values = support.read_values(folder / "params.yaml")
    before = support.sections(values, "prepare_prompts", task="ocr")
    for key, value in (("url", "http://127.0.0.1:1/others.txt"), ("sha256", "1" * 64)):
        values["prompts"]["ocr"]["test_file"] = source | {key: value}
        assert support.sections(values, "prepare_prompts", task="ocr") != before, key
    assert not list((folder / "data").rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config", "seed=3"], "--config seed: disagrees"),
        (["--config", "sede=3"], "--config sede: disagrees"),
        ([], "train.epochs: -1 is not allowed"),
    ],
)
def test_wrong_parameters_are_refused_before_any_job(
    arguments: list[str], expected: str, folder: Path, snakemake: Snakemake
) -> None:
    if not arguments:
        edit(folder, train__epochs=-1)
    run = snakemake("--dry-run", *arguments)
    assert run.returncode != 0
    assert expected in run.stdout + run.stderr
    assert "Building DAG" not in run.stdout + run.stderr


def test_a_parameter_on_the_command_line_that_agrees_is_taken(
    folder: Path, snakemake: Snakemake
) -> None:
    run = snakemake(
        "--dry-run", "--config", f"seed={support.read_values(folder / 'params.yaml')['seed']}"
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_of_a_parameter_file_that_is_no_yaml_the_line_is_named(
    folder: Path, snakemake: Snakemake
) -> None:
    lines = (folder / "params.yaml").read_text(encoding="utf-8").splitlines()
    lines[39:39] = ["broken: ]"]
    (folder / "params.yaml").write_text("\n".join(lines), encoding="utf-8")
    run = snakemake("--dry-run")
    assert run.returncode != 0
    assert re.search(
        r"params\.yaml: not a YAML file of parameters .*line 40\b", run.stdout + run.stderr
    )


EDITS = {  # an edit of params.yaml -> the rules that run again, besides record_versions
    "report__title": ("Another", {"write_report"}),
    "runs__ocr": (["star"], {"write_report"}),
    "evaluate__steps": (9, {"evaluate_checkpoint", "write_report"}),
    "train__learning_rate": (1.23e-4, {"train_policy", "evaluate_checkpoint", "write_report"}),
    "methods__star__objective": (
        "weighted",
        {"train_policy", "evaluate_checkpoint", "write_report"},
    ),
    "core__weights__count": (0.5, {"train_policy", "evaluate_checkpoint", "write_report"}),
    "prompts__geneval__train_file": (
        {"url": "http://127.0.0.1:1/train.jsonl", "sha256": "0" * 64},
        {"prepare_prompts", "extract_core", "train_policy", "evaluate_checkpoint", "write_report"},
    ),
    "prompts__ocr__train": (
        149,
        {"prepare_prompts", "extract_core", "train_policy", "evaluate_checkpoint", "write_report"},
    ),
}


@pytest.mark.slow
def test_an_edit_reruns_what_depends_on_it(folder: Path, snakemake: Snakemake) -> None:
    pretend_to_run(folder, snakemake)
    settled = snakemake("--dry-run")
    assert "Nothing to be done" in settled.stdout + settled.stderr
    original = (folder / "params.yaml").read_text(encoding="utf-8")
    for key, (value, expected) in EDITS.items():
        edit(folder, **{key: value})
        run = snakemake("--dry-run")
        rerun = {job.rule for job in parse_jobs(run.stdout + run.stderr)} - NOT_VERSIONED
        assert rerun == expected, key
        (folder / "params.yaml").write_text(original, encoding="utf-8")
