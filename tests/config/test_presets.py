"""Every preset is complete and consistent, its counts are those that it says, and presets differ
where they should."""

import re
import shutil
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
from dvc.repo import Repo

from star.config.differences import differences
from star.config.load import load_params
from star.config.params import TASKS
from star.config.yaml_file import read_values
from star.plan import make_plan
from star.plan.counts import count
from star.training.batches import check_processes

FILES = sorted(Path("presets").glob("*.yaml"))
MINIATURE = Path("params.yaml")
PUBLISHED = read_values(Path(__file__).with_name("published.yaml"))
SCALES = {"1gpu": 1, "8gpu": 8, "32gpu": 32}
SIZES = {"1gpu": (8, 8), "8gpu": (48, 24), "32gpu": (48, 24)}  # prompts an epoch, images of each
KL_BETA = {"geneval": 0.04, "ocr": 0.04, "preference": 0.01}

each_preset = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def preset(scale: str, task: str) -> Path:
    return Path(f"presets/sd35m-{scale}-{task}.yaml")


def said(file: Path) -> str:
    """The file's text, its head on one line."""
    return re.sub(r"\n# *", " ", file.read_text(encoding="utf-8"))


def test_there_is_one_for_each_scale_and_task() -> None:
    assert set(FILES) == {preset(scale, task) for scale in SCALES for task in TASKS}


@pytest.mark.parametrize("file", [MINIATURE, *FILES], ids=lambda file: file.stem)
def test_a_parameter_file_says_its_counts(file: Path) -> None:
    """Of an epoch, of a training, and how many trainings and evaluations `runs` asks for."""
    params, text = load_params(file), said(file)
    counts, trainings = count(params, 1), sum(map(len, params.runs.values()))
    epoch = f"{counts.images_per_epoch:,} images in {counts.groups} groups"
    training = f"{counts.images:,} images, {counts.updates:,} updates"
    assert f"An epoch: {epoch}, {counts.updates_per_epoch} updates. A training: {training}." in text
    assert f"All of `runs`: {trainings} trainings" in text
    assert f"; {trainings + 1} evaluations (the base model and each training)" in text


@each_preset
def test_preset_is_complete_consistent_and_says_what_it_costs(file: Path) -> None:
    params, text = load_params(file), said(file)
    _, scale, task = file.stem.split("-")
    check_processes(params.train, params.rollout, SCALES[scale])
    assert [name for name, methods in params.runs.items() if methods] == [task]
    assert f"cp presets/{file.name} params.yaml" in text
    plan = make_plan(params, [task], SCALES[scale], tflops=300)
    hours, cache = plan.tasks[task].hours, plan.tasks[task].prompt_cache
    assert hours is not None and cache is not None and plan.host is not None
    assert f"on disk, {cache / 1e9:.0f} GB for this training" in text
    if scale != "1gpu":
        own, machine = plan.host / 2**30, 8 * plan.host / 2**30
        assert f"{own:.0f} GiB a process by `star plan`, so {machine:.0f} GiB a machine" in text
        assert set(re.findall(r"mem_mb=(\d+)", text)) == {"240000"} and 8 * plan.host < 240000e6
    else:
        assert plan.host < 64000e6  # the profiles' own
    assert "for task in geneval ocr preference; do star prompts --task $task" in text
    assert [getattr(params.prompts, name).test_file.sha256 for name in TASKS] == [None] * 3
    trainings = len(params.runs[task])
    training = (hours["rollout"] + hours["update"]) * SCALES[scale]
    costs = f"{training:,.0f} GPU hours each, {trainings * training:,.0f} together"
    assert f"{trainings} trainings of {costs}; " in text
    evaluations = (trainings + 1) * hours["evaluation"]
    assert f"(the base model and each training), {evaluations:.1f} GPU hours together." in text


