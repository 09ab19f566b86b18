"""The model that all peers serve, as a person would write it for them: `torch.nn.LSTM` and its largest outputs.

N texts, T tokens, H hidden. Nothing of seqapp is imported here: a folder holds `weights.safetensors` with the names of
PyTorch, `tokenizer.json` of the `tokenizers` package and `labels.json`. THREADS is how many threads a pass may use.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence


class Classifier(nn.Module):
    """Embedding, LSTM both ways, largest output of each unit, projection."""

    def __init__(self, vocabulary: int, embedding: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True, bidirectional=True)
        self.project = nn.Linear(2 * hidden, classes)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """ids (N, T), lengths (N,) -> logits (N, classes)."""
        x = self.embedding(ids)
        if bool((lengths == ids.shape[1]).all()):  # the fast way, which padding forbids
            y, _ = self.lstm(x)
        else:
            packed, _ = self.lstm(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
            y, _ = pad_packed_sequence(packed, batch_first=True, padding_value=-torch.inf)
        logits: Tensor = self.project(y.amax(1))
        return logits


class Predictor:
    """Texts to labels and scores.

    Args:
        folder: what `benchmarks/serve.py` wrote.
    """

    def __init__(self, folder: str | Path) -> None:
        torch.set_num_threads(int(os.environ.get("THREADS", "1")))
        folder = Path(folder)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.labels: list[str] = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "weights.safetensors")
        vocabulary, embedding = weights["embedding.weight"].shape
        classes, wide = weights["project.weight"].shape
        self.model = Classifier(vocabulary, embedding, wide // 2, classes)
        self.model.load_state_dict(weights)
        self.model.eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """A label and its score for each text, of one forward pass."""
        rows = [torch.tensor(one.ids) for one in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        lengths = torch.tensor([len(row) for row in rows])
        chances = self.model(pad_sequence(rows, batch_first=True), lengths).softmax(1)
        scores, best = chances.max(1)
        return [
            {"label": self.labels[index], "score": score}
            for index, score in zip(best.tolist(), scores.tolist(), strict=True)
        ]
