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
        with (folder / f"{name}.tsv").open(encoding="utf-8", newline="") as stream:
            rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            parts[name] = [LabelledText(row["text"], row["label"]) for row in rows]
    return Splits("bundled reviews", **parts)
