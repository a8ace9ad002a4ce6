"""Evaluation of one checkpoint on every benchmark: the same prompts and seeds for all checkpoints.

Images are deterministic (ODE) samples with the EMA adapter that the training exported. Scores
come with 95 % bootstrap intervals over prompts; differences to the base model are paired by image
in the report."""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from star.config.params import TASKS, Params, fingerprint
from star.evaluation.image_metrics import feature_diversity, pixel_diversity
from star.evaluation.scoring import (
    Numbered,
    Sample,
    image_lines,
    image_name,
    score_batches,
    write_scores,
)
from star.method.seeds import seed_of
from star.policy.adapter import check_adapter
from star.policy.rollout import sample_images
from star.policy.sd3 import SD3Policy, load_policy
from star.preflight import check_folders, find_all_models
from star.prompts.records import PromptRecord, read_benchmarks
from star.rewards.base import Reward
from star.rewards.factory import build_reward
from star.rewards.guarded import in_time
from star.rewards.preference import PreferenceReward
from star.system.errors import StarError, writing
from star.system.files import flush_tree, remove, write_text_atomic
from star.system.images import read_image
from star.system.locks import take_lock
from star.system.memory import memory_for
from star.system.processes import ALONE, Processes, start_accelerator
from star.system.progress import Progress


def evaluate(
    params: Params, checkpoint: str, adapter: Path | None, prompts: Path, work: Path, output: Path
) -> None:
    """Evaluate ``checkpoint`` (``base`` or ``task-method``) and write scores.json, images.jsonl,
    images/ and metrics.json.

    The last holds the means alone: what `dvc metrics` shows, a row a checkpoint. Images are drawn
    to ``work`` first: a repeated call draws only the batches that are missing there. Of several
    processes each draws and scores its share of the batches; they share ``work`` and ``output``.

    Args:
        adapter: folder of LoRA safetensors, None for the base model.
        prompts: folder that holds ``<task>/test.jsonl`` for every task.
        work: folder of the state; it must belong to this checkpoint, these prompts and settings
            alone.
        output: folder; scores.json is written last.

    Raises:
        StarError: unreadable prompts, a folder that cannot be written, an unusable model or adapter
            (all of these before an image is drawn), an evaluation that has these folders already,
            or a reward that fails.
    """
    records = read_benchmarks(prompts)
    check_folders(params, work, output)
    if adapter is not None:
        check_adapter(adapter)
    find_all_models(params, TASKS)
    accelerator = start_accelerator(params.rewards.timeout)
    processes = Processes.of(accelerator)
    with ExitStack() as stack:
        if processes.main:
            for folder in (work, output):
                stack.callback(os.close, take_lock(folder / ".lock", f"star evaluate {checkpoint}"))
        policy = load_policy(params.model, accelerator.device, adapter)
        accelerator.print(
            f"{checkpoint}: {processes}, precision {policy.model.precision}", flush=True
        )
        policy.compile()
        wanted = [record.prompt for tested in records.values() for record in tested]
        policy.prepare_prompts(processes.shard(list(dict.fromkeys(wanted)), 1))
        processes.barrier()
        judge = PreferenceReward(
            params.rewards.preference
        )  # the text encoders may have left the device by now
        seconds = {"sampling": 0.0, "scoring": 0.0}
        for task, tested in records.items():
            lines = _run_benchmark(policy, params, task, tested, judge, work, processes, seconds)
            text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
            write_text_atomic(work / f"{task}-{processes.rank}.jsonl", text)
        processes.barrier()
        if processes.main:
            merged = {
                task: _merge(params, work, task, r, judge, processes.count)
                for task, r in records.items()
            }
            with writing(output):
                _write(params, checkpoint, adapter, merged, work, output, seconds)
                (output / ".lock").unlink()
                flush_tree(output)
            remove(work)
        processes.barrier()


def _merge(
    params: Params,
    work: Path,
    task: str,
    records: Sequence[PromptRecord],
    judge: PreferenceReward,
    count: int,
) -> list[dict]:
    """The lines of all processes in the order of prompts and images, with the diversities."""
    parts = [
        (work / f"{task}-{rank}.jsonl").read_text(encoding="utf-8").splitlines()
        for rank in range(count)
    ]
    lines = sorted(
        (json.loads(line) for part in parts for line in part), key=lambda line: line["number"]
    )
    first = [line for line in lines if line["index"] == 0][:DIVERSITY_PROMPTS]
    wanted = [(record, 0, 0) for record in records[:DIVERSITY_PROMPTS]]
    side = params.model.resolution
    images, others = (_read_images(work / name, wanted, side) for name in ("images", "others"))
    assert images is not None and others is not None  # this evaluation drew them
    those = f"{records[0].id} and {len(images) - 1} more: features of reward {judge.name}"
    with memory_for("scoring"):
        features = in_time(
            lambda: feature_diversity(judge, images, others), those, params.rewards.timeout
        )
    figures = zip(pixel_diversity(images, others), features, strict=True)
    for line, (diversity, of_features) in zip(first, figures, strict=True):
        line["quality"] |= {
            "diversity": round(float(diversity), 6),
            "feature_diversity": round(float(of_features), 6),
        }
    return lines


