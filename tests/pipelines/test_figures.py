"""Pictures of what a user has named."""

import io
import itertools

import pytest
import torch

from pipelines.figures import LONGEST_LABEL, confusion_matrix
from seqapp.metrics import Confusion


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")
@pytest.mark.parametrize("names", [
    ("no", "yes"),
    ("very disappointed", "so-so $x$ _y^", "\U0001f953 enthusiastic about all of it"),
    tuple(f"a{'b' * 40}{place}" for place in range(12)),
])  # fmt: skip
def test_labels_of_any_kind_stand_beside_the_matrix_without_overlap(names: tuple[str, ...]) -> None:
    figure = confusion_matrix(Confusion(torch.ones(len(names), len(names), dtype=torch.int64), names), "a $title")
    figure.savefig(io.BytesIO())
    (axes, *_) = figure.axes
    shown = axes.get_xticklabels()
    assert all(len(label.get_text()) <= LONGEST_LABEL for label in shown)
    assert [label.get_text() for label in shown] == [label.get_text() for label in axes.get_yticklabels()]
    if all(len(name) <= LONGEST_LABEL for name in names):
        assert tuple(label.get_text() for label in shown) == names
    if shown[0].get_rotation() == 0:
        boxes = [label.get_window_extent() for label in shown]
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
