"""Snakemake and DVC describe one pipeline, and its table of dependencies is what the code does.

A key or file that only one of the two knows makes the other skip work silently. The study is
Snakemake's alone."""

import configparser
import re
from collections.abc import Callable
from pathlib import Path

import grimp
import pytest

from star.config.params import TASKS
from tests.helpers.jobs import Job, load_stages
from tests.helpers.sections import keys_read
from tests.helpers.smoke import set_values
from workflow import support
from workflow.dependencies import RULES
from workflow.make_dvc import dvc_yaml

ROOT = Path(__file__).resolve().parents[2]
STUDY = {rule for rule in RULES if not RULES[rule].in_dvc}


def test_dvc_yaml_is_what_the_table_says() -> None:
    assert (ROOT / "dvc.yaml").read_text(encoding="utf-8") == dvc_yaml(), (
        "run `python -m workflow.make_dvc`"
    )


def test_stages_and_jobs_agree(plan: Callable[..., list[Job]], folder: Path) -> None:
    """A training starts from an adapter."""
    set_values(folder / "params.yaml", {"train.init_adapter": "models/start"})
    start = folder / "models/start/adapter_model.safetensors"
    start.parent.mkdir()
    start.touch()
    jobs = {job.outputs: job for job in plan("--forceall") if job.rule in RULES}
    stages = load_stages(ROOT)
    assert {stage.outputs for stage in stages} == jobs.keys()
    assert {stage.rule for stage in stages} == RULES.keys() - STUDY
    for stage in stages:
        job = jobs[stage.outputs]
        assert stage.rule == job.rule and stage.target in job.outputs, stage.name
        keys = {key.format(**job.wildcards) for key in RULES[job.rule].sections}
        assert stage.parameters == keys, stage.name
        seen = {file for file in job.inputs if any(covers(path, file) for path in stage.inputs)}
        assert ("models/start/adapter_model.safetensors" in seen) == (job.rule == "train_policy")
        assert seen == job.inputs, f"{stage.name}: DVC does not see {job.inputs - seen}"
        read = {path for path in stage.inputs if any(covers(path, file) for file in job.inputs)}
        assert stage.inputs - read <= {support.PROMPT_FOLDER.as_posix()}, stage.name


def covers(path: str, file: str) -> bool:
    """Whether a file is the path or lies below it."""
    return f"{file}/".startswith(f"{path}/")


@pytest.fixture(scope="module")
def code() -> dict[str, set[Path]]:
    """Return the files of all that a rule's entry imports, at once or by way of others."""
    graph = grimp.build_graph("star", cache_dir=None)
    found = {}
    for name, rule in RULES.items():
        modules = {rule.entry} | graph.find_upstream_modules(rule.entry)
        modules |= {".".join(module.split(".")[:2]) for module in modules} | {"star"}
        paths = [ROOT.joinpath(*module.split(".")) for module in modules]
        found[name] = {
            path / "__init__.py" if path.is_dir() else path.with_suffix(".py") for path in paths
        }
    return found


@pytest.mark.parametrize("rule", RULES)
def test_a_rules_packages_are_those_that_its_code_imports(
    rule: str, code: dict[str, set[Path]]
) -> None:
    files = {file.relative_to(ROOT).as_posix() for file in code[rule]}
    packages = RULES[rule].packages
    missing = {file for file in files if not any(covers(path, file) for path in packages)}
    assert not missing, f"{rule} runs {missing}: add their packages to workflow/dependencies.py"
    unused = {path for path in packages if not any(covers(path, file) for file in files)}
    assert not unused, f"{rule} imports nothing of {unused}"


def test_code_that_counts_for_nothing_is_named_file_by_file() -> None:
    ignored = (ROOT / ".dvcignore").read_text(encoding="utf-8").splitlines()
    names = {name for name in ignored if name.startswith("star/")}
    assert names and all((ROOT / name).is_file() for name in names)
    assert not names & set(support.code_files("train_policy"))


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_names_every_section_that_its_code_reads(
    rule: str, code: dict[str, set[Path]]
) -> None:
    refusing = (ROOT / "star/config", ROOT / "star/preflight.py")  # they look at all, for any rule
    files = {f for f in code[rule] if not {f, f.parent} & {*refusing}}
    package = ROOT.joinpath(*RULES[rule].entry.split(".")[:-1])
    keys = RULES[rule].sections
    named = {key.format(task=task, method="").rstrip(".") for key in keys for task in TASKS}
    for key in keys_read(package, files):
        # A section of which a rule names a part may be taken, to be handed on.
        assert any(
            f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}.") for name in named
        ), f"the code of {rule} reads {key}"


@pytest.mark.parametrize("name", RULES)
def test_a_rule_has_log_benchmark_resources_and_its_own_dependencies(name: str) -> None:
    text = (ROOT / "workflow/rules" / RULES[name].file).read_text(encoding="utf-8")
    _, _, rule = text.partition(f"rule {name}:\n")
    rule = rule.partition("\nrule ")[0]
    assert re.search(rf'sections=.*support\.sections\(values, "{name}"', rule)
    assert f'code=support.code_digest("{name}")' in rule
    for directive in ("log:", "benchmark:", "threads:", "mem_mb=", "runtime="):
        assert directive in rule, directive


def test_dvc_sends_no_statistics_and_asks_for_no_newer_version() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / ".dvc/config")
    assert not any(config.getboolean("core", key) for key in ("analytics", "check_update"))
