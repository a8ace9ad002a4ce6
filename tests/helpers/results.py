"""Made-up results of runs and of a study, as the pipeline leaves them, for tests of the pages."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml
from PIL import Image

from star.config.params import StudyParams, StudyRun
from star.config.reading import load_params
from star.prompts.geneval import TAGS
from star.study.curves import COMPARED
from tests.helpers.pages import EVIL

ROOT = Path(__file__).parents[2]
RUNS = {"geneval": ["star", "flow_grpo"], "ocr": ["star"], "preference": ["star"]}
LEVELS = {"geneval": 0.25, "ocr": 0.5, "preference": 18.0}  # base's score of every image
GAINS = {"star": 0.5, "flow_grpo": 0.375}
RECORDED = {
    "task": "geneval",
    "method": "star",
    "seed": 0,
    "model": {"lora_rank": 16},
    "allocation": {"lam": 1.5, "blocks": [0, 6]},
}
AWM = {"algorithm": "awm", "updates_per_epoch": 1, "learning_rate": 1e-3}
METHODS = {
    "flow_grpo": {"source": "uniform"},
    "shuffled": {"source": "shuffled"},
    "star": {},
    "lost": {"lam": 1.0},
    "awm": AWM | {"source": "uniform"},
    "awm_star": AWM,
}
# Graded score at the looks of a study; a run adds 0.01 x seed to those after the first.
CURVES = {
    "flow_grpo": (0.2, 0.4, 0.5),
    "shuffled": (0.2, 0.35, 0.4),
    "star": (0.2, 0.6, 0.7),
    "lost": (0.2, 0.25, 0.3),
    "awm": (0.2, 0.5, 0.6),
    "awm_star": (0.2, 0.7, 0.8),
}
IMAGES = 128  # an epoch of params.yaml
STUDY = {
    "tasks": ["geneval", "ocr"],
    "aim": "star",
    "seeds": 3,
    "epochs": 4,
    "evaluate_every": 2,
    "learning_rate": 1.5e-3,
    "second_reader": "template",
    "methods": METHODS,
}


def write_params(folder: Path, **changes: object) -> Path:
    """params.yaml with `RUNS`, `STUDY`, few resamples and an evil title; ``a__b`` changes a.b."""
    values = json.loads(json.dumps(vars(load_params(ROOT / "params.yaml")), default=vars))
    values |= {"runs": RUNS, "study": STUDY}
    for key, value in {"report__title": EVIL, "evaluate__bootstrap": 200, **changes}.items():
        section, *rest = key.split("__")
        values[section] = values[section] | {rest[0]: value} if rest else value
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder / "params.yaml"


def level(scores: Mapping[str, float]) -> dict[str, list[float]]:
    """One score for all images: two GenEval prompts a tag, four prompts of each other task."""
    return {task: [s] * (12 if task == "geneval" else 4) for task, s in scores.items()}


def write_evaluation(folder: Path, scores: Mapping[str, Sequence[float]], color: int = 0) -> Path:
    """What `star evaluate` writes, of one image a prompt; an interval ends 0.125 from its mean."""
    (folder / "images").mkdir(parents=True)
    lines, found = [], {}
    for task, values in scores.items():
        for k, score in enumerate(values):
            detail: dict = {"score": score}
            if task == "geneval":
                detail = {"tag": TAGS[k // 2], "strict": score > 0.5, "soft": score}
            if task == "ocr":
                detail |= {"read": f"R{k}", "exact": score > 0.8}
            image = f"images/{task}-{k}.png"
            Image.new("RGB", (8, 8), (color, 10 * k, len(task))).save(folder / image)
            line = {"id": f"{task}-{k}", "task": task, "index": 0, "seed": 40 + k}
            line |= {"prompt": f"{EVIL} {task} {k}", "image": image, "detail": detail}
            lines.append(line | {"score": score / 26 if task == "preference" else score})
        found[task] = [line["detail"] for line in lines if line["task"] == task]
    keys = {"geneval": ("strict", "soft"), "ocr": ("score", "exact"), "preference": ("score",)}
    benchmarks = {
        task: {
            "reward" if (task, key) == ("ocr", "score") else key: _interval(details, key)
            for key in keys[task]
        }
        for task, details in found.items()
    }
    named = ("preference", "edges", "dark", "diversity", "feature_diversity")
    figure = {"mean": 0.375, "low": 0.25, "high": 0.5}
    quality = {task: dict.fromkeys(named, figure) for task in scores}
    if "ocr" in quality:
        quality["ocr"] |= {"second_reader": {"mean": 0.675, "low": 0.55, "high": 0.8}}
    task, _, method = folder.name.partition("-")
    file = {"checkpoint": folder.name, "task": task if method else None, "method": method or None}
    file |= {"benchmarks": benchmarks, "quality": quality, "seconds": {"sample": 2.5}}
    (folder / "scores.json").write_text(json.dumps(file | {"params_fingerprint": "0f0f"}))
    (folder / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _interval(details: Sequence[dict], key: str) -> dict[str, float]:
    """The mean over tags of the means over images; what has no tag has one."""
    tags = dict.fromkeys(detail.get("tag") for detail in details)
    groups = [[float(d[key]) for d in details if d.get("tag") == tag] for tag in tags]
    mean = sum(sum(group) / len(group) for group in groups) / len(groups)
    return {"mean": mean, "low": mean - 0.125, "high": mean + 0.125}


def write_training(folder: Path, parameters: dict | None = None) -> None:
    """Twelve epochs: a reward of 0.5, then of 1 in five; two held-out points; maps of one step."""
    (folder / "maps").mkdir(parents=True)
    rows = [
        {"epoch": e, "images": IMAGES * e, "reward_mean": 1.0 if e > 7 else 0.5, "kl": None}
        | {"ratio_mean": 1.0, "ratio_min": 0.9, "ratio_max": 1.1, "clip_fraction": 0.2}
        | {"seconds": {"rollout": 1.0, "update": 2.0}}
        for e in range(1, 13)
    ]
    rows[5]["held_out"] = 0.75
    rows = [{"epoch": 0, "images": 0, "held_out": 0.25, "seconds": {"held_out": 0.5}}, *rows]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for image in ("final.png", "step_1.png"):
        Image.new("RGB", (8, 8)).save(folder / "maps" / image)
    row = {"epoch": 10, "prompt": EVIL, "reward": 0.5}
    row |= {"steps": [1], "final": "final.png", "maps": ["step_1.png"]}
    (folder / "maps" / "maps.json").write_text(json.dumps([row]))
    if parameters is not None:
        (folder / "parameters.json").write_text(json.dumps(parameters))


def write_run(results: Path) -> Path:
    """A run of `RUNS`: each method gains on its task, by `GAINS`."""
    write_evaluation(results / "evaluate" / "base", level(LEVELS))
    for task, methods in RUNS.items():
        for method in methods:
            gained = LEVELS | {task: LEVELS[task] + GAINS[method]}
            write_evaluation(results / "evaluate" / f"{task}-{method}", level(gained))
            write_training(results / "train" / f"{task}-{method}")
    return results


def usual(run: StudyRun) -> list[float]:
    """Return a run's curve by `CURVES`; a method that has none learns as `star`."""
    start, *later = CURVES.get(run.method, CURVES["star"])
    return [start, *(score + 0.01 * run.seed for score in later)]