@each_preset
def test_preset_has_the_published_hyper_parameters(file: Path) -> None:
    _, scale, task = file.stem.split("-")
    prompts, group = SIZES[scale]
    sizes = {"train.prompts_per_epoch": prompts, "train.group_size": group}
    published, values = {**PUBLISHED, **sizes, "train.kl_beta": KL_BETA[task]}, read_values(file)
    assert {key: reduce(getitem, key.split("."), values) for key in published} == published
    named = {name for key in published for name in key.split(".")}
    claim = r"^ +(\w+):.*# (?:Flow-GRPO(?!'s)|GenEval)"
    claimed = re.findall(claim, file.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(claimed) > 25 and set(claimed) <= named, "what is said to be published is compared"


COUNTS = {"rollout.batch", "train.epochs", "train.prompts_per_epoch", "train.group_size"}
DIFFERENT = [
    (preset("8gpu", "ocr"), preset("32gpu", "ocr"), set()),
    (preset("1gpu", "ocr"), preset("8gpu", "ocr"), COUNTS),
]
for scale in SCALES:
    geneval, ocr, preference = (preset(scale, task) for task in TASKS)
    DIFFERENT.append((geneval, ocr, {"runs.geneval", "runs.ocr"}))
    DIFFERENT.append((ocr, preference, {"runs.ocr", "runs.preference", "train.kl_beta"}))


@pytest.mark.parametrize(("one", "other", "keys"), DIFFERENT)
def test_presets_differ_in_what_is_trained_and_in_counts(
    one: Path, other: Path, keys: set[str]
) -> None:
    found = {key for key, *_ in differences(read_values(one), read_values(other))}
    assert found - {"report.title"} == keys


@pytest.mark.slow
@each_preset
def test_a_copied_preset_is_a_pipeline_for_snakemake_and_dvc(file, snakemake, tmp_path) -> None:
    """Both see the same trainings, those of the preset."""
    task = file.stem.split("-")[-1]
    wanted = {f"results/train/{task}-{method}/adapter" for method in ("star", "flow_grpo")}
    shutil.copy(file, tmp_path / "params.yaml")
    run = snakemake("--dry-run", "--forceall")
    assert run.returncode == 0, run.stderr
    told = run.stdout + run.stderr
    assert set(re.findall(r"results/train/[\w-]+/adapter", told)) == wanted
    evaluated = set(re.findall(r"results/evaluate/([\w-]+)/scores.json", told))
    assert evaluated == {"base", f"{task}-star", f"{task}-flow_grpo"}
    shutil.copy("dvc.yaml", tmp_path)
    Repo.init(str(tmp_path), no_scm=True).close()
    with Repo(str(tmp_path)) as repo:
        outputs = {out.def_path for stage in repo.index.stages for out in stage.outs}
    assert {path for path in outputs if path.endswith("/adapter")} == wanted


@pytest.mark.slow
def test_after_a_run_of_the_miniature_a_preset_makes_everything_anew(snakemake, tmp_path) -> None:
    """What the miniature left has names that the preset wants too; Snakemake knows which parameters
    made it."""
    shutil.copy("params.yaml", tmp_path)
    left = outputs_of(snakemake("--dry-run").stdout)
    for name in left:
        path = tmp_path / name
        if path.name in ("adapter", "samples", "maps", "images"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}\n")
    run = snakemake("--touch", "--forceall")  # writes Snakemake's own records, as a run does
    assert run.returncode == 0, run.stderr
    shutil.copy("presets/sd35m-8gpu-ocr.yaml", tmp_path / "params.yaml")
    again = outputs_of(snakemake("--dry-run").stdout)
    assert again <= left
    assert not any("geneval-star" in name or "preference-star" in name for name in again)
    made = {"results/train/ocr-star/adapter", "results/evaluate/ocr-flow_grpo/scores.json"}
    made |= {f"results/core/{task}/{split}.jsonl" for task in TASKS for split in ("train", "test")}
    assert made | {"results/evaluate/base/scores.json"} <= again


def outputs_of(text: str) -> set[str]:
    """The outputs of all jobs of a dry run."""
    lines = re.findall(r"^    output: (.*)$", text, re.MULTILINE)
    return {name for line in lines for name in line.split(", ")}
