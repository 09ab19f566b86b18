"""Pictures that a person looks at: learning curves and the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from seqapp.metrics import Confusion

TRAIN, VALIDATION = "#4c78a8", "#e45756"


def figure(value: float, *, share: bool = False) -> str:
    """A score as a person reads it: a share in percent, anything else to four digits.

    Args:
        value: the score.
        share: it lies in [0, 1] and counts something.
    """
    if share:
        return f"{value:.2%}"
    return f"{value:.4f}" if value == 0 or not abs(value) < 0.01 else f"{value:.3e}"


def learning_curves(
    history: Mapping[str, Sequence[tuple[int, float]]], title: str, titles: Mapping[str, str] | None = None
) -> Figure:
    """One panel per score that moves, training beside validation.

    Args:
        history: metric name such as "train/nll" -> (epoch, value) pairs.
        title: above the picture.
        titles: score -> what its panel is called, where that is not the score's name.
    """
    scores = [name for name in dict.fromkeys(key.partition("/")[2] for key in history)
              if f"validation/{name}" in history and f"train/{name}" in history and _moves(history, name)]  # fmt: skip
    figure = Figure(figsize=(4.2 * max(1, len(scores)), 3.6), layout="constrained")
    figure.suptitle(title)
    for index, name in enumerate(scores):
        axes = figure.add_subplot(1, len(scores), index + 1)
        for part, color in (("train", TRAIN), ("validation", VALIDATION)):
            points = history[f"{part}/{name}"]
            axes.plot([epoch + 1 for epoch, _ in points], [value for _, value in points],
                      color=color, marker="o", markersize=3, label=part)  # fmt: skip
        axes.set(xlabel="epoch", title=(titles or {}).get(name, name))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _moves(history: Mapping[str, Sequence[tuple[int, float]]], name: str) -> bool:
    """Whether a score is another in some epoch, or there is but one epoch."""
    parts = [[value for _, value in history[f"{part}/{name}"]] for part in ("train", "validation")]
    return any(len(values) < 2 or len(set(values)) > 1 for values in parts)


def confusion_matrix(confusion: Confusion, title: str) -> Figure:
    """Rows are true classes, columns what the model said; the colour is the share of the row."""
    counts, names = confusion.counts, confusion.names
    size = max(3.2, 0.7 * len(names) + 1.6)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.add_subplot()
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i in range(len(names)):
        for j in range(len(names)):
            axes.text(j, i, f"{int(counts[i, j])}\n{shares[i, j]:.0%}", ha="center", va="center",
                      color="white" if shares[i, j] > 0.5 else "black", fontsize=9)  # fmt: skip
    axes.set(xticks=range(len(names)), yticks=range(len(names)), xlabel="said", ylabel="true", title=title)
    axes.set_xticklabels(names, rotation=30 if len(names) > 3 else 0, ha="right" if len(names) > 3 else "center")
    axes.set_yticklabels(names)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    return figure
