"""Every preset is consistent, says its own counts, and differs from the others where it should."""

import re
import shutil
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest

from star.config.differences import differences
from star.config.reading import load_params
from star.config.yaml_file import read_values
from star.plan import costliest, hours
from star.plan.counts import count
from star.plan.memory import drawn_prompts
from star.plan.operations import count_operations
from star.training.batches import check_processes
from tests.helpers.plans import costs, estimate

ALL = sorted(Path("presets").glob("sd35m-*.yaml"))
FILES = [file for file in ALL if file.stem.rpartition("-")[2] in ("geneval", "ocr", "preference")]
NOISED = [file for file in ALL if file not in FILES]  # of awm and nft
MINIATURE = [Path("params.yaml"), Path("presets/miniature-full.yaml")]
SCALES = {"1gpu": 1, "8gpu": 8, "32gpu": 32}
TASKS = ("geneval", "ocr", "preference")
# The published recipe and benchmarks, by key, whatever the scale and task.
PUBLISHED = read_values(Path("tests/data/presets.yaml"))
SIZES = {"1gpu": (8, 8), "8gpu": (48, 24), "32gpu": (48, 24)}  # prompts an epoch, images of each
KL_BETA = {"geneval": 0.04, "ocr": 0.04, "preference": 0.01}


def test_there_is_one_for_each_scale_and_task_or_algorithm():
    expected = {f"sd35m-{scale}-{task}" for scale in SCALES for task in TASKS}
    noised = {f"sd35m-{scale}-{name}" for scale in ("1gpu", "8gpu") for name in ("awm", "nft")}
    assert {file.stem for file in ALL} == expected | noised


