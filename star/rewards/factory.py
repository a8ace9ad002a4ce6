"""The rewards by task: the one place where a reward is registered."""

from collections.abc import Collection

from star.config.params import GenevalParams, RewardsParams
from star.rewards.base import Reward
from star.rewards.detection import Detector
from star.rewards.guarded import GuardedReward


def build_reward(task: str, params: RewardsParams) -> Reward:
    """Open the reward of a task; one that works in this process is guarded.

    Raises:
        StarError: a model that cannot be opened."""
    if task == "geneval":
        from star.rewards.geneval import GenevalReward

        detector = build_detector(params.geneval)
        return GuardedReward(GenevalReward(detector, params.geneval), params.timeout)
    if task == "ocr":
        from star.rewards.ocr import OcrReward

        return OcrReward(params.ocr, params.timeout)
    if task == "preference":
        from star.rewards.preference import PreferenceReward

        return GuardedReward(PreferenceReward(params.preference), params.timeout)
    raise ValueError(f"no reward for task {task!r}")


def find_models(tasks: Collection[str], params: RewardsParams) -> None:
    """Fetch and check the models of the tasks without their weights: no surprise hours later.

    Raises:
        StarError: a model that is not to be had or is of another kind."""
    if "geneval" in tasks and params.geneval.detector == "mask2former":
        from star.rewards import mask2former

        mask2former.find_models(params.geneval)
    if "preference" in tasks:
        from star.rewards.clip import find_clip
        from star.rewards.preference import KEY

        find_clip(params.preference.path, params.preference.revision, KEY)


def build_detector(params: GenevalParams) -> Detector:
    """Open the detector that ``rewards.geneval.detector`` names; raises as `build_reward`."""
    if params.detector == "exact":
        from star.rewards.exact_detector import ExactDetector

        return ExactDetector()
    if params.detector == "mask2former":
        from star.rewards.mask2former import Mask2FormerDetector

        return Mask2FormerDetector(params)
    raise ValueError(f"no detector {params.detector!r}")
