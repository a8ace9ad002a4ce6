"""The adapter's moving average: Flow-GRPO's decay, and when it is applied."""

import torch

from star.method.ema import Average


def test_formula_and_cadence_by_hand():
    parameter = torch.zeros(2, dtype=torch.float64)
    average = Average([parameter], decay=0.9, every=2)
    parameter += torch.tensor([1.0, 2.0])
    expected = torch.zeros(2, dtype=torch.float64)
    # 3/12 and 5/14 are (1 + updates) / (10 + updates); 101/110 is more than 0.9
    for updates, decay in ((1, 1.0), (2, 3 / 12), (3, 1.0), (4, 5 / 14), (100, 0.9), (101, 1.0)):
        parameter += 1.0
        average.update([parameter], updates)
        expected = decay * expected + (1 - decay) * parameter
        assert torch.allclose(average.values[0], expected, atol=1e-12)
