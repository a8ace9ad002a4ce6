"""Muon whose iteration runs in the type that the processor is fast in.

torch's computes in bfloat16, which takes seconds a step on a processor without such instructions.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from star.method.precision import AUTOCAST_DTYPES, resolve_precision

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


class Muon(torch.optim.Optimizer):
    """Muon (https://kellerjordan.github.io/posts/muon): momentum, made orthogonal.

    With Nesterov momentum, decoupled weight decay, and steps of AdamW's size (arXiv 2502.16982)."""

    def __init__(
        self, matrices: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        settings = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(matrices, settings)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape].append(matrix)
            for matrices in alike.values():
                self._step(matrices, group)

    def _step(self, matrices: list[Tensor], group: dict) -> None:
        updates = []
        for matrix in matrices:
            assert matrix.grad is not None
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
            buffer = self.state[matrix]["momentum_buffer"]
            buffer.lerp_(matrix.grad, 1 - group["momentum"])
            updates.append(matrix.grad.lerp(buffer, group["momentum"]))
        rate = group["lr"] * 0.2 * max(matrices[0].shape) ** 0.5
        for matrix, update in zip(matrices, orthogonal(torch.stack(updates)), strict=True):
            matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)


def orthogonal(stack: Tensor) -> Tensor:
    """Return about the nearest (semi-)orthogonal matrix of each: (n, rows, columns), float32.

    Five quintic Newton-Schulz steps; singular values end between about 0.7 and 1.2."""
    dtype = AUTOCAST_DTYPES.get(resolve_precision("auto", stack.device), torch.float32)
    x = stack.to(dtype)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()
