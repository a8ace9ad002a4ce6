"""The adapter's moving average: Flow-GRPO's decay, and when it is applied."""

import torch

from star.method.ema import Average, lent


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


def test_lent_values_are_given_back_also_after_an_error():
    parameters, values = [torch.ones(2), torch.zeros(3)], [torch.full((2,), 5.0), torch.ones(3)]
    try:
        with lent(parameters, values):
            assert all(map(torch.equal, parameters, values))
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert parameters[0].tolist() == [1, 1] and parameters[1].tolist() == [0, 0, 0]
    assert values[0].tolist() == [5, 5]