def said(file):
    """Return the file's text, its head on one line."""
    return re.sub(r"\n# *", " ", file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", [*MINIATURE, *ALL], ids=lambda file: file.stem)
def test_a_parameter_file_says_its_counts(file):
    """Of an epoch, of a training, and how many trainings and evaluations `runs` asks for."""
    params, text = load_params(file), said(file)
    counts, trainings = count(params, 1), sum(map(len, params.runs.values()))
    for figures in (
        f"{counts.images_per_epoch:,} images in {counts.groups} groups, "
        f"{counts.updates_per_epoch} update{'s' if counts.updates_per_epoch > 1 else ''}",
        f"{counts.images:,} images, {counts.updates:,} updates",
        f"{trainings} trainings",
        f"{trainings + 1} evaluations",  # of the base model and of each training
    ):
        assert figures in text


@pytest.mark.parametrize("file", ALL, ids=lambda file: file.stem)
def test_preset_is_consistent_and_says_what_it_costs(file):
    params, text = load_params(file), said(file)
    _, scale, task = file.stem.split("-")
    task = task if file in FILES else "geneval"
    check_processes(params.train, params.rollout, SCALES[scale])
    assert [name for name, methods in params.runs.items() if methods] == [task]
    assert f"cp presets/{file.name} params.yaml" in text
    memory = estimate(params)
    operations = count_operations(costliest(params, task), costs(params.model))
    taken, host = hours(operations, 1, tflops=300), memory.host()  # hours of one GPU
    cache = drawn_prompts(params, task) * memory.prompt
    trainings, training = len(params.runs[task]), taken["rollout"] + taken["update"]
    evaluations = (trainings + 1) * taken["evaluation"]
    figures = [
        f"{cache / 1e9:.0f} GB for this training",
        f"{trainings} trainings of {training:,.0f} GPU hours each, {trainings * training:,.0f} ",
        f" {evaluations:.1f} GPU hours together",
    ]
    most = 64000e6  # the profiles' own
    if scale != "1gpu":
        own, machine, most = host / 2**30, 8 * host / 2**30, 240000e6 / 8
        figures.append(f"{own:.0f} GiB a process by `star plan`, so {machine:.0f} GiB a machine")
        assert set(re.findall(r"mem_mb=(\d+)", text)) == {"240000"}
    assert host < most
    assert [said for said in figures if said not in text] == []
    assert all(getattr(params.prompts, name).test_file.sha256 for name in TASKS), "pinned"


def value_at(values, key):
    return reduce(getitem, key.split("."), values)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_preset_has_the_published_hyper_parameters(file):
    _, scale, task = file.stem.split("-")
    prompts, group = SIZES[scale]
    sizes = {
        "train.prompts_per_epoch": prompts,
        "train.group_size": group,
        "train.kl_beta": KL_BETA[task],
    }
    published, values = PUBLISHED | sizes, read_values(file)
    assert {key: value_at(values, key) for key in published} == published
    named = {name for key in published for name in key.split(".")}
    claimed = re.findall(
        r"^ +(\w+):.*# (?:Flow-GRPO(?!'s)|GenEval)", file.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(claimed) >= 25 and set(claimed) <= named, "what is said to be published is compared"


@pytest.mark.parametrize("file", NOISED, ids=lambda file: file.stem)
def test_preset_has_the_hyper_parameters_of_its_algorithm(file):
    """Of its own paper, where that says one, or of the common recipe."""
    _, scale, algorithm = file.stem.split("-")
    own = read_values(Path("tests/data/presets_noised.yaml"))[algorithm]
    prompts, group = SIZES[scale]
    own |= {"train.prompts_per_epoch": prompts, "train.group_size": group}
    of_ratios = ("methods.", "train.clip_range", "train.kl", "train.zero_advantage")
    of_noise = ("rollout.sampler", "rollout.noise_level", "rollout.last_step")
    common = {
        key: value for key, value in PUBLISHED.items() if not key.startswith(of_ratios + of_noise)
    }
    published, values = common | own, read_values(file)
    assert {key: value_at(values, key) for key in published} == published
    named = {name for key in published for name in key.split(".")}
    text = file.read_text(encoding="utf-8")
    claimed = re.findall(
        r"^ +(\w+):.*# (?:AWM|RAM|NFT|Flow-GRPO(?!'s)|GenEval)", text, re.MULTILINE
    )
    assert len(claimed) >= 15 and set(claimed) - {"nft_ocr"} <= named


@pytest.mark.parametrize("file", NOISED, ids=lambda file: file.stem)
def test_preset_of_an_algorithm_serves_all_tasks_and_32_gpus(file):
    """With the methods that stand beside each task; NFT's have other settings for OCR."""
    params, values = load_params(file), read_values(file)
    lists = re.findall(
        r"^  (\w+): (?:\[\] # )?\[(star\w*), (\w+)\]$", file.read_text(), re.MULTILINE
    )
    assert [task for task, *_ in lists[:3]] == list(TASKS)
    most = 32 if "8gpu" in file.stem else 1
    for _, star, plain in lists[:3]:
        for name in (star, plain):
            method = params.with_method(name)
            check_processes(method.train, method.rollout, most)
        assert values["methods"][star] == values["methods"][plain] | {
            "source": "attention",
            "objective": "local",
        }
    if "nft" in file.stem:
        ocr, others = params.with_method("nft_ocr"), params.with_method("nft")
        found = [
            [p.train.updates_per_epoch, p.forward.nft_beta]
            + [p.forward.old_rate, p.forward.old_wait, p.forward.old_most]
            for p in (others, ocr)
        ]
        assert found == [[1, 1.0, 0.001, 0, 0.5], [2, 0.1, 0.0075, 75, 0.999]]


def differing(one, other):
    return {key for key, *_ in differences(one, other)}


def test_presets_differ_in_what_is_trained_in_counts_and_in_the_penalty():
    values = {file.stem: read_values(file) for file in FILES}
    for scale in SCALES:
        geneval, ocr, preference = (values[f"sd35m-{scale}-{task}"] for task in TASKS)
        assert differing(geneval, ocr) == {"runs.geneval", "runs.ocr", "report.title"}
        others = {"runs.ocr", "runs.preference", "train.kl_beta", "report.title"}
        assert differing(ocr, preference) == others
    one, eight, many = (values[f"sd35m-{scale}-ocr"] for scale in SCALES)
    assert differing(eight, many) == set()
    counts = {"epochs", "prompts_per_epoch", "group_size", "ema_every"}
    assert differing(one, eight) == {"rollout.batch", *(f"train.{name}" for name in counts)}


def test_after_a_run_of_the_miniature_a_preset_makes_everything_anew(snakemake, tmp_path):
    """What the miniature left has names that the preset wants too; Snakemake knows which parameters
    made it."""
    shutil.copy("presets/miniature-full.yaml", tmp_path / "params.yaml")
    left = {name for line in outputs_of(snakemake("--dry-run").stdout) for name in line.split(", ")}
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
    run = snakemake("--dry-run")
    again = {name for line in outputs_of(run.stdout) for name in line.split(", ")}
    assert again <= left
    assert not any("geneval-star" in name or "preference-star" in name for name in again)
    for name in ("train/ocr-star/adapter", "evaluate/ocr-flow_grpo/scores.json"):
        assert f"results/{name}" in again
    cores = {f"results/core/{task}/{part}.jsonl" for task in TASKS for part in ("train", "test")}
    assert cores | {"results/evaluate/base/scores.json"} <= again


def outputs_of(text: str) -> list[str]:
    """The outputs of each job of a dry run."""
    return re.findall(r"^    output: (.*)$", text, re.MULTILINE)
