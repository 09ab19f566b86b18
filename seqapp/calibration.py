"""Whether probabilities keep their word, and the one number that makes them do so.

A model whose answers "80 % sure" are right 80 times in 100 is calibrated. One temperature T > 0 for all classes divides
the logits before the softmax (Guo et al. 2017, equation 9); it moves how sure the model says it is, never what it says.

N answers, C classes, M bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from seqapp.errors import BundleError

BINS = 15
"""M, as in Guo et al. 2017."""
FILE = "calibration.json"


@dataclass(frozen=True)
class Reliability:
    """How sure a model was, and how often it was right, as sums that add up over parts.

    Answers are sorted by confidence, the probability of the likeliest class, into M bins of equal width, bin m holding
    those in ((m - 1) / M, m / M].

    Args:
        counts: (M,) integers, answers.
        confidence: (M,) sums of the confidence.
        right: (M,) integers, answers that were right.
        squares: () sum of the squared distance between the probabilities and the truth, a one in its place.
        nats: () sum of -log p of the true class.
    """

    counts: Tensor
    confidence: Tensor
    right: Tensor
    squares: Tensor
    nats: Tensor

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Reliability:
        """Count one batch: logits (N, C), targets (N,), computed in float64.

        Args:
            logits: before the temperature.
            targets: true classes.
            temperature: T.
        """
        # The label is that of the logits, which no rounding of probabilities has made equal.
        said = logits.argmax(1)
        log_probs = (logits.double() / temperature).log_softmax(1)
        probabilities = log_probs.exp()
        confidence = probabilities.amax(1)
        edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64, device=logits.device)[1:-1]
        bins = torch.bucketize(confidence, edges)
        zeros = torch.zeros(BINS, dtype=torch.float64, device=logits.device)
        distance = probabilities.scatter_add(1, targets[:, None], torch.full_like(confidence[:, None], -1))
        return cls(
            torch.bincount(bins, minlength=BINS),
            zeros.index_add(0, bins, confidence),
            torch.bincount(bins[said == targets], minlength=BINS),
            distance.square().sum(),
            -log_probs.gather(1, targets[:, None]).sum(),
        )

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(
            self.counts + other.counts,
            self.confidence + other.confidence,
            self.right + other.right,
            self.squares + other.squares,
            self.nats + other.nats,
        )

    def scores(self) -> dict[str, float]:
        """Expected calibration error, Brier score and nll.

        - ece: sum over bins of |B_m| / N * |accuracy(B_m) - confidence(B_m)|, in [0, 1] (Naeini et al. 2015; Guo et al.
          2017, equation 3);
        - brier: mean over answers of sum over classes of (p - truth)^2, in [0, 2] (Brier 1950);
        - nll: nats per answer.
        """
        total = int(self.counts.sum())
        if not total:
            return dict.fromkeys(("ece", "brier", "nll"), float("nan"))
        gaps = (self.right - self.confidence).abs().sum()
        return {name: float(value) / total for name, value in
                (("ece", gaps), ("brier", self.squares), ("nll", self.nats))}  # fmt: skip


class _Fitted(BaseModel):
    """What ``calibration.json`` holds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    temperature: float = Field(gt=0, allow_inf_nan=False)


def save_temperature(directory: Path, temperature: float | None) -> None:
    """Write ``calibration.json``; without a temperature there is none.

    Args:
        directory: of a bundle.
        temperature: T.
    """
    if temperature is not None:
        text = _Fitted(temperature=temperature).model_dump_json(indent=1)
        (directory / FILE).write_text(text + "\n", encoding="utf-8")


def load_temperature(directory: Path) -> float | None:
    """What :func:`save_temperature` wrote; None where it wrote nothing, as in bundles older than it.

    Args:
        directory: of a bundle.

    Raises:
        BundleError: if the file holds no temperature.
    """
    path = directory / FILE
    if not path.exists():
        return None
    try:
        return _Fitted.model_validate_json(path.read_bytes()).temperature
    except (OSError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise BundleError(f"{path}: a temperature above 0 fits: {reason}") from None
