"""Data that comes with seqapp: nothing to download."""

from __future__ import annotations

import csv
from importlib import resources

from seqapp.data.splits import SOURCES, LabelledText, Splits


@SOURCES.register("reviews")
def reviews() -> Splits[LabelledText]:
    """English review sentences on films, restaurants, products and travel, written by hand for this project."""
    folder = resources.files("seqapp.data") / "reviews"
    parts: dict[str, list[LabelledText]] = {}
    for name in ("train", "validation", "test"):
        lines = (folder / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        parts[name] = [LabelledText(row["text"], row["label"]) for row in rows]
    return Splits("bundled reviews", **parts)
