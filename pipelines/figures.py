"""Pictures that a person looks at: learning curves, the confusion matrix, reliability, attention, BLEU by length."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from pipelines.diagnose_figures import COLOURS, MOST_CURVES, STYLES
from seqapp.calibration import BINS, Reliability
from seqapp.metrics import Confusion
from seqapp.translation_scores import LengthRow

# A label may hold any character; a box stands for those that the font has not.
warnings.filterwarnings("ignore", message="Glyph .* missing from font")

TRAIN, VALIDATION = "#4c78a8", "#e45756"
FEW = 10
"""Answers in a bin below which their share of right ones is drawn faintly: it says little."""
LONGEST_LABEL = 20
"""Letters of a class beside a matrix."""
LARGEST_SIDE = 20.0
"""Of a matrix of attention, in inches, its labels left out."""


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
    history: Mapping[str, Sequence[tuple[int, float]]],
    title: str,
    titles: Mapping[str, str] | None = None,
    alone: Sequence[str] = (),
) -> Figure:
    """One panel per score that moves, training beside validation.

    Args:
        history: metric name such as "train/nll" -> (epoch, value) pairs.
        title: above the picture.
        titles: score -> what its panel is called, where that is not the score's name.
        alone: scores that have a panel also where training does not tell them, as a smoothed loss or a search does not.
    """
    scores = [name for name in dict.fromkeys(key.partition("/")[2] for key in history)
              if f"validation/{name}" in history and (f"train/{name}" in history or name in alone)
              and _moves(history, name)]  # fmt: skip
    figure = Figure(figsize=(4.2 * max(1, len(scores)), 3.6), layout="constrained")
    figure.suptitle(title)
    for index, name in enumerate(scores):
        axes = figure.add_subplot(1, len(scores), index + 1)
        for part, color in (("train", TRAIN), ("validation", VALIDATION)):
            points = history.get(f"{part}/{name}")
            if not points:
                continue
            axes.plot([epoch + 1 for epoch, _ in points], [value for _, value in points],
                      color=color, marker="o", markersize=3, label=part)  # fmt: skip
        axes.set(xlabel="epoch", title=(titles or {}).get(name, name))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _moves(history: Mapping[str, Sequence[tuple[int, float]]], name: str) -> bool:
    """Whether a score is another in some epoch, or there is but one epoch."""
    parts = [[value for _, value in history.get(f"{part}/{name}", ())] for part in ("train", "validation")]
    return any(len(values) == 1 or len(set(values)) > 1 for values in parts)


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
    axes.set(xticks=range(len(names)), yticks=range(len(names)), xlabel="said", ylabel="true")
    axes.set_title(title, parse_math=False)
    shown = [textwrap.shorten(name, LONGEST_LABEL, placeholder="…") if " " in name else
             name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…" for name in names]  # fmt: skip
    crowded = len(names) > 3 or max(map(len, shown)) > 10
    axes.set_xticklabels(shown, rotation=30 if crowded else 0, ha="right" if crowded else "center", parse_math=False)
    axes.set_yticklabels(shown, parse_math=False)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    return figure


def reliability_diagram(parts: Mapping[str, Reliability], title: str) -> Figure:
    """How often answers were right over how sure the model was, above how many there are (Guo et al. 2017, figure 1).

    A dot stands at the mean confidence of its bin, so that its distance from the diagonal, upwards or downwards, is
    what the bin adds to the calibration error, in proportion to its answers.

    Args:
        parts: what a panel is called -> the reliability it shows; at least one.
        title: above the picture.
    """
    figure = Figure(figsize=(0.6 + 4.4 * len(parts), 5.4), layout="constrained")
    figure.suptitle(title, parse_math=False)
    grid = figure.subplots(2, len(parts), sharex=True, sharey="row", height_ratios=(3, 1), squeeze=False)
    edges = np.linspace(0, 1, BINS + 1)
    # With two classes no confidence is below one half, and the picture would be half empty.
    left = edges[min(BINS // 2, *(int(part.counts.nonzero()[0]) for part in parts.values()))]
    most = max(int(part.counts.max()) for part in parts.values())
    for column, (name, part) in enumerate(parts.items()):
        counts = part.counts.numpy()
        held = counts > 0
        accuracy, confidence = (sums.numpy()[held] / counts[held] for sums in (part.right, part.confidence))
        upper, lower = grid[:, column]
        faint = np.where(counts[held] < FEW, 0.3, 1.0)
        bars = upper.bar(edges[:-1][held], accuracy, 1 / BINS, align="edge", color=TRAIN, edgecolor="white")
        for bar, alpha in zip(bars, faint, strict=True):
            bar.set_alpha(alpha)
        upper.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1)
        upper.scatter(confidence, accuracy, 22, color=VALIDATION, alpha=faint, zorder=3, clip_on=False)
        scores = part.scores()
        upper.set(xlim=(left, 1), ylim=(0, 1.02))
        upper.set_title(f"{name}\nECE {scores['ece']:.2%}, Brier {scores['brier']:.3f}", fontsize=10, parse_math=False)
        upper.grid(alpha=0.3)
        drawn = lower.bar(edges[:-1], counts, 1 / BINS, align="edge", color="0.7", edgecolor="white")
        lower.bar_label(drawn, [f"{count:,}" if count else "" for count in counts], fontsize=6.5, padding=1)
        lower.set(xlabel="confidence: probability of the label", ylim=(0, 1.25 * most))
        lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    grid[0, 0].set(ylabel="share that is right")
    grid[1, 0].set(ylabel="answers")
    legend = (
        Patch(color=TRAIN, label=f"share that is right (faint: fewer than {FEW} answers)"),
        Line2D([], [], color=VALIDATION, marker="o", markersize=5, linewidth=0, label="at its mean confidence"),
        Line2D([], [], color="0.4", linestyle="--", linewidth=1, label="as sure as right"),
    )
    figure.legend(handles=legend, loc="outside lower center", ncols=2 if len(parts) > 1 else 1, fontsize=8)
    return figure


def attention_matrix(
    weights: ArrayLike, source_tokens: Sequence[str], target_tokens: Sequence[str], title: str
) -> Figure:
    """Where the decoder looked: a row for each target token, a column for each source token, dark where it looked most.

    Args:
        weights: (T, S) shares; each row sums to 1.
        source_tokens: S of them.
        target_tokens: T of them.
        title: above the picture, broken where it is too long.

    Raises:
        ValueError: if the weights are not (T, S), or there are none.
    """
    shares = np.asarray(weights, dtype=float)
    T, S = len(target_tokens), len(source_tokens)
    if shares.shape != (T, S) or not shares.size:
        raise ValueError(f"weights of shape {shares.shape} for {T} target and {S} source tokens; ({T}, {S}) fits, "
                         f"with at least one of each")  # fmt: skip
    cell = min(0.34, LARGEST_SIDE / max(T, S))
    letters = max(4.0, min(9.0, 24 * cell))
    # A letter is about half as wide as it is high, and a point is 1 / 72 inch.
    left, top = (0.6 * letters / 72 * max(map(len, tokens)) + 0.4 for tokens in (target_tokens, source_tokens))
    width, height = max(4.5, cell * S + left + 1.2), cell * T + top + 1.0
    lines = textwrap.wrap(title, width=max(30, int(width * 11)))
    # Small letters take more points to be read.
    figure = Figure((width, max(2.4, height) + 0.22 * len(lines)), 100 if letters > 7 else 150, layout="constrained")
    figure.suptitle("\n".join(lines), fontsize=11, parse_math=False)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xticks(range(S), [_visible(token) for token in source_tokens], rotation=90, fontsize=letters,
                    parse_math=False)  # fmt: skip
    axes.set_yticks(range(T), [_visible(token) for token in target_tokens], fontsize=letters, parse_math=False)
    axes.set(xlabel="source", ylabel="translation")
    axes.set_xticks(np.arange(0.5, S - 1), minor=True)
    axes.set_yticks(np.arange(0.5, T - 1), minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    figure.colorbar(image, ax=axes, label="attention", shrink=min(1.0, 3 / max(cell * T, 1)), aspect=12)
    return figure


def _visible(token: str) -> str:
    """``token`` with white space that can be seen."""
    return token.replace("\n", "\\n").replace("\t", "\\t").replace(" ", "␣") or "∅"


def bleu_by_length(models: Mapping[str, Sequence[LengthRow]], title: str) -> Figure:
    """BLEU over the length of the source, a curve for each model, above how many sentences are so long.

    Args:
        models: name -> rows of the same sentences; at most :data:`pipelines.diagnose_figures.MOST_CURVES`.
        title: above the picture.

    Raises:
        ValueError: if there is no row, there are too many models, or the models were not given the same sentences.
    """
    groups = [[(row.words, row.sentences) for row in rows] for rows in models.values()]
    if not groups or not groups[0] or len(groups) > MOST_CURVES:
        raise ValueError(f"{len(groups)} models; 1 to {MOST_CURVES}, each with translations, fit")
    for name, group in zip(models, groups, strict=True):
        if group != groups[0]:
            raise ValueError(f"the sentences of {name!r} are not as many or not as long as those of "
                             f"{next(iter(models))!r}; translations of the same sentences fit")  # fmt: skip
    words, counts = [word for word, _ in groups[0]], [count for _, count in groups[0]]
    figure = Figure(figsize=(max(6.0, 0.9 * len(words) + 1.5), 5), layout="constrained")
    figure.suptitle(title, parse_math=False)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for (name, rows), color, style in zip(models.items(), COLOURS, STYLES, strict=False):
        upper.plot(range(len(rows)), [row.bleu for row in rows], color=color, linestyle=style, marker="o",
                   linewidth=2, label=name)  # fmt: skip
    highest = max(row.bleu for rows in models.values() for row in rows)
    upper.set(ylabel="BLEU (sacreBLEU, 13a)", ylim=(0, 1.1 * highest or 1))
    upper.grid(alpha=0.3)
    for text in upper.legend().get_texts():
        text.set_parse_math(False)
    bars = lower.bar(range(len(words)), counts, color="0.7")
    lower.bar_label(bars, fontsize=9)
    lower.margins(y=0.3)
    lower.set(ylabel="sentences", xlabel="words of the source", xticks=range(len(words)))
    lower.set_xticklabels(words)
    return figure
