"""Time and memory of rollout, update and evaluation, against `star plan` and the device's rate."""

import statistics
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from star.config.params import Params
from star.doctor.findings import Finding, Result
from star.doctor.measure import matrix_rate, seconds
from star.doctor.subject import ALLOCATIONS, Subject
from star.plan.configs import pipeline_configs
from star.plan.counts import branches
from star.plan.memory import MemoryEstimate
from star.plan.models import LiveBytes, build_pipeline, on_meta
from star.plan.operations import Costs, count_costs, count_operations
from star.plan.reward_models import Scorer
from star.policy.rollout import sample_images
from star.system.errors import StarError
from star.system.progress import Progress
from star.training.trainer import ALGORITHMS, Trainer

PHASES = ("rollout", "update")
GIB = 2**30
MOST_TIME, MOST_MEMORY = 1.005, 1.01  # of STAR over uniform
PLAN_ERROR = 0.15  # of measured memory
LEAST_SHARE = 0.5  # of the device's own matrix rate, in the update


# -- time ------------------------------------------------------------------------------------------


def interleave(runs: Mapping[str, Trainer], rounds: int, title: str) -> dict[str, Any]:
    """Train epochs of all runs, one after another; the first of each is not counted.

    Every other round is backwards, so that a drift of the machine's speed favours none. A run that
    fails has its reason in place of seconds.
    """
    found: dict[str, Any] = {name: {"epochs": []} for name in runs}
    names = list(runs)
    order = [name for i in range(rounds + 1) for name in names[:: 1 if i % 2 else -1]]
    for name in Progress(order, desc=title, unit="epoch", leave=False):
        if "failed" in found[name]:
            continue
        try:
            line = runs[name].train_epoch()
        except (StarError, RuntimeError) as error:  # memory ends, or the device cannot
            found[name] = {"failed": str(error).strip().partition("\n")[0]}
            continue
        found[name]["epochs"].append({phase: line.seconds[phase] for phase in PHASES})
        found[name]["first_ratio_error"] = line.first_ratio_error
    return {
        name: facts if "failed" in facts else facts | medians(facts.pop("epochs")[1:])
        for name, facts in found.items()
    }


def medians(epochs: list[dict[str, float]]) -> dict[str, Any]:
    """Return the median seconds of each phase and of both together, and those of each epoch."""
    each = [sum(epoch.values()) for epoch in epochs]
    middle = {phase: statistics.median(epoch[phase] for epoch in epochs) for phase in PHASES}
    return {"seconds": middle | {"both": statistics.median(each)}, "each": each}


