"""The pictures of translations say what they were given."""

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure

from pipelines.figures import attention_matrix, bleu_by_length
from seqapp.translation_scores import LengthRow

SOURCE = ["▁The", "▁road", " ", "$5$", "_{", "▁.", "\n", ""]
TARGET = ["▁Die", "▁Straßen", "bau", "stelle", "▁kostet", "$5$"]


def drawn(figure: Figure) -> Figure:
    figure.draw_without_rendering()
    return figure


def labels(ticks: list[object]) -> list[str]:
    return [tick.get_text() for tick in ticks]  # type: ignore[attr-defined]


def test_attention_has_a_row_for_each_target_token() -> None:
    weights = np.random.default_rng(0).dirichlet(np.ones(len(SOURCE)), len(TARGET))
    figure = drawn(attention_matrix(weights.tolist(), SOURCE, TARGET, "It costs $5$ and $6_{ → Das kostet"))
    axes = figure.axes[0]
    assert np.array_equal(np.asarray(axes.images[0].get_array()), weights)
    assert labels(axes.get_xticklabels()) == ["▁The", "▁road", "␣", "$5$", "_{", "▁.", "\\n", "∅"]
    assert labels(axes.get_yticklabels()) == TARGET
    # Rows run down the page, as the translation is read.
    assert axes.yaxis_inverted()
    assert axes.images[0].get_clim() == (0, 1)


@pytest.mark.parametrize(("T", "S"), [(1, 1), (2, 40), (75, 3), (3, 75), (30, 35)])
def test_long_sentences_keep_their_labels_apart(T: int, S: int) -> None:
    figure = drawn(attention_matrix(np.full((T, S), 1 / S), ["▁Straße"] * S, ["▁lang"] * T, "a long title " * 30))
    canvas = figure.get_window_extent()
    for ticks, low, high in ((figure.axes[0].get_xticklabels(), "x0", "x1"),
                             (figure.axes[0].get_yticklabels(), "y0", "y1")):  # fmt: skip
        boxes = sorted((tick.get_window_extent() for tick in ticks), key=lambda box: getattr(box, low))
        assert all(getattr(a, high) <= getattr(b, low) for a, b in itertools.pairwise(boxes))
        assert all(canvas.x0 <= box.x0 and box.x1 <= canvas.x1 for box in boxes)
        assert all(canvas.y0 <= box.y0 and box.y1 <= canvas.y1 for box in boxes)


@pytest.mark.parametrize("shape", [(6, 7), (8, 6), (8,)])
def test_attention_of_other_tokens_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"6 target and 8 source tokens; \(6, 8\) fits"):
        attention_matrix(np.ones(shape), SOURCE, TARGET, "")
    with pytest.raises(ValueError, match="at least one of each"):
        attention_matrix(np.ones((0, 1)), ["a"], [], "")


ATTENTION = [LengthRow("1-5", 10, 40.0, 1.0), LengthRow("6-10", 30, 38.0, 1.0), LengthRow("31+", 2, 0.0, 0.5)]
PLAIN = [LengthRow("1-5", 10, 41.0, 1.0), LengthRow("6-10", 30, 20.0, 0.9), LengthRow("31+", 2, 0.0, 0.2)]


def test_bleu_by_length_has_a_curve_for_each_model_over_one_count() -> None:
    figure = drawn(bleu_by_length({"attention": ATTENTION, "plain $x_{": PLAIN}, "length $"))
    upper, lower = figure.axes
    assert [line.get_ydata().tolist() for line in upper.lines] == [[40, 38, 0], [41, 20, 0]]
    assert labels(upper.get_legend().get_texts()) == ["attention", "plain $x_{"]
    assert [bar.get_height() for bar in lower.patches] == [10, 30, 2]
    assert labels(lower.get_xticklabels()) == ["1-5", "6-10", "31+"]
    assert upper.get_ylim() == pytest.approx((0, 1.1 * 41))
    assert len({(line.get_color(), line.get_linestyle()) for line in upper.lines}) == 2


def test_only_the_same_sentences_are_compared() -> None:
    with pytest.raises(ValueError, match="'plain' are not as many or not as long as those of 'attention'"):
        bleu_by_length({"attention": ATTENTION, "plain": PLAIN[:2]}, "")
    for models in ({}, {"none": []}, {str(index): PLAIN for index in range(20)}):
        with pytest.raises(ValueError, match="1 to 7, each with translations, fit"):
            bleu_by_length(models, "")
