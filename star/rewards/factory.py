"""The reward of a task, ready to use."""

from collections.abc import Collection

from star.config.params import GenevalParams, RewardsParams
from star.rewards.base import Reward
from star.rewards.detection import Detector
from star.rewards.guarded import GuardedReward
from star.system.errors import StarError


def build_reward(task: str, params: RewardsParams) -> Reward:
    """The reward of one of the three tasks; models and worker processes start here."""
    if task == "geneval":
        from star.rewards.geneval import GenevalReward

        return GuardedReward(
            GenevalReward(build_detector(params.geneval), params.geneval), params.timeout
        )
    if task == "ocr":
        from star.rewards.ocr import OcrReward

        return OcrReward(params.ocr, params.timeout)
    if task == "preference":
        from star.rewards.preference import PreferenceReward

        return GuardedReward(PreferenceReward(params.preference), params.timeout)
    raise ValueError(f"no reward for task {task!r}")


def find_models(tasks: Collection[str], params: RewardsParams) -> None:
    """Have on this machine, and known for what they are, all models that judge the tasks: no
    surprise hours later.

    Raises:
        StarError: a model that is not to be had or is of another kind; weights are read only when
    it is opened."""
    if "geneval" in tasks and params.geneval.detector == "mask2former":
        from star.rewards import mask2former

        mask2former.find_models(params.geneval)
    if "preference" in tasks:
        from star.rewards import preference
        from star.rewards.clip import find_clip

        find_clip(params.preference.path, params.preference.revision, preference.KEY)


def build_detector(params: GenevalParams) -> Detector:
    """The detector that ``rewards.geneval.detector`` names; its models are opened here.

    Raises:
        StarError: unknown name, or a model that cannot be opened.
    """
    if params.detector == "exact":
        from star.rewards.exact_detector import ExactDetector  # only the miniature needs its glyphs

        return ExactDetector()
    if params.detector == "mask2former":
        from star.rewards.mask2former import Mask2FormerDetector

        return Mask2FormerDetector(params)
    raise StarError(
        f"rewards.geneval.detector: no detector {params.detector!r}; use exact or mask2former"
    )
