"""The study's numbers: every method against its references by task; the answers for the aims."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from star.config.params import Params, StudyRun
from star.config.references import FIRST, shuffled_control, uniform_form
from star.evaluation.statistics import Interval
from star.study.curves import COMPARED, LOGGED, Curve, load_curves, mean_of_known
from star.study.intervals import crossing_ratio, t_interval

FORWARD_SHARE = 0.5  # aim 1: of the images of `FIRST`
ALLOCATION_SHARE = 0.7  # aim 2: of the images of the uniform form


@dataclass(frozen=True)
class Versus:
    """A method against another on one task, paired by seed."""

    name: str  # the other
    final: Interval  # difference of the scores at the last look
    area: Interval  # difference of the areas
    reward: Interval  # difference of the mean rewards in training
    images: float  # to the other's mean final score; inf: not reached
    ratio: Interval  # of these images to the other's own; the mean is the ratio itself
    above_base: bool  # the other's final score is, else the ratio says nothing

    def within(self, share: float) -> bool:
        """Return whether the method needs at most this share of the other's images."""
        return self.above_base and self.ratio.mean <= share

    def settled(self, share: float) -> bool:
        """Return whether the whole interval agrees with `within`."""
        return self.above_base and (
            self.ratio.high <= share if self.within(share) else self.ratio.low > share
        )


@dataclass(frozen=True)
class MethodResult:
    """One method on one task, and the same against each reference; None: it has none.

    Its score is `TaskResult.compared`, one of graded and exact.
    """

    name: str
    algorithm: str
    source: str  # of its maps
    score: Interval  # at the last look
    graded: Interval
    exact: Interval
    area: Interval  # mean score over the looks
    reward: Interval  # mean over the images of the training
    first: Versus | None  # against `FIRST`
    uniform: Versus | None  # against its uniform form
    control: Versus | None  # against its shuffled control
    watch: dict[str, Interval]
    watch_change: dict[str, Interval]  # to base
    log: dict[str, float | None]
    minutes: float  # of one run
    curves: np.ndarray  # (seeds, looks)


@dataclass(frozen=True)
class TaskResult:
    """One task of the study; `methods` follow the order of the parameters."""

    task: str
    held_out: int
    images: np.ndarray  # (looks,)
    base_graded: float
    base_exact: float
    base_spread: float  # greatest difference of base's score between runs
    base_watch: dict[str, float]
    methods: tuple[MethodResult, ...]

    def method(self, name: str) -> MethodResult:
        return next(method for method in self.methods if method.name == name)

    @property
    def compared(self) -> str:
        """Return the name of the score by which the methods are compared: graded or exact."""
        return COMPARED[self.task]

    @property
    def base(self) -> float:
        """Return the base model's score."""
        return self.base_exact if self.compared == "exact" else self.base_graded

    @property
    def level(self) -> float:
        """Return the mean final score of `FIRST`."""
        return self.method(FIRST).score.mean


@dataclass(frozen=True)
class ForwardAim:
    """Aim 1 of one forward-process method: half of the images of `FIRST`, on every task."""

    method: str
    tasks: dict[str, Versus]  # against `FIRST`

    @property
    def met(self) -> bool:
        return all(versus.within(FORWARD_SHARE) for versus in self.tasks.values())


@dataclass(frozen=True)
class AllocationAim:
    """Aim 2, of the method that was named beforehand."""

    method: str
    uniform: dict[str, Versus]  # by task
    control: dict[str, Versus]

    def won(self, task: str) -> bool:
        """Return whether it needs few enough images and beats its control, zero excluded."""
        return self.uniform[task].within(ALLOCATION_SHARE) and self.control[task].final.low > 0

    def lost(self, task: str) -> bool:
        """Return whether it ends below its uniform form, zero excluded."""
        return self.uniform[task].final.high < 0

    @property
    def met(self) -> bool:
        return any(map(self.won, self.uniform)) and not any(map(self.lost, self.uniform))


@dataclass(frozen=True)
class Study:
    """All runs, and what they say."""

    curves: dict[StudyRun, Curve]
    tasks: tuple[TaskResult, ...]
    forward: tuple[ForwardAim, ...]  # without maps, and the best by final score; none without one
    allocation: AllocationAim

    @property
    def hours(self) -> float:
        """Return the hours of training and looking, summed over runs."""
        return sum(curve.seconds for curve in self.curves.values()) / 3600


