"""Training speed of our loop beside the plain one, on the same model, in the same process.

    python benchmarks/training_speed.py [--data reviews | imdb]

Plain loop: shuffled batches of a fixed number of rows, padded to the longest, packed sequences, float32, Adam.
Ours: what `seqapp train` does; length buckets, masks instead of packing, bfloat16 products where the config says so.
Both compute the same function (checked first, on the same weights), so tokens per second, padding not counted, compare.
The two take turns, and the ratio is taken turn by turn.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import record
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pipelines.data import Data
from pipelines.module import Learner, build_optimizer
from pipelines.options import SECTIONS, Training
from seqapp import config
from seqapp.data.batching import pad
from seqapp.data.splits import SOURCES, Splits
from seqapp.models.classifier import Classifier
from seqapp.tasks.sentiment import Item, Sentiment

ROOT = Path(__file__).parent.parent
CONFIGS = {"reviews": "configs/sentiment/bundled-birnn.yaml", "imdb": "configs/sentiment/imdb-birnn.yaml"}


class Plain(nn.Module):
    """The same bidirectional LSTM classifier as it is commonly written."""

    def __init__(self, ours: Classifier) -> None:
        super().__init__()
        encoder: Any = ours.encoder
        self.embedding = nn.Embedding.from_pretrained(ours.embedding.weight.detach().clone(), freeze=False)
        self.embedding_dropout = nn.Dropout(ours.embedding_dropout.p)
        self.lstm = nn.LSTM(encoder.input_size, encoder.ahead.hidden_size, batch_first=True, bidirectional=True)
        state = {}
        for suffix, layer in (("", encoder.ahead), ("_reverse", encoder.back)):
            state[f"weight_ih_l0{suffix}"], state[f"weight_hh_l0{suffix}"] = layer.V, layer.W
            state[f"bias_ih_l0{suffix}"], state[f"bias_hh_l0{suffix}"] = layer.b, torch.zeros_like(layer.b)
        self.lstm.load_state_dict({name: value.detach().clone() for name, value in state.items()})
        self.dropout = nn.Dropout(ours.dropout.p)
        self.project = nn.Linear(2 * encoder.ahead.hidden_size, 2)
        head: Any = ours.head
        self.project.load_state_dict(head.project.state_dict())

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            self.embedding_dropout(self.embedding(ids)), lengths, batch_first=True, enforce_sorted=False
        )
        y, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, padding_value=float("-inf"))
        logits: Tensor = self.project(self.dropout(y.amax(1)))
        return logits


def plain_batches(items: list[Item], rows: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    order = list(range(len(items)))
    random.Random(seed).shuffle(order)
    for start in range(0, len(order), rows):
        chosen = [items[index] for index in order[start : start + rows]]
        ids, lengths = pad([item.ids for item in chosen])
        yield ids, lengths, torch.tensor([item.target for item in chosen])


def plain_turn(model: Plain, optimizer: torch.optim.Optimizer, items: list[Item], seconds: float, seed: int) -> float:
    model.train()
    tokens, started = 0, time.perf_counter()
    while True:
        for ids, lengths, targets in plain_batches(items, 64, seed):
            optimizer.zero_grad()
            cross_entropy(model(ids, lengths), targets).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            tokens += int(lengths.sum())
            if (elapsed := time.perf_counter() - started) > seconds:
                return tokens / elapsed


def our_turn(
    learner: Learner, optimizer: torch.optim.Optimizer, data: Data, precision: str, seconds: float, epoch: int
) -> float:
    learner.train()
    loader = data.train_dataloader()
    tokens, started = 0, time.perf_counter()
    while True:
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss, _ = learner.task.loss(learner.model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(learner.model.parameters(), 1.0)
            optimizer.step()
            tokens += int(batch.lengths.sum())
            if (elapsed := time.perf_counter() - started) > seconds:
                return tokens / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--data", choices=list(CONFIGS), default="reviews")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6.0, help="of one turn")
    arguments = parser.parse_args()

    # The same network in both, whatever the config of the day says: one bidirectional LSTM, max pooling.
    resolved = config.load(
        ROOT / CONFIGS[arguments.data],
        ["model={kind: classifier, embedding_size: 128, encoder: {kind: birnn, layer: {kind: lstm, hidden_size: 128}}, "
         "pooling: {kind: max}, dropout: 0.3, embedding_dropout: 0.3}"],
        sections=SECTIONS,
    )  # fmt: skip
    options = Training(**resolved["train"])
    splits: Splits[Any] = SOURCES.build(resolved["data"])
    task = Sentiment(**{key: value for key, value in resolved["task"].items() if key not in ("kind", "crop")})
    task.prepare(splits.train)
    data = Data(task, splits, batch_tokens=options.batch_tokens, batch_rows=options.batch_rows, seed=1)
    torch.manual_seed(1)
    model = task.build_model(resolved["model"])
    assert isinstance(model, Classifier)
    plain = Plain(model)
    ids, lengths, _ = next(plain_batches(data.train_items, 64, 0))
    with torch.no_grad():
        difference = float((model.eval()(ids, lengths) - plain.eval()(ids, lengths)).abs().max())
    if difference > 1e-4:
        raise SystemExit(f"the two models differ by {difference}: nothing to compare")

    learner = Learner(task, model, learning_rate=1e-3, schedule="constant", warmup=0, weight_decay=0, seed=1)
    ours_opt = build_optimizer(model, learning_rate=1e-3, weight_decay=0.0)
    plain_opt = torch.optim.Adam(plain.parameters(), lr=1e-3)
    turns = []
    for turn in range(arguments.turns + 1):
        ours = our_turn(learner, ours_opt, data, options.precision, arguments.seconds, turn)
        other = plain_turn(plain, plain_opt, data.train_items, arguments.seconds, turn)
        print(f"turn {turn}: ours {ours:,.0f}, plain {other:,.0f} tokens/s, ratio {ours / other:.2f}", flush=True)
        if turn:  # the first warms up
            turns.append({"ours": ours, "plain": other, "ratio": ours / other})
    ratios = sorted(turn["ratio"] for turn in turns)
    path = record.write(
        f"training-speed-{arguments.data}",
        {
            "definition": "training tokens per second, padding not counted; forward, backward, clipping and optimiser",
            "data": splits.name,
            "precision": options.precision,
            "batch": {
                "ours": f"at most {options.batch_rows} rows and {options.batch_tokens} tokens",
                "plain": "64 rows",
            },
            "difference_of_logits": difference,
            "median": {key: statistics.median(turn[key] for turn in turns) for key in ("ours", "plain", "ratio")},
            "ratio_lowest_highest": [ratios[0], ratios[-1]],
            "turns": turns,
        },
    )
    print(path)


if __name__ == "__main__":
    main()