def ratio(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """Return the median ratio of epochs of the same rounds."""
    pairs = zip(first["each"], second["each"], strict=True)
    return statistics.median(a / b for a, b in pairs)


def check_speed(subject: Subject, found: dict) -> Result:
    """Time each algorithm, uniform and STAR interleaved, and an evaluation's images."""
    findings, figures, images = [], {}, subject.sizes.images
    costs = costs_of(subject.params)
    for algorithm in ALGORITHMS:
        runs = {name: subject.trainer(algorithm, name) for name in ALLOCATIONS}
        timed: dict[str, Any] = interleave(runs, subject.sizes.rounds, algorithm)
        if failed := {name: facts["failed"] for name, facts in timed.items() if "failed" in facts}:
            findings.append(Finding("speed", algorithm, f"{failed}; see docs/troubleshooting.md"))
            continue
        timed["ratio"] = more = ratio(timed["star"], timed["uniform"])
        operations = count_operations(subject.trained_by(algorithm, "star"), costs)
        taken = timed["star"]["seconds"]
        timed["images_per_s"] = {phase: images / taken[phase] for phase in taken}
        timed["operations_per_s"] = {
            phase: getattr(operations, phase) / taken[phase] for phase in PHASES
        }
        shown = ", ".join(f"{phase} {timed['images_per_s'][phase]:.3g}" for phase in taken)
        dear = subject.device.type == "cuda" and more > MOST_TIME
        mend = f"more than {MOST_TIME} was not expected; say so with --output's file"
        value = f"{algorithm}: images/s {shown}; STAR takes {more:.3f} of uniform's time"
        findings.append(Finding("speed", value, mend if dear else "", needed=False))
        figures[algorithm] = timed
        del runs
        subject.forget()
    figures["evaluation"] = _evaluation(subject, costs)
    rate = figures["evaluation"]["images_per_s"]
    steps = subject.sizes.steps
    findings.append(Finding("speed", f"evaluation: {rate:.3g} images/s of {steps} steps"))
    return findings, figures


def _evaluation(subject: Subject, costs: Costs) -> dict[str, float]:
    run, steps, images = subject.trainer(), subject.sizes.steps, subject.sizes.images
    batch = run.plan.batches(0)[0]
    prompts = [record.prompt for record in batch.records]

    def draw() -> None:
        sample_images(run.policy, prompts, batch.step_seeds, steps)

    taken = min([seconds(draw) for _ in range(subject.sizes.rounds + 1)][1:])
    passes = images * steps * branches(subject.params.model)
    operations = passes * costs.forward + images * costs.decoding
    return {"images_per_s": images / taken, "operations_per_s": operations / taken}


def check_settings(subject: Subject, found: dict) -> Result:
    """Time STAR by Flow-GRPO with one setting changed at a time, beside the recipe's own."""
    model, train = subject.params.model, subject.params.train
    settings: dict[str, dict[str, Any]] = {
        "gradient_checkpointing": {"gradient_checkpointing": not model.gradient_checkpointing},
        "compile": {"compile": "no" if model.compile != "no" else subject.sizes.compiler},
    }
    if hasattr(train, "reuse_rollout"):
        settings["reuse_rollout"] = {"reuse_rollout": not train.reuse_rollout}
    findings, figures = [], {}
    for name, changed in settings.items():  # one at a time: each takes memory
        runs = {"own": subject.trainer(), name: subject.trainer(**changed)}
        timed = interleave(runs, subject.sizes.rounds, name)
        del runs
        subject.forget()
        value = f"{name} {str(changed[name]).lower()}"
        figures[name] = timed | {"value": changed[name]}
        if failed := timed[name].get("failed"):
            findings.append(Finding("settings", value, f"cannot run here ({failed})", needed=False))
            continue
        figures[name]["ratio"] = took = ratio(timed[name], timed["own"])
        off = timed[name]["first_ratio_error"]
        mend = f"its first ratio is off 1 by {off:.2g}: leave it as it is" if off else ""
        value = f"{value}: {took:.2f} of the recipe's time"
        findings.append(Finding("settings", value, mend, needed=False))
    return findings, figures


def check_share(subject: Subject, found: dict) -> Result:
    """Compare the update's operations a second with the device's own rate of matrix products."""
    own = matrix_rate(subject.device, subject.sizes.matrix, subject.params.model.precision)
    shares = {
        algorithm: facts["operations_per_s"]["update"] / own
        for algorithm, facts in found["speed"].items()
        if algorithm in ALGORITHMS
    }
    shown = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    low = subject.device.type == "cuda" and min(shares.values()) < LEAST_SHARE
    mend = f"less than {LEAST_SHARE:.0%}: try a larger rollout.batch, or model.compile: inductor"
    value = f"update, of the device's own {own / 1e12:.3g} x 10^12 operations/s: {shown}"
    figures = {"matrix_rate": own, "update": shares}
    return [Finding("share", value, mend if low else "", needed=False)], figures


def costs_of(params: Params) -> Costs:
    """Return `star plan`'s operations of a sequence and of an image's decoding, on a GPU."""
    configs = pipeline_configs(params.model.path)
    assert configs is not None  # `Subject` refuses what is not known
    pipeline = build_pipeline(configs, params.model)
    with on_meta(params.model.path):
        estimate = MemoryEstimate(params, pipeline, "cuda")
        return count_costs(pipeline, params.model, estimate.sequence.fused)


# -- memory ----------------------------------------------------------------------------------------


class Meter:
    """Bytes of tensors on the device: of a GPU its allocator's, on the CPU those made inside."""

    def __init__(self, device: torch.device) -> None:
        self.live = LiveBytes(copies=True) if device.type == "cpu" else None
        self.start = 0 if self.live else torch.cuda.memory_allocated()

    @property
    def counting(self) -> AbstractContextManager:
        return self.live or nullcontext()

    def begin(self) -> None:
        """Begin a phase."""
        if self.live:
            self.live.most = self.live.now
        else:
            torch.cuda.reset_peak_memory_stats()

    def highest(self) -> int:
        """Return the most since `begin`, above what there was at the start."""
        most = self.live.most if self.live else torch.cuda.max_memory_allocated()
        return most - self.start


def measure_phases(run: Trainer) -> dict[str, int]:
    """Return the bytes that each phase adds at its highest to what is there before an epoch."""
    meter, highest = Meter(run.policy.device), {}

    def watched(phase: str, work: Callable) -> Callable:
        def inner(*arguments: Any) -> Any:
            meter.begin()
            result = work(*arguments)
            highest[phase] = meter.highest()
            return result

        return inner

    run.sample = watched("rollout", run.sample)  # type: ignore[method-assign]
    run.update = watched("update", run.update)  # type: ignore[method-assign]
    with meter.counting:
        run.train_epoch()
    return highest


def resident_bytes(run: Trainer) -> int:
    """Return the bytes of weights, states and prompts that stay between epochs, by their storages.

    Without the text encoders, which are other ones than the model's where weights are random.
    """
    parts = run.policy.transformer, run.policy.pipe.vae
    tensors: list[Any] = [t for part in parts for t in (*part.parameters(), *part.buffers())]
    tensors += [*run.average.values, *run.algorithm.tensors().values()]
    tensors += tree_leaves([dict(state) for state in run.optimizer.state.values()])
    prompts = run.policy.prompts.get([run.records[0].prompt])
    tensors += [prompts.embeds, prompts.pooled]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def planned_phases(params: Params, device: str) -> tuple[dict[str, int], int]:
    """Return `star plan`'s bytes of the same phases, and of what stays."""
    configs = pipeline_configs(params.model.path)
    assert configs is not None
    estimate = MemoryEstimate(params, build_pipeline(configs, params.model), device)
    memory = estimate.training("geneval", params, Scorer(0, 0), processes=1)
    rollout = max(memory.phases["denoising"], memory.phases["decoding"])
    stays = sum(memory.resident.values()) - memory.resident["text encoders"]
    return {"rollout": rollout, "update": memory.phases["update"]}, stays


def check_memory(subject: Subject, found: dict) -> Result:
    """Compare the memory of each phase with `star plan`'s, and STAR's with the uniform one's."""
    findings, figures, card = [], {}, subject.device.type == "cuda"
    for algorithm in Progress(ALGORITHMS, desc="memory", unit="algorithm", leave=False):
        facts: dict[str, Any] = {}
        for allocation in ALLOCATIONS:
            run = subject.trainer(algorithm, allocation)
            run.train_epoch()  # the optimizer's state, and what libraries keep
            params = subject.trained_by(algorithm, allocation)
            planned, stays = planned_phases(params, subject.device.type)
            resident, measured = resident_bytes(run), measure_phases(run)
            facts[allocation] = {
                "measured": measured,
                "planned": planned,
                "over_plan": {phase: measured[phase] / planned[phase] for phase in PHASES},
                "resident": {"measured": resident, "planned": stays, "ratio": resident / stays},
                "total": resident + max(measured.values()),
            }
            del run
            subject.forget()
        facts["ratio"] = more = facts["star"]["total"] / facts["uniform"]["total"]
        star = facts["star"]
        shown = [
            f"{phase} {_gib(star['measured'][phase])} ({star['over_plan'][phase]:.2f} of the plan)"
            for phase in PHASES
        ]
        stays = star["resident"]
        value = (
            f"{algorithm}: stays {_gib(stays['measured'])} ({stays['ratio']:.2f}), "
            f"{', '.join(shown)}; STAR has {more:.3f} of uniform's total"
        )
        apart = max(abs(star["over_plan"][phase] - 1) for phase in PHASES) > PLAN_ERROR
        mend = f"`star plan` is off by more than {PLAN_ERROR:.0%}: leave that room" if apart else ""
        if more > MOST_MEMORY:
            mend = f"more than {MOST_MEMORY} was not expected; say so with --output's file"
        findings.append(Finding("memory", value, mend if card else "", needed=False))
        figures[algorithm] = facts
    return findings, figures


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size > GIB / 10 else f"{size / 2**20:.1f} MiB"
