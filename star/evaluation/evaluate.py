"""Evaluates one checkpoint on every benchmark: the same prompts and noise for all checkpoints.

Images are deterministic (ODE) samples with the EMA adapter that the training exported. Scores come
with 95 % bootstrap intervals over prompts; the report pairs differences to the base by image.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star.config.params import TASKS, Params, fingerprint
from star.evaluation.drawing import ImageDrawer
from star.evaluation.held_out_reader import report_texts
from star.evaluation.judging import DIVERSITY_PROMPTS, Judge
from star.evaluation.summary import image_lines, write_scores
from star.method.precision import computing, resolve_precision
from star.policy.adapter import adapter_file
from star.policy.sd3 import load_policy
from star.preflight import check_folders, find_all_models
from star.prompts.records import PromptRecord, read_benchmarks
from star.rewards.factory import build_reward
from star.system.digests import code_digest, folder_digest
from star.system.errors import writing
from star.system.files import flush_tree, remove, write_text_atomic
from star.system.locks import take_lock
from star.system.processes import Processes, start_accelerator
from star.system.stopwatch import Stopwatch


def evaluate(
    params: Params,
    checkpoint: str,
    adapter: Path | None,
    prompts: Path,
    work: Path,
    output: Path,
) -> None:
    """Evaluate a checkpoint; write images/, images.jsonl, metrics.json and, last, scores.json.

    Images are drawn to ``work`` first: a repeated call draws only the batches that are missing.
    Each process draws and scores its shard; all share ``work`` and ``output``.

    Args:
        checkpoint: ``base`` or ``task-method``.
        adapter: folder of LoRA safetensors, None for the base model.
        prompts: folder that holds ``<task>/test.jsonl`` for every task.
        work: folder of this checkpoint, these prompts and settings alone; see `work_folder`.

    Raises:
        StarError: unreadable prompts, a folder that cannot be written, an unusable model or adapter
            (all of these before an image is drawn), a reward that fails, or another evaluation is
            using these folders.
    """
    records = read_benchmarks(prompts)
    check_folders(params.model, work, output)
    if adapter is not None:
        adapter_file(adapter)  # refused before a model is opened
    accelerator = start_accelerator(params.rewards.timeout)
    processes = Processes.of(accelerator, params.rewards.timeout)
    precision = resolve_precision(params.model.precision, accelerator.device)
    accelerator.print(f"{checkpoint}: {processes}, precision {precision}", flush=True)
    find_all_models(params.model, params.rewards, TASKS)
    report_texts(records["ocr"], params.evaluate.second_reader, accelerator.print)
    with ExitStack() as stack:
        if processes.main:
            for folder in (work, output):
                stack.enter_context(take_lock(folder / ".lock", f"star evaluate {checkpoint}"))
        policy = load_policy(params.model, accelerator.device, adapter)
        policy.compile()
        wanted = dict.fromkeys(record.prompt for tested in records.values() for record in tested)
        policy.prepare_prompts(processes.shard(list(wanted), 1))
        processes.barrier()
        # Opened last: the text encoders may have left the device by now.
        judge = Judge(params.rewards, params.evaluate.second_reader, params.evaluate.batch)
        drawer, others = (
            ImageDrawer(
                policy, params.evaluate.steps, params.evaluate.batch, params.seed, folder, processes
            )
            for folder in (work / "images", work / "others")
        )
        shared = _Shared(params, drawer, others, judge, work)
        watch = Stopwatch("sampling", "scoring")
        for task, tested in records.items():
            shared.run(task, tested, watch)
        processes.barrier()
        if processes.main:
            merged = {task: shared.merged(task, tested) for task, tested in records.items()}
            facts = _facts(params, checkpoint, adapter) | {"seconds": watch.seconds}
            with writing(output):
                remove(output / "images")  # of an earlier evaluation
                shutil.copytree(work / "images", output / "images")
                write_scores(output, facts, merged, params.evaluate.bootstrap, params.seed)
                (output / ".lock").unlink()
                flush_tree(output)
            remove(work)
        processes.barrier()


def work_folder(
    params: Params, checkpoint: str, adapter: Path | None, prompts: Path, state: Path
) -> Path:
    """Return the folder below ``state`` for the images of exactly this evaluation."""
    files = sorted(prompts.glob("*/test.jsonl"))
    if adapter is not None:
        files += sorted(adapter.glob("*"))
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    digests += [code_digest(), folder_digest(Path(params.model.path))]
    computed = computing(params.model.precision)
    key = fingerprint(params.seed, params.model, params.evaluate, digests, computed)
    return state / f"{checkpoint}-{key}"


@dataclass(frozen=True)
class _Shared:
    """What draws and judges an evaluation; all its processes share the folder ``work``."""

    params: Params
    drawer: ImageDrawer
    others: ImageDrawer  # of second images, for the diversities
    judge: Judge
    work: Path

    def run(self, task: str, records: Sequence[PromptRecord], watch: Stopwatch) -> None:
        """Draw and score this process's shard of a benchmark; write its lines of images.jsonl."""
        others, rewards = self.others, self.params.rewards
        reward = build_reward(task, rewards)
        try:
            planned = self.drawer.plan(records, self.params.evaluate.images_per_prompt[task])
            samples = self.drawer.score(planned, reward, rewards.timeout, watch)
        finally:
            reward.close()
        with watch("sampling"):
            for batch in others.shard(others.plan_others(records[:DIVERSITY_PROMPTS])):
                others.draw(batch)
        lines = image_lines(samples, task, self.judge, watch)
        text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
        write_text_atomic(self._lines(task, self.drawer.processes.rank), text)

    def merged(self, task: str, records: Sequence[PromptRecord]) -> list[dict]:
        """Return the lines of all processes in the order of the images, with the diversities."""
        ranks = range(self.drawer.processes.count)
        parts = [self._lines(task, rank).read_text(encoding="utf-8") for rank in ranks]
        lines = sorted(
            map(json.loads, "".join(parts).splitlines()), key=lambda line: line["number"]
        )
        planned = self.drawer.plan(records[:DIVERSITY_PROMPTS], 1)
        images, again = self.drawer.read(planned), self.others.read(planned)
        assert images is not None and again is not None  # this evaluation drew them
        figures = self.judge.diversities(images, again, records[0].id)
        first = [line for line in lines if line["index"] == 0][:DIVERSITY_PROMPTS]
        for i, line in enumerate(first):
            found = {name: round(float(values[i]), 6) for name, values in figures.items()}
            line["quality"] |= found
        return lines

    def _lines(self, task: str, rank: int) -> Path:
        return self.work / f"{task}-{rank}.jsonl"


def _facts(params: Params, checkpoint: str, adapter: Path | None) -> dict[str, Any]:
    """Return what scores.json says of the evaluation, seconds aside."""
    task, _, method = checkpoint.partition("-")
    sections = params.model, params.rewards, params.evaluate, params.seed
    return {
        "checkpoint": checkpoint,
        "task": task if method else None,
        "method": method or None,
        "adapter": str(adapter) if adapter else None,
        "params_fingerprint": fingerprint(*sections),
    }
