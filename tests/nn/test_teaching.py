"""Teacher forcing rates: the published curves, and a mix that keeps its promise at both ends."""

from __future__ import annotations

import math

import pytest
import torch

from seqapp.errors import ConfigError
from seqapp.nn.teaching import RATES, mix

PROGRESS = [0.0, 0.125, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("kind", list(RATES))
def test_a_rate_is_a_probability_that_never_rises(kind: str) -> None:
    rates = [RATES.build(kind)(progress) for progress in PROGRESS]
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates == sorted(rates, reverse=True)


def test_values_by_hand() -> None:
    def at(spec: dict[str, object]) -> list[float]:
        return [RATES.build(spec)(progress) for progress in (0.0, 0.25, 0.5, 1.0)]

    assert at({"kind": "constant", "rate": 0.3}) == [0.3] * 4
    assert at({"kind": "linear", "start": 1.0, "end": 0.2}) == pytest.approx([1, 0.8, 0.6, 0.2])
    assert at({"kind": "exponential", "end": 0.0625}) == pytest.approx([1, 0.5, 0.25, 0.0625])
    assert at({"kind": "inverse_sigmoid", "k": 9.0, "half": 0.5}) == pytest.approx([0.9, 0.75, 0.5, 0.1])


def test_exponential_and_inverse_sigmoid_are_those_of_the_paper() -> None:
    """Bengio et al. 2015, section 2.4: k^i and k / (k + exp(i / k)) at step i."""
    steps, k = 200, 0.99
    ours = RATES.build({"kind": "exponential", "end": k**steps})
    assert [ours(i / steps) for i in range(steps)] == pytest.approx([k**i for i in range(steps)])
    k = 12.0
    half = k * math.log(k) / steps
    ours = RATES.build({"kind": "inverse_sigmoid", "k": k, "half": half})
    assert [ours(i / steps) for i in range(steps)] == pytest.approx([k / (k + math.exp(i / k)) for i in range(steps)])


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"kind": "constant", "rate": 1.1}, "rate: takes float >= 0 and <= 1"),
        ({"kind": "linear", "end": -0.1}, "end: takes float >= 0 and <= 1"),
        ({"kind": "exponential", "end": 0.0}, "end: takes float"),
        ({"kind": "inverse_sigmoid", "k": 1.0}, "k: takes float > 1"),
        ({"kind": "cosine"}, "no teacher forcing rate is called 'cosine'; .*known: constant, linear"),
    ],
)
def test_what_does_not_fit_is_told(spec: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        RATES.build(spec)


@pytest.mark.parametrize("shape", [(4000,), (4000, 2)])
def test_mix_takes_whole_rows_with_the_given_probability(shape: tuple[int, ...]) -> None:
    right, own = torch.ones(shape), torch.zeros(shape)
    for _ in range(5):
        assert torch.equal(mix(right, own, 1.0), right)
        assert torch.equal(mix(right, own, 0.0), own)
    mixed = mix(right, own, 0.3).view(len(right), -1)
    assert torch.equal(mixed.amin(1), mixed.amax(1))
    assert mixed[:, 0].mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 4000))
