"""Train one language model with every head over a large vocabulary, beside the plain full softmax.

python benchmarks/softmax.py [CORPUS]... [--heads NAME...] [--plain-steps 400] [--quick]

Model: embedding 256, LSTM 256, 20 rows x 35 steps with carried state, learning rate 0.002. "plain" is nn.Embedding,
nn.LSTM, nn.Linear, cross_entropy and torch.optim.Adam over everything; the others have a head of seqapp, gradients by
row for the embedding, and AdamWByRow, whose tables have betas (0.9, 0.99), where plain's have (0.9, 0.999). "full" is
the full softmax trained that way, which tells what the optimiser alone brings. All biases start at the
log-frequencies, plain's too: otherwise plain would spend most of its time on learning them. For each head three ratios,
plain to head:

layer: forward and backward through the output layer alone, on the same inputs, in alternating turns.
step:  forward, backward and optimiser, in alternating turns; the next pieces of the text.
wall:  training time to the second validation in a row whose exact perplexity is no higher than plain's at its last
       step. Validations read the same held-out tokens with carried state; their time does not count.

Corpora: "zipf", 500,000 words, of which half follow Zipf's law, log((r + 1) / r) / log(V + 1) for rank r, and half are
one of 16 words that their predecessor prefers; "imdb", words of film reviews, 100,000 kinds of them. Each measurement
is a process of its own, so that its peak of memory is that of one head.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pipelines.optim import AdamWByRow
from seqapp.nn.heads import HEADS, Head
from seqapp.nn.rows import take_rows

ROWS, STEPS, SIZE, RATE = 20, 35, 256, 2e-3
VOCABULARY = {"zipf": 500_000, "imdb": 100_000}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"kind": "full"},
    "full": {"kind": "full"},
    "sampled uniform": {"kind": "sampled", "proposal": "uniform"},
    "sampled log-uniform": {"kind": "sampled", "proposal": "log_uniform"},
    "sampled unigram": {"kind": "sampled", "proposal": "unigram"},
    "sampled bigram": {"kind": "sampled", "proposal": "bigram"},
    "adaptive importance": {"kind": "adaptive_importance"},
    "target sampling": {"kind": "target_sampling"},
    "nce": {"kind": "nce"},
    "self-normalised": {"kind": "self_normalised", "samples": 1024},
    "adaptive": {"kind": "adaptive"},
}

EVERY = 20
"""Steps between the first validations; later ones come after a tenth of the steps so far."""

Batch = tuple[Tensor, Tensor]
T = TypeVar("T")


class Model(nn.Module):
    """Embedding, LSTM, head; what "plain" has is dense throughout."""

    def __init__(self, name: str, classes: int) -> None:
        super().__init__()
        self.plain = name == "plain"
        self.embedding = nn.Embedding(classes, SIZE)
        nn.init.normal_(self.embedding.weight, 0, SIZE**-0.5)
        self.lstm = nn.LSTM(SIZE, SIZE, batch_first=True)
        self.head: Head = HEADS.build(KINDS[name], input_size=SIZE, classes=classes)

    def forward(self, ids: Tensor, carry: Any) -> tuple[Tensor, Any]:
        """ids (B, T) -> what the head reads, (B * T, I), and the carry."""
        y, carry = self.lstm(self.embedding(ids) if self.plain else take_rows(self.embedding.weight, ids), carry)
        return y.flatten(0, 1), tuple(leaf.detach() for leaf in carry)

    def optimizer(self) -> torch.optim.Optimizer:
        if self.plain:
            return torch.optim.Adam(self.parameters(), lr=RATE)
        tables = [self.embedding.weight, *(self.head.parameters() if self.head.sparse else ())]
        rest = [p for p in self.parameters() if all(p is not table for table in tables)]
        groups = [{"params": tables, "betas": (0.9, 0.99)}, {"params": rest}]
        return AdamWByRow(groups, lr=RATE, weight_decay=0.0)


class Trainer:
    """One head, its optimiser and its place in the text."""

    def __init__(self, name: str, classes: int, train: Tensor) -> None:
        torch.manual_seed(0)
        self.model = Model(name, classes)
        self.optimizer = self.model.optimizer()
        self.train, self.carry = train, None
        self.batches: Iterator[Batch] = iter(())
        fit(self.model.head, train, classes)

    def step(self) -> float:
        """Seconds of one step."""
        batch = next(self.batches, None)
        if batch is None:
            self.batches, self.carry = pieces(self.train), None
            self.model.head.begin_epoch(targets.flatten() for _, targets in pieces(self.train))
            batch = next(self.batches)
        started = time.perf_counter()
        self.optimizer.zero_grad()
        x, self.carry = self.model.train()(batch[0], self.carry)
        self.model.head.loss(x, batch[1].flatten(), previous=batch[0].flatten()).backward()
        self.optimizer.step()
        return time.perf_counter() - started

    def layer(self, x: Tensor, batch: Batch) -> float:
        """Seconds of forward and backward through the head alone, x (B * T, I)."""
        self.optimizer.zero_grad()
        x = x.detach().requires_grad_()
        # Planned for this batch; the next step begins an epoch of its own.
        self.model.head.begin_epoch([batch[1].flatten()])
        self.batches = iter(())
        started = time.perf_counter()
        self.model.head.train().loss(x, batch[1].flatten(), previous=batch[0].flatten()).backward()
        return time.perf_counter() - started

    @torch.no_grad()
    def perplexity(self, ids: Tensor) -> float:
        """exp of the mean exact -log p of ids (R, n) after the first of each row."""
        self.model.eval()
        carry, losses = None, []
        for inputs, targets in pieces(ids):
            x, carry = self.model(inputs, carry)
            losses.append(self.model.head.nll(x, targets.flatten()).double())
        return math.exp(torch.cat(losses).mean())


def pieces(ids: Tensor) -> Iterator[Batch]:
    """Inputs and targets, (R, T) each, of ids (R, n), in order."""
    for first in range(0, ids.shape[1] - STEPS, STEPS):  # a rest of fewer steps is left out
        yield ids[:, first : first + STEPS].contiguous(), ids[:, first + 1 : first + STEPS + 1].contiguous()


def fit(head: Head, train: Tensor, classes: int) -> None:
    """Tell the head the frequencies of the training text."""
    pairs = None
    if head.needs_bigrams:
        keys, times = torch.unique(train[:, :-1] * classes + train[:, 1:], return_counts=True)
        pairs = torch.stack([keys // classes, keys % classes], 1), times
    head.fit(torch.bincount(train.flatten(), minlength=classes), pairs)


def zipf(classes: int, tokens: int) -> Tensor:
    """Ids (n,) of a random text."""
    generator = torch.Generator().manual_seed(0)
    streams = 1000  # drawn side by side and then joined, since a text is drawn word by word

    def uniform() -> Tensor:
        return torch.rand(streams, generator=generator, dtype=torch.float64)

    def by_rank(share: Tensor) -> Tensor:
        return ((classes + 1.0) ** share).long().clamp(1, classes) - 1

    word = by_rank(uniform())
    words = [word]
    for _ in range(tokens // streams):
        choice = (16 * uniform() ** 2).long()
        scattered = (word * 16 + choice) * 2_654_435_761 % 4_294_967_291
        preferred = by_rank(scattered.double() / 4_294_967_291)
        word = torch.where(uniform() < 0.5, preferred, by_rank(uniform()))
        words.append(word)
    return torch.stack(words, 1).flatten()


def imdb(classes: int) -> tuple[Tensor, Tensor]:
    """Ids (n,) of training and validation."""
    from seqapp.data import public  # noqa: F401  (registers the sources)
    from seqapp.data.splits import SOURCES
    from seqapp.data.tokenizers import EOS, word

    splits, tokenizer = SOURCES.build({"kind": "imdb_text"}), word(max_vocabulary=classes)
    tokenizer.fit(passage.text for passage in splits.train)

    def ids(passages: Any) -> Tensor:
        encoded = tokenizer.encode_all(passage.text for passage in passages)
        return torch.from_numpy(numpy.concatenate([numpy.append(one, EOS) for one in encoded]).astype(numpy.int64))

    return ids(splits.train), ids(splits.validation)


def write_corpus(name: str, folder: Path, tokens: int, held_out: int, classes: int) -> None:
    """train.npy and validation.npy, (R, n) ids each."""
    if name == "zipf":
        text = zipf(classes, tokens + held_out)
        parts = text[:-held_out], text[-held_out:]
    else:
        train, validation = imdb(classes)
        parts = train, validation[:held_out]
    for file, part in zip(("train", "validation"), parts, strict=True):
        numpy.save(folder / f"{file}.npy", part[: len(part) // ROWS * ROWS].reshape(ROWS, -1).numpy())


def read_corpus(folder: Path) -> tuple[Tensor, Tensor]:
    train, validation = (torch.from_numpy(numpy.load(folder / f"{name}.npy")) for name in ("train", "validation"))
    return train, validation


def time_turns(name: str, classes: int, folder: Path, turns: int) -> dict[str, dict[str, float]]:
    """Median seconds of the layer and of the step, of plain and of ``name``, in alternating turns."""
    train, _ = read_corpus(folder)
    trainers = {one: Trainer(one, classes, train) for one in ("plain", name)}
    times: dict[str, dict[str, list[float]]] = {part: {one: [] for one in trainers} for part in ("layer", "step")}
    x, batch = torch.rand(ROWS * STEPS, SIZE) - 0.5, next(pieces(train))
    for turn in range(-1, turns):
        for one, trainer in trainers.items():
            # Plain takes seconds and leaves the caches empty, so a head of milliseconds has several runs to a turn.
            runs = 1 if one == "plain" else 5
            layer = statistics.median(trainer.layer(x, batch) for _ in range(runs))
            step = statistics.median(trainer.step() for _ in range(runs))
            if turn >= 0:
                times["layer"][one].append(layer)
                times["step"][one].append(step)
    return {part: {one: statistics.median(values) for one, values in found.items()} for part, found in times.items()}


def peak_memory(name: str, classes: int, folder: Path) -> float:
    """Most gigabytes that three training steps held, with the libraries and the text."""
    train, _ = read_corpus(folder)
    trainer = Trainer(name, classes, train)
    for _ in range(3):
        trainer.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def learn(name: str, classes: int, folder: Path, steps: int, seconds: float, goal: float) -> list[list[float]]:
    """[steps, training seconds, perplexity] of each validation; ends below ``goal`` twice, or with a budget."""
    train, validation = read_corpus(folder)
    trainer = Trainer(name, classes, train)
    done, clock, curve = 0, 0.0, [[0, 0.0, trainer.perplexity(validation)]]
    # Twice in a row, since one of many looks at few tokens may be lucky.
    while done < steps and clock < seconds and max(look[2] for look in curve[-2:]) > goal:
        for _ in range(min(max(EVERY, done // 10), steps - done)):
            clock += trainer.step()
            done += 1
        curve.append([done, clock, trainer.perplexity(validation)])
        print(f"{name}: step {done}, {clock:.1f} s, perplexity {curve[-1][2]:.1f}", file=sys.stderr, flush=True)
    return curve


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """``function(*arguments)`` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(corpus: str, classes: int, names: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Every figure of one corpus."""
    steps, turns, held_out = arguments.plain_steps, arguments.turns, arguments.held_out
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        apart(write_corpus, corpus, folder, ROWS * STEPS * arguments.pieces, held_out, classes)
        plain = apart(learn, "plain", classes, folder, steps, math.inf, 0.0)
        goal, wall = plain[-1][2], plain[-1][1]
        results = [{"head": "plain", "curve": plain, "memory_gb": apart(peak_memory, "plain", classes, folder)}]
        for name in names:
            found: dict[str, Any] = {"head": name, "options": KINDS[name]}
            found |= apart(time_turns, name, classes, folder, turns)
            found["memory_gb"] = apart(peak_memory, name, classes, folder)
            found["curve"] = apart(learn, name, classes, folder, 100 * steps, arguments.patience * wall, goal)
            reached = max(look[2] for look in found["curve"][-2:]) <= goal
            found["wall_seconds"] = found["curve"][-1][1] if reached else None
            found["ratios"] = {part: found[part]["plain"] / found[part][name] for part in ("layer", "step")}
            found["ratios"]["wall"] = wall / found["wall_seconds"] if reached else None
            results.append(found)
        return {"corpus": corpus, "vocabulary": classes, "goal": goal, "plain_seconds": wall, "heads": results}


def table(result: dict[str, Any]) -> Table:
    """One corpus."""
    title = "{corpus}, {vocabulary:,} words, to perplexity {goal:.1f} (plain: {plain_seconds:.0f} s)"
    drawn = Table(title=title.format(**result), title_justify="left")
    drawn.add_column("head")
    for column in ("layer ms", "x", "step ms", "x", "steps", "wall s", "x", "peak GB"):
        drawn.add_column(column, justify="right")
    for found in result["heads"]:
        name, memory = found["head"], f"{found['memory_gb']:.1f}"
        steps, seconds, perplexity = found["curve"][-1]
        if name == "plain":
            drawn.add_row(name, "", "", "", "", f"{steps}", f"{seconds:.1f}", "", memory)
            continue
        wall = found["ratios"]["wall"]
        drawn.add_row(
            name,
            f"{1e3 * found['layer'][name]:.1f}", f"{found['ratios']['layer']:.1f}",
            f"{1e3 * found['step'][name]:.1f}", f"{found['ratios']['step']:.1f}",
            f"{steps}", f"{seconds:.1f}", f"{wall:.1f}" if wall else f"stays at {perplexity:.1f}", memory,
        )  # fmt: skip
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("corpora", nargs="*", default=[], help="zipf, imdb; both if none is named")
    parser.add_argument("--heads", nargs="+", default=list(KINDS)[1:], choices=list(KINDS)[1:])
    parser.add_argument("--vocabulary", type=int, help="instead of 500,000 or 100,000")
    parser.add_argument("--plain-steps", type=int, default=400, help="after which plain's perplexity is the goal")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--held-out", type=int, default=7020, help="tokens of a validation, and one for each row")
    parser.add_argument("--pieces", type=int, default=4000, help="training steps until the synthetic text is over")
    parser.add_argument("--patience", type=float, default=0.2, help="the share of plain's time that a head may take")
    parser.add_argument("--quick", action="store_true", help="a small vocabulary and few steps; records nothing")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.vocabulary, arguments.plain_steps, arguments.turns, arguments.pieces = 2000, 20, 1, 200
    import record  # not above, where every process that measures memory would load it

    console, results = Console(width=120), []
    for corpus in arguments.corpora or (["zipf"] if arguments.quick else list(VOCABULARY)):
        results.append(measure(corpus, arguments.vocabulary or VOCABULARY[corpus], arguments.heads, arguments))
        console.print(table(results[-1]))
    if not arguments.quick:
        figures = {"definition": __doc__, "threads": torch.get_num_threads(), "turns": arguments.turns,
                   "results": results}  # fmt: skip
        print(record.write("-".join(["softmax", *arguments.corpora]), figures))


if __name__ == "__main__":
    main()