def load_study(params: Params, folder: Path) -> Study:
    """Read and compare the runs of ``params.study``; `StarError` for missing or wrong files."""
    curves = load_curves(params, folder)
    tasks = tuple(_compare_task(params, task, curves) for task in params.study.tasks)
    return Study(curves, tasks, forward_aims(tasks), _allocation_aim(params.study.aim, tasks))


def _compare_task(params: Params, task: str, curves: Mapping[StudyRun, Curve]) -> TaskResult:
    """Return all numbers of one task."""
    study, compared = params.study, COMPARED[task]
    runs = {
        name: [curves[StudyRun(task, name, k, study.rate(name))] for k in range(study.seeds)]
        for name in study.methods
    }
    scores = {
        name: np.stack([getattr(run, compared) for run in each]) for name, each in runs.items()
    }
    rewards = {name: np.array([run.reward for run in each]) for name, each in runs.items()}
    every = [curve for each in runs.values() for curve in each]
    starts = [getattr(curve, compared)[0] for curve in every]
    base, images = float(np.mean(starts)), every[0].images

    def versus(name: str, other: str | None) -> Versus | None:
        if other is None or other == name:
            return None
        ours, theirs = scores[name], scores[other]  # (seeds, looks)
        needed = crossing_ratio(ours, theirs, images, params.evaluate.bootstrap, params.seed)
        final = t_interval(ours[:, -1] - theirs[:, -1])
        area = t_interval(ours.mean(axis=1) - theirs.mean(axis=1))
        reward = t_interval(rewards[name] - rewards[other])
        return Versus(other, final, area, reward, *needed, bool(theirs[:, -1].mean() > base))

    def result(name: str) -> MethodResult:
        method, mine = params.of_study(name), runs[name]
        first, last = (
            {key: np.array([run.watch[end][key] for run in mine]) for key in mine[0].watch[0]}
            for end in (0, 1)
        )
        return MethodResult(
            name=name,
            algorithm=method.train.algorithm,
            source=method.allocation.source,
            score=t_interval(scores[name][:, -1]),
            graded=t_interval(np.array([run.graded[-1] for run in mine])),
            exact=t_interval(np.array([run.exact[-1] for run in mine])),
            area=t_interval(scores[name].mean(axis=1)),
            reward=t_interval(rewards[name]),
            first=versus(name, FIRST),
            uniform=versus(name, uniform_form(params, name)),
            control=versus(name, shuffled_control(params, name)),
            watch={key: t_interval(values) for key, values in last.items()},
            watch_change={key: t_interval(last[key] - first[key]) for key in last},
            log={key: mean_of_known([run.log[key] for run in mine]) for key in LOGGED},
            minutes=float(np.mean([run.seconds for run in mine])) / 60,
            curves=scores[name],
        )

    return TaskResult(
        task=task,
        held_out=every[0].held_out,
        images=images,
        base_graded=float(np.mean([curve.graded[0] for curve in every])),
        base_exact=float(np.mean([curve.exact[0] for curve in every])),
        base_spread=float(np.ptp(starts)),
        base_watch={
            key: float(np.mean([curve.watch[0][key] for curve in every]))
            for key in every[0].watch[0]
        },
        methods=tuple(map(result, study.methods)),
    )


def forward_aims(tasks: tuple[TaskResult, ...]) -> tuple[ForwardAim, ...]:
    """Return aim 1 of the first forward-process method without maps, and of the best of all.

    The best has the greatest final score, averaged over tasks; it is chosen by what it is then
    judged by."""
    forward = [method for method in tasks[0].methods if method.algorithm != "flow_grpo"]
    plain = [method.name for method in forward if method.source == "uniform"][:1]
    finals = {m.name: sum(task.method(m.name).score.mean for task in tasks) for m in forward}
    names = dict.fromkeys([*plain, *sorted(finals, key=finals.__getitem__)[-1:]])
    return tuple(
        ForwardAim(name, {task.task: _known(task.method(name).first) for task in tasks})
        for name in names
    )


def _allocation_aim(name: str, tasks: tuple[TaskResult, ...]) -> AllocationAim:
    return AllocationAim(
        name,
        {task.task: _known(task.method(name).uniform) for task in tasks},
        {task.task: _known(task.method(name).control) for task in tasks},
    )


def _known(versus: Versus | None) -> Versus:
    assert versus is not None  # star.config.consistency: the aim has both, and is not `FIRST`
    return versus
