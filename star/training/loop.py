"""A training from its first epoch to its last: opened, resumed, logged, saved and exported.

Each epoch's first state is copied in memory. Whatever ends the epoch early (a signal, a fault, a
full disk, Ctrl-C), that state is written, and the same command goes on from it. Only a SIGKILL or a
power cut costs more: the epochs since the last `TrainParams.save_every`. The last state of a
finished training stays until the next training of its task and method. Started again, a finished
training only writes its results again.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from star.config.params import AllocationParams, Params
from star.method.precision import resolve_precision
from star.method.seeds import seed_of
from star.policy.adapter import adapter_file
from star.policy.sd3 import load_policy
from star.preflight import check_core, check_folders, find_all_models
from star.prompts.records import PromptRecord
from star.rewards.factory import build_reward
from star.rewards.ocr import recogniser, report_unreadable
from star.system.errors import StarError, writing
from star.system.faults import Fault, save_fault
from star.system.files import flush_tree, write_text_atomic
from star.system.locks import take_lock
from star.system.memory import memory_for
from star.system.processes import Processes, start_accelerator
from star.system.progress import Progress
from star.system.signals import listening
from star.system.stopwatch import Stopwatch
from star.training.batches import EpochPlan, check_processes
from star.training.checkpoint import States, read_facts, remove_done
from star.training.held_out import HeldOut, choose
from star.training.samples import SHEET_PROMPTS, draw_samples
from star.training.tracking import Tracker, check_tracker
from star.training.trainer import OTHER_BASE, LogLine, Trainer


@dataclass(frozen=True)
class Training:
    """An open training: who trains, where its states lie, and the processes that take part."""

    trainer: Trainer
    states: States
    accelerator: Accelerator


@contextmanager
def open_training(
    params: Params,
    task: str,
    allocation: AllocationParams,
    records: Sequence[PromptRecord],
    *,
    command: str,
    title: str,
    work: Path,
    output: Path,
    locked: Sequence[Path],
    identity: dict,
    more_prompts: Sequence[str] = (),
    judges: Sequence[str] = (),
) -> Iterator[Training]:
    """Check everything, then open a training of ``task``; it is closed and unlocked on leaving.

    Args:
        command: the stage, for the message of a lock: `star train`.
        title: of the training.
        work: folder of its states.
        output: folder of its results, which must be writable.
        locked: folders that no other process may use meanwhile.
        identity: what decides the result; see `star.training.checkpoint.States`.
        more_prompts: to be encoded in addition to those of the epochs.
        judges: more tasks whose reward models are needed.

    Raises:
        StarError: a folder that cannot be written, an unusable model or prompt (all of these before
            a model is opened), or another training is using these folders.
    """
    plan = EpochPlan(records, params.seed, params.train, params.rollout)
    check_folders(params.model, work, output)
    if allocation.source == "other_rollout":
        plan.check_other_prompts()
    accelerator = start_accelerator(params.rewards.timeout)
    processes = Processes.of(accelerator, params.rewards.timeout)
    precision = resolve_precision(params.model.precision, accelerator.device)
    accelerator.print(f"{title}: {processes}, precision {precision}", flush=True)
    check_processes(params.train, params.rollout, processes.count)
    drawn = [*plan.all_prompts(), *records[:SHEET_PROMPTS]]
    ahead = list({record.id: record for record in drawn}.values())
    if params.train.init_adapter is not None:
        adapter_file(Path(params.train.init_adapter))  # refused before a model is opened
    pipeline = find_all_models(params.model, params.rewards, {task, *judges})
    check_core(pipeline, params.model, params.core, allocation, ahead, accelerator.print)
    if task == "ocr":
        report_unreadable(records, recogniser(), accelerator.print)
    with ExitStack() as stack:
        if processes.main:
            for folder in locked:
                stack.enter_context(take_lock(folder / ".lock", f"{command} {title}"))
            remove_done(work)
        interrupted = stack.enter_context(listening())
        reward = build_reward(task, params.rewards)
        stack.callback(reward.close)
        policy = load_policy(params.model, accelerator.device)
        accelerator.print(f"{title}: attention kernel {policy.attention_kernel}", flush=True)
        trainer = Trainer(params, allocation, records, reward, policy, processes, interrupted)
        states = States(work, params.train.keep_states, identity)
        check_base(states, policy.base)
        prompts = dict.fromkeys([*(record.prompt for record in ahead), *more_prompts])
        policy.prepare_prompts(processes.shard(list(prompts), 1))
        processes.barrier()
        yield Training(trainer, states, accelerator)
        accelerator.end_training()


def train(
    params: Params,
    task: str,
    method: str,
    records: Sequence[PromptRecord],
    held_out: Sequence[PromptRecord],
    work: Path,
    output: Path,
    identity: dict | None = None,
    announce: Callable[[LogLine], None] = lambda line: None,
) -> None:
    """Train ``method`` on ``task``, resuming from ``work``; fill ``output`` when it is complete.

    Args:
        held_out: test records; `TrainParams.evaluate_prompts` of them are scored.
        identity: what decides the result; see `star.training.checkpoint.States`.
        announce: gets the line of the first epoch.

    Raises:
        StarError: what `open_training` refuses, an unknown method, records of another task, a
            reward that fails, a loss that is not finite.
        Interrupted: the process was asked to stop, and the state is saved.
    """
    params, name = params.with_method(method), f"{task}-{method}"
    wrong = next((record for record in (*records, *held_out) if record.task != task), None)
    if wrong is not None:
        raise StarError(
            f"record {wrong.id} belongs to task {wrong.task}, not {task}; give the task's own file"
        )
    check_tracker(params.train.tracker)
    scored = choose(held_out, params.train.evaluate_prompts) if params.train.evaluate_every else []
    opening = open_training(
        params,
        task,
        params.allocation,
        records,
        command="star train",
        title=f"{task} {method}",
        work=work,
        output=output,
        locked=(work, output),
        identity=identity or {},
        more_prompts=[record.prompt for record in scored],
    )
    with opening as training:
        trainer, states = training.trainer, training.states
        tested = HeldOut.of(trainer, scored) if scored else None
        tracker = None
        if trainer.processes.main and params.train.tracker != "none":
            tracker = Tracker(params.train.tracker, name, work, dataclasses.asdict(params))
        look = partial(_draw, trainer, work, tracker)
        every = params.train.sample_every
        title = f"{task} {method}"
        run_epochs(trainer, states, title, every, look, tracker, announce, tested)
        if trainer.processes.main:
            with writing(output):
                trainer.export(work, output)
                recorded = json.dumps(states.identity, indent=1, sort_keys=True)
                write_text_atomic(output / "parameters.json", recorded + "\n")
                (output / ".lock").unlink()
                flush_tree(output)
            states.finish()
        if tracker is not None:
            tracker.finish()


def check_base(states: States, base: str) -> None:
    """Refuse to resume if the base model is not the one the states were trained on.

    A damaged state is skipped: `States.newest` reports it, and `Trainer.restore` checks others.
    """
    files = states.files()
    try:
        known = read_facts(files[-1]).get("base", base) if files else base
    except StarError:
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
    announce: Callable[[LogLine], None] = lambda line: None,
    held_out: HeldOut | None = None,
) -> None:
    """Train to the last epoch from the newest state; write a line per epoch to ``log.jsonl``.

    The main process writes files, calls ``look`` and logs; every process reads the state.

    Args:
        look: draws or scores images; called before the first epoch, every ``look_every`` epochs
            and after the last one.
        tracker: gets each new line.
        announce: gets the line of the first epoch.
        held_out: scored before the first epoch, which makes a line of epoch 0, every
            `TrainParams.evaluate_every` epochs and after the last one.

    Raises:
        StarError: states or log that cannot be read, and whatever `Trainer.train_epoch` raises.
    """
    train, main = trainer.params.train, trainer.processes.main
    log = states.folder / "log.jsonl"
    found = states.newest()
    if found is not None:
        try:
            trainer.restore(*found)
        except StarError as error:
            raise StarError(f"{states.folder}: {error}") from error
    if main:
        _cut_log(log, trainer.epoch, 1 if held_out is None else 0)
        if tracker is not None:
            tracker.begin(trainer.epoch)

    def record(line: dict) -> None:
        _append(log, line)
        if tracker is not None:
            tracker.log(line)

    def due(every: int) -> bool:
        return trainer.epoch == train.epochs or trainer.epoch % every == 0

    if trainer.epoch == 0:
        if held_out is not None:
            base = _with_score({"epoch": 0, "images": 0, "seconds": {}}, held_out)
            if main:
                record(base)
        if main:
            look()
    bar = Progress(
        total=train.epochs,
        initial=trainer.epoch,
        desc=title,
        unit="epoch",
        mininterval=1,
        disable=not main,
    )
    with bar:
        while trainer.epoch < train.epochs:
            with _state_kept(trainer, states):
                trained = trainer.train_epoch()
                line = dataclasses.asdict(trained)
                if held_out is not None and due(train.evaluate_every):
                    line = _with_score(line, held_out)
                if not main:
                    continue
                record(line)
                reward, speed = f"{trained.reward_mean:.3f}", f"{trained.images_per_s:.0f}"
                bar.set_postfix({"reward": reward, "images_per_s": speed}, refresh=False)
                bar.update()
                if trained.epoch == 1:
                    announce(trained)
                if due(look_every):
                    look()
                if due(train.save_every):
                    states.save(trainer.epoch, *trainer.state())


@contextmanager
def _state_kept(trainer: Trainer, states: States) -> Iterator[None]:
    """If the epoch fails, save the state from its start, and the rollouts if it was a `Fault`."""
    before = trainer.state()
    try:
        yield
    except BaseException as error:
        if trainer.processes.main:
            states.save(before[1]["epoch"], *before)
        if isinstance(error, Fault):
            name = f"epoch-{trainer.epoch + 1:06d}-rank-{trainer.processes.rank}"
            saved = save_fault(states.folder / "faults" / name, error)
            raise StarError(f"{error} (rollouts in {saved})") from error
        raise


def _with_score(line: dict, held_out: HeldOut) -> dict:
    """Return a line of the log with the mean score of the held-out prompts and its seconds."""
    watch = Stopwatch("held_out")
    with watch("held_out"):
        score = held_out.mean()
    return line | {"held_out": score, "seconds": line["seconds"] | watch.seconds}


def _cut_log(log: Path, epochs: int, first: int = 1) -> None:
    """Keep only the lines of epochs ``first`` to ``epochs``; a killed run may have logged more.

    Before the first epoch nothing is kept.

    Raises:
        StarError: lines are missing or do not match.
    """
    wanted = list(range(first, epochs + 1)) if epochs else []
    lines = log.read_text(encoding="utf-8").splitlines()[: len(wanted)] if log.exists() else []
    try:
        found = [json.loads(line)["epoch"] for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise StarError(
            f"{log}: not a training log ({error}); delete {log.parent} to start over"
        ) from error
    if found != wanted:
        raise StarError(
            f"{log}: expected epochs {first} to {epochs} as in the saved state, found {len(found)} "
            f"lines with epochs {found[:1]} to {found[-1:]}; delete {log.parent} to start over"
        )
    write_text_atomic(log, "".join(line + "\n" for line in lines))


def _append(log: Path, line: dict) -> None:
    """Write a line and flush it to the disk, so that no state is newer than its log."""
    with writing(log), open(log, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _draw(trainer: Trainer, folder: Path, tracker: Tracker | None) -> None:
    records, allocation = trainer.records[:SHEET_PROMPTS], trainer.allocation
    core = trainer.credit.core_keys(records, False) if allocation.uses_maps else None
    seeds = [seed_of(trainer.params.seed, "sheet", i) for i in range(len(records))]
    steps = trainer.params.rollout.steps
    with memory_for("sample grid"), writing(folder):
        drawn = draw_samples(
            trainer.policy,
            trainer.reward,
            records,
            seeds,
            steps,
            core,
            allocation,
            trainer.epoch,
            folder,
        )
    if tracker is not None:
        tracker.show(drawn, trainer.epoch)
