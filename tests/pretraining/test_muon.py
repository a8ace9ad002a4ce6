"""Muon: the iteration against the singular value decomposition, the step against torch's."""

import pytest
import torch

from star.pretraining.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(24, 24), (16, 48), (48, 16)])
def test_the_iteration_keeps_the_singular_vectors_and_evens_the_values(shape):
    drawn = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    u, values, v = torch.linalg.svd(drawn, full_matrices=False)
    uneven = torch.linspace(3.0, 0.6, values.shape[1])
    found = u.mT @ orthogonal(u * uneven @ v) @ v.mT
    diagonal = found.diagonal(dim1=1, dim2=2)
    assert diagonal.min() > 0.6 and diagonal.max() < 1.3
    assert (found - torch.diag_embed(diagonal)).abs().max() < 0.05


def test_steps_are_torch_s_up_to_its_bfloat16():
    def matrices():
        generator = torch.Generator().manual_seed(1)
        shapes = (32, 32), (32, 64), (64, 32), (32, 32)
        return [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in shapes]

    ours, theirs, start = matrices(), matrices(), matrices()
    optimizers = (
        Muon(ours, 0.01, 0.1),
        torch.optim.Muon(theirs, 0.01, 0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for step in range(3):
        generator = torch.Generator().manual_seed(10 + step)
        gradients = [torch.randn(p.shape, generator=generator) for p in ours]
        for optimizer, parameters in zip(optimizers, (ours, theirs), strict=True):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
    for own, other, first in zip(ours, theirs, start, strict=True):
        assert (own - other).norm() < 0.03 * (other - first).norm()
