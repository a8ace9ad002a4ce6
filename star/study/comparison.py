"""The study's numbers: every method against the two references, task by task, and the answer for
the aim."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from star.config.consistency import STUDY_REFERENCES
from star.config.params import Params, StudyRun
from star.evaluation.statistics import Interval
from star.study.curves import LOGGED, Curve, load_curves, watched
from star.study.intervals import crossing_ratio, t_interval

FLOW_GRPO, SHUFFLED = STUDY_REFERENCES
AIM_RATIO = 0.7  # at most this share of flow_grpo's images


@dataclass(frozen=True)
class BestRate:
    """A method at each rate over the same seeds; `graded` and `to_flow_grpo` are at `rate`, the
    best by the mean."""

    rate: float
    means: dict[float, float]  # rate -> mean graded score, rates increasing
    graded: Interval
    to_flow_grpo: Interval | None  # flow_grpo at its own best


@dataclass(frozen=True)
class MethodResult:
    """One method on one task; everything but `best` is at the shared rate. Differences are paired
    by seed; a method has none to itself."""

    name: str
    control: str  # the same with its maps in the wrong places
    graded: Interval  # at the last look
    exact: Interval
    to_flow_grpo: Interval | None
    to_control: Interval | None
    images: float  # to flow_grpo's final score; inf: not reached
    ratio: Interval  # of these images to flow_grpo's; the mean is the ratio itself
    area: Interval  # mean graded score over the looks
    area_to_flow_grpo: Interval | None
    best: BestRate
    watch: dict[str, Interval]
    watch_change: dict[str, Interval]  # to base
    log: dict[str, float | None]
    minutes: float  # of one run
    curves: np.ndarray  # (seeds, looks)


@dataclass(frozen=True)
class Answer:
    """Whether the aim holds on one task."""

    method: str
    level_above_base: bool  # else the ratio says nothing
    ratio: Interval
    control: str
    to_control: Interval

    @property
    def fewer_images(self) -> bool:
        return self.level_above_base and self.ratio.mean <= AIM_RATIO

    @property
    def fewer_images_settled(self) -> bool:
        """Whether the whole interval agrees with `fewer_images`."""
        return self.level_above_base and (
            self.ratio.high <= AIM_RATIO if self.fewer_images else self.ratio.low > AIM_RATIO
        )

    @property
    def beats_control(self) -> bool:
        return self.to_control.low > 0

    @property
    def met(self) -> bool:
        return self.fewer_images and self.beats_control


@dataclass(frozen=True)
class TaskResult:
    """One task of the study; `methods` follow the order of the parameters."""

    task: str
    held_out: int
    images: np.ndarray  # (looks,)
    epochs: tuple[int, ...]
    base_graded: float
    base_exact: float
    base_spread: float  # greatest difference of base's graded score between runs
    base_watch: dict[str, float]
    level: float  # flow_grpo's mean final graded score
    methods: tuple[MethodResult, ...]
    answer: Answer

    def method(self, name: str) -> MethodResult:
        return next(method for method in self.methods if method.name == name)


@dataclass(frozen=True)
class Study:
    """All runs, and what they say."""

    curves: dict[StudyRun, Curve]
    tasks: tuple[TaskResult, ...]

    @property
    def hours(self) -> float:
        """Of training and looking, summed over runs."""
        return sum(curve.seconds for curve in self.curves.values()) / 3600


def load_study(params: Params, folder: Path) -> Study:
    """Read and compare the runs; `StarError` for files that are missing or wrong."""
    curves = load_curves(params, folder)
    return Study(curves, tuple(compare_task(params, task, curves) for task in params.study.tasks))


def compare_task(params: Params, task: str, curves: dict[StudyRun, Curve]) -> TaskResult:
    """All numbers of one task."""
    study = params.study
    shared: dict[str, list[Curve]] = {
        name: [
            curves[StudyRun(task, name, seed, float(study.learning_rate))]
            for seed in range(study.seeds)
        ]
        for name in study.methods
    }
    every = [curve for runs in shared.values() for curve in runs]
    starts = [curve.graded[0] for curve in every]
    best = best_rates(params, task, curves)
    methods = tuple(_method(params, task, name, shared, best[name]) for name in study.methods)
    base_graded, level = float(np.mean(starts)), float(_graded(shared[FLOW_GRPO])[:, -1].mean())
    aim = next(method for method in methods if method.name == study.aim)
    assert aim.to_control is not None  # the aim is neither reference: star.config.consistency
    return TaskResult(
        task=task,
        held_out=every[0].held_out,
        images=every[0].images,
        epochs=every[0].epochs,
        base_graded=base_graded,
        base_exact=float(np.mean([curve.exact[0] for curve in every])),
        base_spread=float(np.ptp(starts)),
        base_watch={
            key: float(np.mean([curve.watch[0][key] for curve in every])) for key in watched(task)
        },
        level=level,
        methods=methods,
        answer=Answer(aim.name, level > base_graded, aim.ratio, aim.control, aim.to_control),
    )


def best_rates(params: Params, task: str, curves: dict[StudyRun, Curve]) -> dict[str, BestRate]:
    """Each method at the rate of its best mean final score, over the same seeds for all rates; a
    tie: the first."""
    study = params.study
    finals = {
        (name, rate): np.array(
            [
                curves[StudyRun(task, name, seed, rate)].graded[-1]
                for seed in range(study.rate_seeds)
            ]
        )
        for name in study.methods
        for rate in study.rates
    }  # (seeds,)
    chosen = {
        name: max(study.rates, key=lambda rate: finals[name, rate].mean()) for name in study.methods
    }
    reference = finals[FLOW_GRPO, chosen[FLOW_GRPO]]
    return {
        name: BestRate(
            rate,
            {r: float(finals[name, r].mean()) for r in sorted(study.rates)},
            t_interval(finals[name, rate]),
            None if name == FLOW_GRPO else t_interval(finals[name, rate] - reference),
        )
        for name, rate in chosen.items()
    }


def _method(
    params: Params, task: str, name: str, shared: dict[str, list[Curve]], best: BestRate
) -> MethodResult:
    runs, flow_grpo = shared[name], _graded(shared[FLOW_GRPO])
    ours = _graded(runs)  # (seeds, looks)
    images, ratio = crossing_ratio(
        ours, flow_grpo, runs[0].images, params.evaluate.bootstrap, params.seed
    )

    def against(reference: str) -> Interval | None:
        return (
            None
            if name == reference
            else t_interval(ours[:, -1] - _graded(shared[reference])[:, -1])
        )

    control = control_of(params.study.methods, name)
    area, area_reference = ours.mean(axis=1), flow_grpo.mean(axis=1)  # (seeds,)
    return MethodResult(
        name=name,
        control=control,
        graded=t_interval(ours[:, -1]),
        exact=t_interval(np.array([run.exact[-1] for run in runs])),
        to_flow_grpo=against(FLOW_GRPO),
        to_control=against(control),
        images=images,
        ratio=ratio,
        area=t_interval(area),
        area_to_flow_grpo=None if name == FLOW_GRPO else t_interval(area - area_reference),
        best=best,
        watch={
            key: t_interval(np.array([run.watch[1][key] for run in runs])) for key in watched(task)
        },
        watch_change={
            key: t_interval(np.array([run.watch[1][key] - run.watch[0][key] for run in runs]))
            for key in watched(task)
        },
        log={key: _mean([run.log[key] for run in runs]) for key in LOGGED},
        minutes=float(np.mean([run.seconds for run in runs])) / 60,
        curves=ours,
    )


def control_of(methods: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """The method that differs from ``name`` in its shuffled maps alone; `SHUFFLED` for one that has
    no such other."""
    wanted = {**methods[name], "source": "shuffled"}
    return next((other for other, changes in methods.items() if changes == wanted), SHUFFLED)


def _graded(runs: Sequence[Curve]) -> np.ndarray:
    return np.stack([run.graded for run in runs])  # (seeds, looks)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
