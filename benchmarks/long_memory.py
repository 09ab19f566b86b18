"""Train every network on the long-memory problems and print the longest length that each one solves.

python benchmarks/long_memory.py [--networks NAME...] [--problems NAME...] [--seeds 1 2] [--jobs 2]

A network starts afresh at each length of a ladder, sees new random sequences at every step, and stops when it has
solved the length or used up its steps; the ladder ends at the first length it does not solve. Solved means that of
512 sequences drawn for the check alone 99 % have every asked answer right, or, where numbers are added, a mean squared
error below 0.01; the best of its checks, one every 50 steps, counts. Of a^n b^n there are only T strings up to length
T, so there the check holds none that training has not. Finished runs are kept in runs/long-memory.jsonl, so that
Ctrl-C loses nothing and the same command goes on. With --networks it also prints how far each ladder's last rung got:
the share of sequences right, or the mean squared error with a minus.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import record
import report
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from seqapp.data.memory import ROWS, Rows
from seqapp.models.in_step import build_in_step
from seqapp.nn.recurrent import ENCODERS, RECURRENT, NotFinite
from seqapp.registry import Spec

HIDDEN = 64
LENGTHS = [2, 5, 10, 20, 50, 100, 200]
ROWS_PER_STEP, CHECK_EVERY, CHECK_ROWS = 64, 50, 512
KEPT = Path("runs/long-memory.jsonl")
VERSION = 2
"""Of what a kept run means; runs of another version are not used."""


def _kind(kind: str, **options: Any) -> dict[str, Any]:
    return {"kind": kind, "hidden_size": HIDDEN, **options}


NETWORKS: dict[str, Spec] = {
    "elman": _kind("elman"),
    "elman, small random start": _kind("elman", recurrent_init="uniform"),
    "elman, relu, identity start": _kind("elman", activation="relu", recurrent_init="identity"),
    "elman_1step": _kind("elman_1step"),
    "jordan": _kind("jordan"),
    "jordan_memory": _kind("jordan_memory"),
    "output_recurrent": _kind("output_recurrent"),
    "state_space": _kind("state_space"),
    "tdnn, window 5": _kind("tdnn"),
    "tdnn, window 21": _kind("tdnn", window=21),
    "narx": _kind("narx"),
    "narx, 10 delays": _kind("narx", input_delays=10, output_delays=10),
    "lstm": _kind("lstm"),
    "lstm, forget bias 5": _kind("lstm", forget_bias=5.0),
    "lstm_linear_output": _kind("lstm_linear_output"),
    "gru": _kind("gru"),
    "gru_reset_after": _kind("gru_reset_after"),
    "mingru": _kind("mingru"),
    "mingru, update bias -5": _kind("mingru", update_bias=-5.0),
    "minlstm": _kind("minlstm"),
    "2 x mingru": {"kind": "stack", "layers": [_kind("mingru"), _kind("mingru")]},
    "2 x elman, skip_to_output": {"kind": "stack", "skip_to_output": True, "layers": [_kind("elman"), _kind("elman")]},
    "birnn of lstm": {"kind": "birnn", "layer": _kind("lstm")},
}


@dataclass(frozen=True)
class Problem:
    """What is drawn, and what counts as solved."""

    rows: str
    options: dict[str, Any]
    check_options: dict[str, Any]
    says: str
    shows_answers: bool = False
    """Whether later inputs hold the answers, so that only a causal network is asked."""

    def draw(self, chance: torch.Generator, rows: int, length: int, *, check: bool = False) -> Rows:
        """Fresh sequences, to learn from or for a check."""
        return ROWS[self.rows](chance, rows, length, **self.options, **(self.check_options if check else {}))


PROBLEMS = {
    "first token": Problem("first_token", {}, {}, "the first of T + 1 symbols, at the end"),
    "copy": Problem("copy", {"symbols": 4, "recited": 4}, {}, "4 of 4 symbols, after a delay of T"),
    "adding": Problem("adding", {}, {}, "the sum of two marked numbers among T"),
    "parity": Problem("parity", {}, {"asked_at": "end"}, "of T bits; asked at every step, checked at the end"),
    "parity at the end": Problem("parity", {"asked_at": "end"}, {}, "of T bits; asked at the end only"),
    "a^n b^n": Problem("anbn", {}, {}, "every next symbol that the rule decides, n up to T", shows_answers=True),
}


def check(model: Any, problem: Problem, length: int, chance: torch.Generator) -> float:
    """The share of sequences with every answer right, or with numbers the negative mean squared error."""
    rows = problem.draw(chance, CHECK_ROWS, length, check=True)
    model.eval()
    with torch.inference_mode():
        outputs, _ = model(rows.inputs, rows.lengths)
    model.train()
    if rows.targets.is_floating_point():
        return -float(mse_loss(outputs[rows.asked], rows.targets[rows.asked]))
    return float(((outputs.argmax(-1) == rows.targets) | ~rows.asked).all(1).double().mean())


def loss(outputs: Tensor, rows: Rows) -> Tensor:
    answers, targets = outputs[rows.asked], rows.targets[rows.asked]
    return mse_loss(answers, targets) if targets.is_floating_point() else cross_entropy(answers, targets)


def solve(network: str, name: str, length: int, seed: int, steps: int, learning_rate: float) -> dict[str, Any]:
    """Train one network on one length."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    problem = PROBLEMS[name]
    chance = torch.Generator().manual_seed(seed)
    checks = torch.Generator().manual_seed(1_000_000 + seed)
    first = problem.draw(chance, 1, length)
    kinds: dict[str, Any] = {"reads": "numbers" if first.inputs.is_floating_point() else "symbols",
                             "answers": "numbers" if first.targets.is_floating_point() else "symbols"}  # fmt: skip
    model = build_in_step(first.vocabulary_size, first.classes, encoder=NETWORKS[network], **kinds)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    enough = -0.01 if kinds["answers"] == "numbers" else 0.99
    best, step, failed = float("-inf"), 0, ""
    started = time.perf_counter()
    try:
        for step in range(1, steps + 1):
            rows = problem.draw(chance, ROWS_PER_STEP, length)
            optimizer.zero_grad()
            outputs, _ = model(rows.inputs, rows.lengths)
            loss(outputs, rows).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % CHECK_EVERY == 0:
                best = max(best, check(model, problem, length, checks))
                if best >= enough:
                    break
    except NotFinite as error:
        failed = str(error)
    return {"network": network, "problem": name, "length": length, "seed": seed, "best": best,
            "solved": best >= enough, "steps": step, "seconds": time.perf_counter() - started, "failed": failed,
            "version": VERSION, "budget": steps, "learning_rate": learning_rate,
            "commit": record.SOURCE.get("git_commit", ""),
            "parameters": sum(parameter.numel() for parameter in model.parameters())}  # fmt: skip


