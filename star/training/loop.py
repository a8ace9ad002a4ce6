"""A training from its first epoch to its last: opened, resumed, logged, saved and exported.

An epoch begins from a state that is a copy in memory. Whatever ends it early (a signal, a fault, a
full disk, Ctrl-C), that state is on disk afterwards, and the same command goes on from it. Only a
SIGKILL or a power cut costs more: the epochs since the last `TrainParams.save_every`. The last
state stays when the training is done, until the next training of the task and method: started
again, a training that is done only writes its results again."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from star.config.params import Params
from star.policy.sd3 import load_policy
from star.preflight import check_core, check_folders, find_all_models
from star.prompts.records import PromptRecord
from star.rewards.factory import build_reward
from star.system.errors import StarError, writing
from star.system.faults import Fault, save_fault
from star.system.files import flush_tree, write_text_atomic
from star.system.locks import take_lock
from star.system.memory import memory_for
from star.system.processes import Processes, start_accelerator
from star.system.progress import Progress
from star.system.signals import listening
from star.training.batches import check_other_prompts, check_processes, epoch_prompts
from star.training.checkpoint import States, read_facts, remove_done
from star.training.samples import SHEET_PROMPTS, draw_samples
from star.training.tracking import Tracker, check_tracker
from star.training.trainer import OTHER_BASE, Trainer


def train(
    params: Params,
    task: str,
    method: str,
    records: Sequence[PromptRecord],
    work: Path,
    output: Path,
    identity: dict | None = None,
) -> None:
    """Train ``method`` on ``task``, resuming from ``work``; ``output`` is filled only when the
    training is complete.

    Args:
        identity: what decides the result; see `star.training.checkpoint.States`.

    Raises:
        StarError: an unknown method, records of another task, a folder that cannot be written, an
            unusable model or prompt (all of these before a model is opened), a training that has
            these folders already, a reward that fails, a loss that is not finite.
        Interrupted: the process was asked to stop, and the state is saved.
    """
    allocation = params.method(method)
    wrong = next((record for record in records if record.task != task), None)
    if wrong is not None:
        raise StarError(
            f"record {wrong.id} belongs to task {wrong.task}, not {task}; give the task's own file"
        )
    check_folders(params, work, output)
    check_tracker(params.train.tracker)
    check_other_prompts(records, params, allocation)
    accelerator = start_accelerator(params.rewards.timeout)
    processes = Processes.of(accelerator)
    check_processes(params, processes.count)
    ahead = records_ahead(records, params)
    check_core(params, find_all_models(params, [task]), allocation, ahead, accelerator.print)
    with ExitStack() as stack:
        if processes.main:
            for folder in (work, output):
                stack.callback(os.close, take_lock(folder / ".lock", f"star train {task} {method}"))
            remove_done(work)
        interrupted = stack.enter_context(listening())
        reward = build_reward(task, params.rewards)
        stack.callback(reward.close)
        policy = load_policy(params.model, accelerator.device)
        computing = (
            f"precision {policy.model.precision}, attention kernel {policy.attention_kernel}"
        )
        accelerator.print(f"{task} {method}: {processes}, {computing}", flush=True)
        trainer = Trainer(params, allocation, records, reward, policy, processes)
        trainer.interrupted = interrupted
        tracker = None
        if processes.main and params.train.tracker != "none":
            tracker = Tracker(
                params.train.tracker, f"{task}-{method}", work, dataclasses.asdict(params)
            )
        states = States(work, params.train.keep_states, identity or {})
        check_base(states, trainer.base)
        policy.prepare_prompts(
            processes.shard(list(dict.fromkeys(record.prompt for record in ahead)), 1)
        )
        processes.barrier()
        look = partial(_draw, trainer, work, tracker)
        run_epochs(trainer, states, f"{task} {method}", params.train.sample_every, look, tracker)
        if processes.main:
            with writing(output):
                trainer.export(work, output)
                recorded = json.dumps(states.identity, indent=1, sort_keys=True)
                write_text_atomic(output / "parameters.json", recorded + "\n")
                (output / ".lock").unlink()
                flush_tree(output)
            states.finish()
        if tracker is not None:
            tracker.finish()
        accelerator.end_training()


def records_ahead(records: Sequence[PromptRecord], params: Params) -> list[PromptRecord]:
    """The records that a training will draw, each once: those of its epochs and those of its sample
    sheets."""
    ahead = [
        record
        for epoch in range(params.train.epochs)
        for record in epoch_prompts(records, params, epoch)
    ]
    return list({record.id: record for record in [*ahead, *records[:SHEET_PROMPTS]]}.values())


def check_base(states: States, base: str) -> None:
    """Refuse a base model that is not the one of a training's states, before its prompts are
    encoded."""
    files = states.files()
    try:
        known = read_facts(files[-1]).get("base", base) if files else base
    except StarError:  # a damaged one, which `States.newest` reports; what it takes instead is checked by `restore`
        return
    if known != base:
        raise StarError(f"{states.folder}: {OTHER_BASE}")


def run_epochs(
    trainer: Trainer,
    states: States,
    title: str,
    look_every: int,
    look: Callable[[], None],
    tracker: Tracker | None = None,
) -> None:
    """Train to the last epoch, from the newest of ``states``; ``log.jsonl`` beside them gets a line
    an epoch.

    Of several processes the main one writes, looks and logs; all read the state.

    Args:
        look: called before the first epoch, every ``look_every`` epochs and after the last one.
        tracker: gets each new line.

    Raises:
        StarError: states or log that cannot be read, and whatever `Trainer.train_epoch` raises.
    """
    settings, lines, main = (
        trainer.params.train,
        states.folder / "log.jsonl",
        trainer.processes.main,
    )
    found = states.newest()
    if found is not None:
        try:
            trainer.restore(*found)
        except StarError as error:
            raise StarError(f"{states.folder}: {error}") from error
    if main:
        _cut_log(lines, trainer.epoch)
        if tracker is not None:
            tracker.begin(trainer.epoch)
        if trainer.epoch == 0:
            look()
    bar = Progress(
        total=settings.epochs,
        initial=trainer.epoch,
        desc=title,
        unit="epoch",
        mininterval=1,
        disable=not main,
    )
    with bar:
        while trainer.epoch < settings.epochs:
            before = trainer.state()
            try:
                line = trainer.train_epoch()
                if not main:
                    continue
                _append(lines, line)
                if tracker is not None:
                    tracker.log(line)
                shown = {
                    "reward": f"{line['reward_mean']:.3f}",
                    "images_per_s": f"{line['images_per_s']:.0f}",
                }
                bar.set_postfix(shown, refresh=False)
                bar.update()
                last = trainer.epoch == settings.epochs
                if last or trainer.epoch % look_every == 0:
                    look()
                if last or trainer.epoch % settings.save_every == 0:
                    states.save(trainer.epoch, *trainer.state())
            except BaseException as error:
                if main:
                    states.save(before[1]["epoch"], *before)
                if isinstance(error, Fault):
                    folder = (
                        states.folder
                        / "faults"
                        / f"epoch-{trainer.epoch + 1:06d}-rank-{trainer.processes.rank}"
                    )
                    raise StarError(f"{error} (rollouts in {save_fault(folder, error)})") from error
                raise


def _cut_log(log: Path, epochs: int) -> None:
    """Leave the lines of the first ``epochs`` epochs: a run that was killed may have logged more
    than it saved.

    Raises:
        StarError: fewer lines, or others.
    """
    lines = log.read_text(encoding="utf-8").splitlines()[:epochs] if log.exists() else []
    try:
        found = [json.loads(line)["epoch"] for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise StarError(
            f"{log}: not a training log ({error}); delete {log.parent} to start over"
        ) from error
    if found != list(range(1, epochs + 1)):
        raise StarError(
            f"{log}: has epochs {found[:1]} to {found[-1:]} in {len(found)} lines, not 1 to {epochs} as the state "
            f"beside it; delete {log.parent} to start over"
        )
    write_text_atomic(log, "".join(line + "\n" for line in lines))


def _append(log: Path, line: dict) -> None:
    """Flushed to the disk, so that no state is newer than its log."""
    with writing(log), open(log, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _draw(trainer: Trainer, folder: Path, tracker: Tracker | None) -> None:
    records = trainer.records[:SHEET_PROMPTS]
    core = trainer.core_keys(records, clause_wise=False) if trainer.uses_maps else None
    with memory_for("sample grid"), writing(folder):
        drawn = draw_samples(
            trainer.policy,
            trainer.reward,
            records,
            core,
            trainer.params,
            trainer.allocation,
            trainer.epoch,
            folder,
        )
    if tracker is not None:
        tracker.show(drawn, trainer.epoch)
