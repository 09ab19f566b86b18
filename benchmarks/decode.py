"""Time generation beside a plain PyTorch loop on the same weights, in alternating turns.

python benchmarks/decode.py [--steps 200] [--turns 9] [--quick]

ours:   `seqapp.decoding` over `LanguageModel.start`.
plain:  nn.Embedding, nn.LSTM and nn.Linear in the loop that tutorials write: argmax, or topk, softmax and multinomial,
        or a beam search that keeps the best of beam x V at every step and reorders h and c.

Both take the same number of steps, since eos is made impossible in the weights they share, from a state that has read
one token. A token counts once per text, however many beams were searched.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import record
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from seqapp.beam_search import beam_search
from seqapp.data.tokenizers import EOS
from seqapp.decoding import Sample, generate
from seqapp.models.language_model import LanguageModel, build_language_model

HIDDEN, LAYERS, BEAMS, TEMPERATURE, TOP_K = 512, 2, 5, 0.8, 50
SIZES = {"characters": (70, 128), "subwords": (8000, 256)}
"""Vocabulary and embedding size."""
BATCHES = (1, 64)

Run = Callable[[], Tensor]


class Plain(nn.Module):
    """Embedding, LSTM and projection as the library has them."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        V, E = model.embedding.weight.shape
        self.embedding, self.lstm, self.project = (
            nn.Embedding(V, E), nn.LSTM(E, HIDDEN, LAYERS, batch_first=True), nn.Linear(HIDDEN, V)
        )  # fmt: skip
        own = model.state_dict()
        weights = {"embedding.weight": own["embedding.weight"]}
        for layer in range(LAYERS):
            V_, W, b = (own[f"encoder.layers.{layer}.{name}"] for name in ("V", "W", "b"))
            weights |= {
                f"lstm.weight_ih_l{layer}": V_, f"lstm.weight_hh_l{layer}": W,
                f"lstm.bias_ih_l{layer}": b, f"lstm.bias_hh_l{layer}": torch.zeros_like(b),
            }  # fmt: skip
        weights |= {f"project.{name}": own[f"head.project.{name}"] for name in ("weight", "bias")}
        self.load_state_dict(weights)

    def forward(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """tokens (N, 1) -> logits (N, V)."""
        y, state = self.lstm(self.embedding(tokens), state)
        return self.project(y[:, -1]), state


@torch.no_grad()
def plain_choice(model: Plain, first: Tensor, steps: int, *, sample: bool) -> Tensor:
    """first (N,) -> (N, steps)."""
    tokens, state, found = first[:, None], None, []
    for _ in range(steps):
        logits, state = model(tokens, state)
        if sample:
            logits = logits / TEMPERATURE
            least = logits.topk(TOP_K).values[:, -1:]
            logits[logits < least] = -torch.inf
            tokens = torch.multinomial(logits.softmax(-1), 1)
        else:
            tokens = logits.argmax(-1, keepdim=True)
        found.append(tokens)
    return torch.cat(found, 1)


@torch.no_grad()
def plain_beams(model: Plain, first: Tensor, steps: int) -> Tensor:
    """first (B,) -> the best text (B, steps)."""
    B, V = len(first), model.project.out_features
    tokens, state = first.repeat_interleave(BEAMS)[:, None], None
    scores = torch.full((B, BEAMS), -torch.inf)
    scores[:, 0] = 0
    texts = torch.empty(B * BEAMS, 0, dtype=torch.long)
    for _ in range(steps):
        logits, (h, c) = model(tokens, state)
        totals = scores[:, :, None] + logits.log_softmax(-1).view(B, BEAMS, V)
        scores, index = totals.view(B, -1).topk(BEAMS)
        rows = (index // V + BEAMS * torch.arange(B)[:, None]).flatten()
        state = h[:, rows], c[:, rows]
        tokens = (index % V).view(-1, 1)
        texts = torch.cat([texts[rows], tokens], 1)
    return texts.view(B, BEAMS, -1)[:, 0]


def ways(model: LanguageModel, plain: Plain, batch: int, steps: int) -> dict[str, dict[str, Run]]:
    """Each way of generating, by us and by the plain loop."""
    V = model.vocabulary_size
    prompts = [[4 + row % (V - 4)] for row in range(batch)]
    first = torch.tensor(prompts).flatten()

    def ours(sampler: Callable[[], Any] | None) -> Run:
        # From the token alone, as the plain loop: no prompt is read before.
        def run() -> Tensor:
            step, carry, _ = model.start([[]] * batch)
            chosen = {} if sampler is None else {"sampler": sampler()}
            return generate(step, carry, first, eos_id=EOS, max_steps=steps, **chosen).tokens

        return run

    def our_beams() -> Tensor:
        step, carry, _ = model.start([[]] * batch, copies=BEAMS)
        tokens = first.repeat_interleave(BEAMS)
        found = beam_search(step, carry, tokens, eos_id=EOS, beam_size=BEAMS, max_steps=steps)
        return torch.tensor([row[0].tokens for row in found.rows])

    return {
        "greedy": {"ours": ours(None), "plain": lambda: plain_choice(plain, first, steps, sample=False)},
        "sampling": {
            "ours": ours(lambda: Sample(range(batch), temperature=TEMPERATURE, top_k=TOP_K)),
            "plain": lambda: plain_choice(plain, first, steps, sample=True),
        },
        "beams": {"ours": our_beams, "plain": lambda: plain_beams(plain, first, steps)},
    }


def build(vocabulary: int, embedding: int) -> LanguageModel:
    """A model whose texts never end, with logits spread as those of a trained one."""
    torch.manual_seed(0)
    layers = [{"kind": "lstm", "hidden_size": HIDDEN}] * LAYERS
    model = build_language_model(vocabulary, 0, encoder={"kind": "stack", "layers": layers}, embedding_size=embedding)
    with torch.no_grad():
        model.embedding.weight.normal_()
        table = model.get_parameter("head.project.weight")
        table.normal_(0, 8 / HIDDEN**0.5)
        model.get_parameter("head.project.bias")[EOS] = -1e4
    return model.eval()


def measure(model: LanguageModel, batch: int, steps: int, turns: int) -> list[dict[str, Any]]:
    """Median seconds of every way, and how many tokens that makes a second."""
    results = []
    for way, runs in ways(model, Plain(model).eval(), batch, steps).items():
        times: dict[str, list[float]] = {name: [] for name in runs}
        texts = {name: run() for name, run in runs.items()}
        for _ in range(turns):
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - started)
        medians = {name: statistics.median(values) for name, values in times.items()}
        result: dict[str, Any] = {
            "way": way,
            "batch": batch,
            "seconds": medians,
            "lowest": {name: min(values) for name, values in times.items()},
            "tokens_per_second": {name: batch * steps / seconds for name, seconds in medians.items()},
            "ours_to_plain": medians["plain"] / medians["ours"],
        }
        if way != "sampling":  # their draws differ
            result["same_tokens"] = float((texts["ours"] == texts["plain"]).double().mean())
        results.append(result)
    return results


def table(name: str, results: list[dict[str, Any]]) -> Table:
    """One vocabulary's ways at every batch size."""
    drawn = Table(title=f"{name}: {SIZES[name][0]} tokens, {LAYERS} x {HIDDEN} LSTM", title_justify="left")
    for column in ("way", "batch", "ours tokens/s", "plain tokens/s", "ours / plain", "same tokens"):
        drawn.add_column(column, justify="left" if column == "way" else "right")
    for result in results:
        rates = result["tokens_per_second"]
        same = f"{result['same_tokens']:.1%}" if "same_tokens" in result else ""
        drawn.add_row(result["way"], str(result["batch"]), f"{rates['ours']:,.0f}", f"{rates['plain']:,.0f}",
                      f"{result['ours_to_plain']:.2f}", same)  # fmt: skip
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="a short run that records nothing")
    arguments = parser.parse_args()
    steps, turns = (20, 3) if arguments.quick else (arguments.steps, arguments.turns)
    console, results = Console(width=120), []
    for name, (vocabulary, embedding) in SIZES.items():
        model = build(vocabulary, embedding)
        part = [result for batch in BATCHES for result in measure(model, batch, steps, turns)]
        console.print(table(name, part))
        results += [{"vocabulary": vocabulary, "embedding": embedding, **result} for result in part]
    if not arguments.quick:
        path = record.write(
            "decode",
            {
                "definition": "median seconds of alternating runs in float32, start of the state included; a token "
                "counts once per text, whatever the number of beams; same_tokens is the share of places where both "
                "loops chose the same token",
                "layers": LAYERS,
                "hidden": HIDDEN,
                "beams": BEAMS,
                "temperature": TEMPERATURE,
                "top_k": TOP_K,
                "steps": steps,
                "turns": turns,
                "threads": torch.get_num_threads(),
                "results": results,
            },
        )
        print(path)


if __name__ == "__main__":
    main()