def climb(network: str, name: str, seed: int, steps: int, learning_rate: float, kept: list[dict[str, Any]],
          ) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The ladder of one network, from what is kept on."""
    done = {run["length"]: run for run in kept}
    for length in LENGTHS:
        run = done.get(length) or solve(network, name, length, seed, steps, learning_rate)
        yield run
        if not run["solved"]:
            return


def ladder(*arguments: Any) -> list[dict[str, Any]]:
    return list(climb(*arguments))


def table(runs: list[dict[str, Any]], networks: list[str], problems: list[str]) -> Table:
    """Networks down, problems across; the median seed, and the lowest and highest where they differ."""
    drawn = Table(title=f"longest length solved (ladder {', '.join(map(str, LENGTHS))})", title_justify="left")
    drawn.add_column("network")
    for problem in problems:
        drawn.add_column(problem, justify="right")
    for network in networks:
        line = []
        for problem in problems:
            found = [run for run in runs if (run["network"], run["problem"]) == (network, problem)]
            line.append(report.solved(found, LENGTHS))
        drawn.add_row(network, *line)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--steps", type=int, default=2000, help="most optimiser steps of one training")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, one thread each")
    arguments = parser.parse_args()
    for spec in NETWORKS.values():
        ENCODERS.check(spec)
    settings = (arguments.steps, arguments.learning_rate)
    kept = [json.loads(line) for line in KEPT.read_text(encoding="utf-8").splitlines()] if KEPT.is_file() else []
    kept = [run for run in kept if (run["version"], run["budget"], run["learning_rate"]) == (VERSION, *settings)]
    console = Console(width=140)
    runs: list[dict[str, Any]] = []
    KEPT.parent.mkdir(exist_ok=True)
    wanted = [(network, problem, seed) for seed in arguments.seeds for problem in arguments.problems
              for network in arguments.networks
              if NETWORKS[network]["kind"] in RECURRENT or not PROBLEMS[problem].shows_answers]  # fmt: skip
    with ProcessPoolExecutor(arguments.jobs) as pool, Progress(console=console) as bar:
        shown_bar = bar.add_task("ladders", total=len(wanted))
        futures = {}
        for key in wanted:
            mine = [run for run in kept if (run["network"], run["problem"], run["seed"]) == key]
            futures[pool.submit(ladder, *key, *settings, mine)] = {run["length"] for run in mine}
        try:
            for future in as_completed(futures):
                found = future.result()
                runs += found
                with KEPT.open("a", encoding="utf-8") as file:
                    for run in found:
                        if run["length"] not in futures[future]:
                            file.write(json.dumps(run) + "\n")
                bar.advance(shown_bar)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            console.print(table(runs, arguments.networks, arguments.problems))
            raise SystemExit(130) from None
    console.print(table(runs, arguments.networks, arguments.problems))
    if len(arguments.networks) < len(NETWORKS):
        for run in runs:
            if not run["solved"]:
                console.print(f"{run['network']}, {run['problem']}, seed {run['seed']}: {run['length']} not solved, "
                              f"best {run['best']:.4g} after {run['steps']:,} steps {run['failed']}")  # fmt: skip
    if arguments.networks == list(NETWORKS) and arguments.problems == list(PROBLEMS):
        path = record.write(
            "long-memory",
            {
                "definition": "longest length of the ladder solved, with all shorter ones, from a fresh start at each",
                "hidden": HIDDEN,
                "lengths": LENGTHS,
                "steps": arguments.steps,
                "rows_per_step": ROWS_PER_STEP,
                "learning_rate": arguments.learning_rate,
                "seeds": arguments.seeds,
                "problems": {name: problem.says for name, problem in PROBLEMS.items()},
                "networks": {name: dict(spec) for name, spec in NETWORKS.items()},
                "commits": sorted({run["commit"] for run in runs}),
                "runs": runs,
            },
        )
        print(path)


if __name__ == "__main__":
    main()
