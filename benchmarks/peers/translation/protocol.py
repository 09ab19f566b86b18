"""What the drivers of the peers share: the data and weights they are given, and the turns they take.

B batch, S source length, T target length. Sentences are ids: 0 padding, 1 unknown, 2 begin, 3 end.

A driver reads one JSON request a line and answers with one JSON line, so that only one program works at a time.
It runs in the peer's own environment: nothing of seqapp is imported here.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

PAD, UNK, BOS, EOS = range(4)
Ids = list[int]
Pairs = list[tuple[Ids, Ids]]


class Given:
    """What the benchmark wrote to a folder.

    Attributes:
        options: sizes, dropout, the learning rate, the longest translation.
        vocabularies: how many source and target ids there are.
        train: batches of pairs.
        test: source sentences, sorted by length.
        weights: by the names of `benchmarks/translate.py`.
    """

    def __init__(self, folder: Path) -> None:
        data = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        self.options: dict[str, Any] = data["options"]
        self.vocabularies: tuple[int, int] = tuple(data["vocabularies"])
        self.train: list[Pairs] = data["train"]
        self.test: list[Ids] = data["test"]
        with np.load(folder / "weights.npz") as weights:
            self.weights = {name: torch.from_numpy(weights[name]) for name in weights.files}


def padded(rows: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Ids (B, S) and lengths (B,)."""
    lengths = [len(row) for row in rows]
    size = max(lengths)
    return torch.tensor([row + [PAD] * (size - len(row)) for row in rows]), torch.tensor(lengths)


def batches(rows: Sequence[Ids], size: int) -> Iterator[list[Ids]]:
    """``size`` rows at a time, in order."""
    for start in range(0, len(rows), size):
        yield list(rows[start : start + size])


def until_eos(ids: Sequence[int]) -> Ids:
    """The ids before the end."""
    row = list(ids)
    return row[: row.index(EOS)] if EOS in row else row


def serve(
    given: Given,
    translate: Callable[[list[Ids], int], list[Ids]],
    train: Callable[[list[Pairs]], None],
) -> None:
    """Answer requests until there are none.

    Args:
        given: what was written for the driver.
        translate: source sentences of one batch, beams -> translations without the end.
        train: one pass over batches.
    """
    # What a library prints must not come between the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    # The corpus is in memory for the benchmark's sake; searching it for garbage would be counted.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        if request["do"] == "translate":
            rows = given.test[: request["sentences"]]
            started = time.perf_counter()
            found = [row for part in batches(rows, request["batch"]) for row in translate(part, request["beams"])]
            answer = {"seconds": time.perf_counter() - started, "translations": found}
        else:
            first, count = request["first"], request["count"]
            chosen = [given.train[index % len(given.train)] for index in range(first, first + count)]
            started = time.perf_counter()
            train(chosen)
            tokens = sum(len(target) + 1 for batch in chosen for _, target in batch)
            answer = {"seconds": time.perf_counter() - started, "tokens": tokens}
        print(json.dumps(answer), file=answers, flush=True)