def _write(
    params: Params,
    checkpoint: str,
    adapter: Path | None,
    lines: Mapping[str, list[dict]],
    work: Path,
    output: Path,
    seconds: dict[str, float],
) -> None:
    """What is left of an evaluation: images, lines, means and scores, the last one last."""
    shutil.copytree(work / "images", output / "images", dirs_exist_ok=True)
    task, _, method = checkpoint.partition("-")
    facts = {
        "checkpoint": checkpoint,
        "task": task if method else None,
        "method": method or None,
        "adapter": str(adapter) if adapter else None,
        "params_fingerprint": fingerprint(
            params.model, params.rewards, params.evaluate, params.seed
        ),
        "seconds": seconds,
    }
    write_scores(output, facts, lines, params)


DIVERSITY_PROMPTS = 32  # of each benchmark


def draw_and_score(
    policy: SD3Policy,
    params: Params,
    records: Sequence[PromptRecord],
    reward: Reward,
    images_per_prompt: int,
    seconds: dict[str, float],
    folder: Path | None = None,
    processes: Processes = ALONE,
) -> list[Sample]:
    """This process's images of all prompts by ODE steps, from noise that depends on the prompt's
    id alone, and their scores.

    Args:
        seconds: what drawing and scoring take is added to ``sampling`` and ``scoring``.
        folder: of the images as PNG; batches that it has are read and not drawn. A batch is drawn
            whole or not at all, because an image's last bits may depend on its neighbours'.
    """
    settings = params.evaluate
    plan = [
        (r, i, seed_of(params.seed, "evaluate", r.id, i))
        for r in records
        for i in range(images_per_prompt)
    ]
    numbered = list(enumerate(plan))
    batches = [
        numbered[start : start + settings.batch] for start in range(0, len(plan), settings.batch)
    ]
    own = processes.shard(batches, 1)
    shown = Progress(
        own, desc=f"evaluate {reward.name}", unit="batch", leave=False, disable=not processes.main
    )

    def drawn() -> Iterator[tuple[Sequence[Numbered], np.ndarray]]:
        for batch in shown:
            clock = time.perf_counter()
            with memory_for("evaluation"):
                images = _draw(policy, [entry for _, entry in batch], settings.steps, folder)
            seconds["sampling"] += time.perf_counter() - clock
            yield batch, images

    return score_batches(drawn(), reward, params.rewards.timeout, seconds)


# What is drawn: the prompt, the image's index among those of the prompt, the seed of its noise.
Wanted = tuple[PromptRecord, int, int]


def _draw(
    policy: SD3Policy, wanted: Sequence[Wanted], steps: int, folder: Path | None
) -> np.ndarray:
    """The images of a batch, from the folder if it has them all."""
    images = _read_images(folder, wanted, policy.model.resolution)
    if images is None:
        images = sample_images(
            policy, [r.prompt for r, *_ in wanted], [s for *_, s in wanted], steps
        )
        _save_images(folder, wanted, images)
    return images


def _read_images(folder: Path | None, wanted: Sequence[Wanted], side: int) -> np.ndarray | None:
    """The images of a batch, if the folder has them all, whole."""
    paths = [folder / image_name(record, index) for record, index, _ in wanted] if folder else []
    if not paths or not all(path.exists() for path in paths):
        return None
    try:
        return np.stack([read_image(path, side) for path in paths])
    except StarError as error:
        tqdm.write(f"note: {error}; its batch is drawn again")
        return None


def _save_images(folder: Path | None, wanted: Sequence[Wanted], images: np.ndarray) -> None:
    """Each under a temporary name first: an image that has its name is whole."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for (record, index, _), image in zip(wanted, images, strict=True):
        path = folder / image_name(record, index)
        temporary = path.with_suffix(".tmp")
        with writing(path):
            Image.fromarray(image).save(temporary, format="png")
            os.replace(temporary, path)


def _run_benchmark(
    policy: SD3Policy,
    params: Params,
    task: str,
    records: Sequence[PromptRecord],
    judge: PreferenceReward,
    work: Path,
    processes: Processes,
    seconds: dict[str, float],
) -> list[dict]:
    """Draw and score this process's images of one benchmark; returns its lines of images.jsonl,
    numbered."""
    reward = build_reward(task, params.rewards)
    count = params.evaluate.images_per_prompt[task]
    try:
        samples = draw_and_score(
            policy, params, records, reward, count, seconds, work / "images", processes
        )
    finally:
        reward.close()
    clock = time.perf_counter()
    others = [(r, 0, seed_of(params.seed, "diversity", r.id)) for r in records[:DIVERSITY_PROMPTS]]
    batches = [
        others[start : start + params.evaluate.batch]
        for start in range(0, len(others), params.evaluate.batch)
    ]
    for batch in processes.shard(batches, 1):
        with memory_for("evaluation"):
            _draw(policy, batch, params.evaluate.steps, work / "others")
    seconds["sampling"] += time.perf_counter() - clock
    return image_lines(samples, task, params, judge, seconds)
