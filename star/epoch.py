"""What the parameters alone say about an epoch: which steps are trained, and who can share the batches."""

from star.errors import StarError
from star.params import Params, RolloutParams


def window_start(rollout: RolloutParams, epoch: int) -> int:
    """First stochastic step of an epoch: the window slides by a step every ``slide_every`` epochs and starts over at
    step 0 (as MixGRPO's, arXiv 2507.21802, which slides over the updates)."""
    first, end = rollout.window
    moves = epoch // rollout.slide_every if rollout.slide_every else 0
    return (first + moves) % (rollout.steps - (end - first))


def check_processes(params: Params, count: int) -> None:
    """Refuse a number of processes that cannot share the batches of an update evenly.

    Raises:
        StarError: naming the numbers that can.
    """
    share = params.images_per_epoch // params.rollout.batch // params.train.updates_per_epoch
    if share % count:
        fit = ", ".join(str(n) for n in range(1, share + 1) if share % n == 0)
        raise StarError(
            f"{count} processes cannot share the {share} batches of an update evenly (train.prompts_per_epoch x "
            f"train.group_size / rollout.batch / train.updates_per_epoch): launch {fit}, or lower rollout.batch"
        )