def write_study_runs(
    study: StudyParams, folder: Path, score: Callable[[StudyRun], list[float]] = usual
) -> Path:
    """Run files of two held-out images: the mean of what is compared is the given score."""
    folder.mkdir(exist_ok=True)
    for run in study.runs():
        points = [
            {"epoch": epoch, "images": epoch * IMAGES, "graded": [0.0, 1.0], "exact": [0.0, 1.0]}
            | {COMPARED[run.task]: [value - 0.1, value + 0.1]}
            for epoch, value in zip((0, 2, 4), score(run), strict=True)
        ]
        for end in (0, 1):
            dark = 0.3 + 0.01 * run.seed * end
            watch = {
                "preference": 20.0 + end,
                "edges": 0.1,
                "dark": dark,
                "diversity": 30 - 2 * end,
                "unnamed": 1.5 - end,
            }
            points[-end]["watch"] = watch | ({"second_reader": 0.5} if run.task == "ocr" else {})
        maps = [None] * 4 if run.method == "flow_grpo" else [0.8, 0.9, 0.9, 1.0]
        log = {"clip_fraction": [0.1, 0.2, 0.3, 0.4], "grad_norm": [0.25] * 4}
        log |= {"ratio_max": [1.01] * 4, "map_entropy": maps}
        log |= {"reward_mean": [score(run)[-1] - 0.2, score(run)[-1]] * 2}
        file = {"task": run.task, "method": run.method, "seed": run.seed, "learning_rate": run.rate}
        file |= {"curve": points, "log": log, "seconds": 90.0}
        (folder / f"{run.name}.json").write_text(json.dumps(file))
    return folder
