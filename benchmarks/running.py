"""Time completions that grow side by side in a running batch, beside one answered after the other.

python benchmarks/running.py [--tokens 200] [--turns 5] [--quick]

together:    all requests join one running batch, as in the server.
one by one:  the same requests, each answered before the next begins.
coming:      in the running batch, a request comes at every step, until as many are inside; each is as long, so that
             from then on rows leave and join between steps.

No text ends before its tokens are written. A first token is that of a streamed request that came with all others.
"""

from __future__ import annotations

import argparse
import statistics
import string
import time
from collections.abc import Callable
from typing import Any

import record
import torch
from rich.console import Console
from rich.table import Table

from seqapp.completion import GenerationInput
from seqapp.data.text import Passage
from seqapp.tasks import TASKS
from seqapp.tasks.running import Running, Said

HIDDEN, LAYERS, TEMPERATURE, TOP_K = 512, 2, 0.8, 50
PROMPT = "The quick brown fox jumps over"
TOGETHER = (1, 8, 64)

Measured = dict[str, float]


def build() -> tuple[Any, Any]:
    """A task over printable characters and a model of random weights."""
    task = TASKS.build({"kind": "generation", "tokenizer": {"kind": "character"}, "reads": "rows"})
    task.prepare([Passage(string.printable)])
    torch.manual_seed(0)
    layers = [{"kind": "lstm", "hidden_size": HIDDEN}] * LAYERS
    model = task.build_model({"kind": "language_model", "embedding_size": 128,
                              "encoder": {"kind": "stack", "layers": layers}})  # fmt: skip
    return task, model.eval().requires_grad_(False)


def request(seed: int, tokens: int) -> GenerationInput:
    return GenerationInput(prompt=PROMPT, seed=seed, max_tokens=tokens, min_tokens=tokens, temperature=TEMPERATURE,
                           top_k=TOP_K)  # fmt: skip


def together(running: Running, count: int, tokens: int) -> Measured:
    """All come at once."""
    began = time.perf_counter()
    for seed in range(count):
        running.join(seed, request(seed, tokens), stream=True)
    firsts: dict[Any, float] = {}
    steps = []
    while len(running):
        before = time.perf_counter()
        told = running.step()
        now = time.perf_counter()
        steps.append(now - before)
        for said in told:
            assert isinstance(said, Said)
            firsts.setdefault(said.key, now - began)
    seconds = time.perf_counter() - began
    return {"tokens_per_second": count * tokens / seconds, "first_token": statistics.median(firsts.values()),
            "last_first_token": max(firsts.values()), "longest_step": max(steps)}  # fmt: skip


def one_by_one(running: Running, count: int, tokens: int) -> Measured:
    """Each is answered before the next begins."""
    began = time.perf_counter()
    firsts = []
    for seed in range(count):
        running.join(seed, request(seed, tokens), stream=True)
        first = None
        while len(running):
            if running.step() and first is None:
                first = time.perf_counter() - began
        firsts.append(first or 0.0)
    seconds = time.perf_counter() - began
    return {"tokens_per_second": count * tokens / seconds, "first_token": statistics.median(firsts),
            "last_first_token": max(firsts)}  # fmt: skip


def coming(running: Running, count: int, tokens: int) -> Measured:
    """One comes at every step while there is room, three times as many in all."""
    began = time.perf_counter()
    came, steps = 0, []
    while came < 3 * count or len(running):
        if came < 3 * count and len(running) < count:
            running.join(came, request(came, tokens), stream=True)
            came += 1
        before = time.perf_counter()
        running.step()
        steps.append(time.perf_counter() - before)
    return {"tokens_per_second": 3 * count * tokens / (time.perf_counter() - began), "longest_step": max(steps)}


WAYS: dict[str, Callable[[Running, int, int], Measured]] = {
    "together": together,
    "one by one": one_by_one,
    "coming": coming,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a short run that records nothing")
    arguments = parser.parse_args()
    tokens, turns = (20, 1) if arguments.quick else (arguments.tokens, arguments.turns)
    task, model = build()
    running = task.running(model)
    results = []
    for count in TOGETHER:
        for way in WAYS.values():  # warm: weights are made ready for as many rows
            way(running, count, 3)
        found: dict[str, list[Measured]] = {name: [] for name in WAYS}
        for _ in range(turns):
            for name, way in WAYS.items():
                found[name].append(way(running, count, tokens))
        results += [
            {"way": name, "requests": count,
             **{figure: statistics.median(one[figure] for one in every) for figure in every[0]}}
            for name, every in found.items()
        ]  # fmt: skip
    drawn = Table(title=f"{task.tokenizer.size} characters, {LAYERS} x {HIDDEN} LSTM", title_justify="left")
    for column in ("way", "requests", "tokens/s", "first token ms", "last first token ms", "longest step ms"):
        drawn.add_column(column, justify="left" if column == "way" else "right")
    for result in results:
        times = [f"{1e3 * result[name]:,.1f}" if name in result else ""
                 for name in ("first_token", "last_first_token", "longest_step")]  # fmt: skip
        drawn.add_row(result["way"], str(result["requests"]), f"{result['tokens_per_second']:,.0f}", *times)
    Console(width=120).print(drawn)
    if not arguments.quick:
        print(record.write("running", {
            "definition": "medians of alternating turns in float32; tokens written per second of wall time, prompts "
            "read included; a first token is timed from the moment at which all came; a longest step is the longest "
            "of a turn",
            "layers": LAYERS, "hidden": HIDDEN, "prompt_tokens": len(PROMPT), "tokens": tokens, "turns": turns,
            "threads": torch.get_num_threads(), "results": results,
        }))  # fmt: skip


if __name__ == "__main__":
    main()
