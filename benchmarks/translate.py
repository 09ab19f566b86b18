"""Time translation and its training beside OpenNMT-py and JoeyNMT, on the same weights, in alternating turns.

python benchmarks/translate.py [--opennmt PYTHON] [--joeynmt PYTHON] [--minutes 5] [--turns 5] [--quick]

B batch, S source length, T target length, E embedding, H hidden, U source and V target vocabulary.

Multi30k, English to German, lower-cased, Moses tokens; words seen twice or more. One architecture for all: embeddings
256, a bidirectional LSTM of 128 for each direction, a decoder LSTM of 256 with general attention and input feeding
(Luong, Pham & Manning 2015), batches of 64 pairs of like length. Our model is trained for some minutes and its weights
are given to the peers, so that all translate alike and outputs can be compared; then all are timed. Each peer runs in
an environment of its own, see benchmarks/peers/translation/README.md, and reads and writes ids: making batches is not
counted, for nobody.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from rich.console import Console
from rich.table import Table
from sacrebleu.metrics.bleu import BLEU
from sacremoses import MosesPunctNormalizer, MosesTokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.module import build_optimizer
from seqapp.data.batching import pad
from seqapp.data.public.translation import multi30k
from seqapp.data.tokenizers import BOS, EOS, UNK
from seqapp.models.translator import Translator, build_translator
from seqapp.translation import search

DRIVERS = Path(__file__).parent / "peers" / "translation"
SPECIALS = 4
EMBEDDING, HIDDEN, BATCH, LONGEST = 256, 256, 64, 60
DROPOUT, LEARNING_RATE, CLIP = 0.3, 2e-3, 5.0
WAYS = [(64, 1), (64, 5), (1, 1), (1, 5)]
"""Sentences at a time, and beams; 1 beam is greedy."""

Ids = list[int]
Pairs = list[tuple[Ids, Ids]]


class Corpus:
    """Multi30k as word ids.

    Attributes:
        vocabularies: U and V.
        train: batches of 64 pairs of like length, in random order.
        test: so many sources of all lengths, sorted by length.
        references: their translations, lower-cased Moses tokens.
    """

    def __init__(self, sentences: int) -> None:
        splits = multi30k(source="en", target="de")
        sides = [
            (self._tokens([pair.source for pair in part], "en"), self._tokens([pair.target for pair in part], "de"))
            for part in (splits.train, splits.test)
        ]
        words: list[list[str]] = []
        for side in sides[0]:
            counts = Counter(word for text in side for word in text)
            words.append([word for word, count in counts.most_common() if count > 1])
        ids = [{word: SPECIALS + index for index, word in enumerate(side)} for side in words]
        self._words = words[1]
        self.vocabularies = (SPECIALS + len(words[0]), SPECIALS + len(words[1]))

        def encode(texts: list[list[str]], table: dict[str, int]) -> list[Ids]:
            return [[table.get(word, UNK) for word in text] for text in texts]

        train = list(zip(*(encode(side, table) for side, table in zip(sides[0], ids, strict=True)), strict=True))
        train.sort(key=lambda pair: (len(pair[0]), len(pair[1])))
        self.train: list[Pairs] = [train[start : start + BATCH] for start in range(0, len(train), BATCH)]
        random.Random(1).shuffle(self.train)
        test = sorted(zip(encode(sides[1][0], ids[0]), sides[1][1], strict=True), key=lambda pair: len(pair[0]))
        test = test[:: max(1, len(test) // sentences)][:sentences]
        self.test, self.references = [source for source, _ in test], [" ".join(target) for _, target in test]

    @staticmethod
    def _tokens(texts: Sequence[str], language: str) -> list[list[str]]:
        normalize, tokenize = MosesPunctNormalizer(language).normalize, MosesTokenizer(language).tokenize
        return [tokenize(normalize(text.lower()), escape=False) for text in texts]

    def bleu(self, translations: list[Ids]) -> float:
        """BLEU-4 of lower-cased Moses tokens, words that the vocabulary lacks left as unknown."""
        texts = [" ".join("<unk>" if index < SPECIALS else self._words[index - SPECIALS] for index in row)
                 for row in translations]  # fmt: skip
        scorer = BLEU(tokenize="none", force=True)
        return float(scorer.corpus_score(texts, [self.references[: len(texts)]]).score)


def build(vocabularies: tuple[int, int]) -> Translator:
    """The architecture that all can have."""
    torch.manual_seed(1)
    return build_translator(
        *vocabularies,
        encoder={"kind": "birnn", "layer": {"kind": "lstm", "hidden_size": HIDDEN // 2}},
        decoder={"kind": "lstm", "hidden_size": HIDDEN},
        attention={"kind": "general"},
        embedding_size=EMBEDDING,
        read_out_size=HIDDEN,
        input_feeding=True,
        source_dropout=DROPOUT,
        target_dropout=DROPOUT,
        output_dropout=DROPOUT,
    )


def weights(model: Translator) -> dict[str, Tensor]:
    """Weights by names that the drivers know."""
    own = model.state_dict()
    names = {"source.embedding": "source_embedding.weight", "target.embedding": "target_embedding.weight"}
    names |= {f"encoder.{side}.{leaf}": f"encoder.{side}.{leaf}" for side in ("ahead", "back") for leaf in "VWb"}
    names |= {f"decoder.{leaf}": f"decoder.lower.{leaf}" for leaf in "VWb"}
    names |= {"attention.W": "decoder.attention.W.weight"}
    for leaf in ("weight", "bias"):
        names |= {f"bridge.{leaf}": f"bridge.project.{leaf}", f"combine.{leaf}": f"decoder.combine.{leaf}",
                  f"output.{leaf}": f"head.project.{leaf}"}  # fmt: skip
    left = set(own) - set(names.values())
    if left:
        raise SystemExit(f"weights that the peers have no place for: {', '.join(sorted(left))}")
    return {name: own[path] for name, path in names.items()}


class Ours:
    """Our model, its training and its search.

    Args:
        corpus: what is read.
        bfloat16: products of training in bfloat16, as `seqapp train` makes them where it is asked to.
    """

    def __init__(self, corpus: Corpus, model: Translator, *, bfloat16: bool = True) -> None:
        self.corpus, self.model, self.bfloat16 = corpus, model, bfloat16
        self.optimizer = build_optimizer(model, learning_rate=LEARNING_RATE, weight_decay=0.0)
        self.batches = [self._tensors(pairs) for pairs in corpus.train]

    @staticmethod
    def _tensors(pairs: Pairs) -> tuple[Tensor, ...]:
        source, source_lengths = pad([source for source, _ in pairs])
        inputs, lengths = pad([[BOS, *target] for _, target in pairs])
        targets, _ = pad([[*target, EOS] for _, target in pairs])
        return source, source_lengths, inputs, targets, lengths

    def train(self, first: int, count: int) -> float:
        """Target tokens a second of so many steps."""
        self.model.train().requires_grad_(True)
        tokens, started = 0, time.perf_counter()
        for index in range(first, first + count):
            source, source_lengths, inputs, targets, lengths = self.batches[index % len(self.batches)]
            self.optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
                y, _ = self.model(source, source_lengths, inputs, lengths)
                scored = torch.arange(y.shape[1]) < lengths[:, None]
                loss = self.model.head.loss(y[scored], targets[scored])
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimizer.step()
            tokens += int(lengths.sum())
        return tokens / (time.perf_counter() - started)

    def translate(self, batch: int, beams: int, sentences: int = 10**9) -> tuple[float, list[Ids]]:
        """Seconds, and the translations of the test sentences, without their ends."""
        self.model.eval().requires_grad_(False)  # as a loaded bundle is
        found: list[Ids] = []
        sources = self.corpus.test[:sentences]
        started = time.perf_counter()
        for start in range(0, len(sources), batch):
            part = sources[start : start + batch]
            rows = search([self.model], part, [LONGEST] * len(part), beams, length_penalty=0.0)
            found += [best.tokens for best, *_ in rows]
        return time.perf_counter() - started, found


class Peer:
    """A driver in its own environment.

    Args:
        python: the environment's interpreter.
        driver: the script.
        folder: what it is given.
        threads: how many it may use.

    Raises:
        SystemExit: if the driver ends.
    """

    def __init__(self, python: Path, driver: Path, folder: Path, threads: int) -> None:
        self._log = (folder / f"{driver.stem}.log").open("w+")
        self._process = subprocess.Popen(
            [python, driver, folder, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise SystemExit(f"the driver ended:\n{self._log.read()[-3000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def translate(self, batch: int, beams: int, sentences: int = 10**9) -> tuple[float, list[Ids]]:
        """As :meth:`Ours.translate`."""
        answer = self._ask(do="translate", batch=batch, beams=beams, sentences=sentences)
        return answer["seconds"], answer["translations"]

    def train(self, first: int, count: int) -> float:
        """As :meth:`Ours.train`."""
        answer = self._ask(do="train", first=first, count=count)
        return float(answer["tokens"]) / float(answer["seconds"])

    def close(self) -> None:
        """End the driver."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


@contextmanager
def peers(arguments: argparse.Namespace, corpus: Corpus, model: Translator) -> Iterator[dict[str, Peer]]:
    """The drivers asked for, with the corpus and the model's weights."""
    options = {"embedding_size": EMBEDDING, "hidden_size": HIDDEN, "dropout": DROPOUT, "learning_rate": LEARNING_RATE,
               "clip": CLIP, "longest": LONGEST}  # fmt: skip
    data = {"options": options, "vocabularies": corpus.vocabularies, "train": corpus.train, "test": corpus.test}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data.json").write_text(json.dumps(data), encoding="utf-8")
        np.savez(folder / "weights.npz", **{key: value.numpy() for key, value in weights(model).items()})  # type: ignore[arg-type]
        pythons = {"OpenNMT-py": (arguments.opennmt, "drive_opennmt.py"),
                   "JoeyNMT": (arguments.joeynmt, "drive_joeynmt.py")}  # fmt: skip
        started: dict[str, Peer] = {}
        try:
            for peer, (python, driver) in pythons.items():
                if python:
                    started[peer] = Peer(python.absolute(), DRIVERS / driver, folder, arguments.threads)
            yield started
        finally:
            for running in started.values():
                running.close()


def decoding(corpus: Corpus, programs: dict[str, Any], batch: int, beams: int, turns: int) -> dict[str, Any]:
    """Sentences a second of each program, the ratio to the peers, and how alike the translations are."""
    sentences = len(corpus.test)
    for program in programs.values():
        program.translate(batch, beams, 4 * batch)
    times: dict[str, list[float]] = {name: [] for name in programs}
    found: dict[str, list[Ids]] = {}
    for _ in range(turns):
        for name, program in programs.items():
            seconds, found[name] = program.translate(batch, beams)
            times[name].append(seconds)
    ours = found["seqapp"]
    return {
        "batch": batch,
        "beams": beams,
        "sentences": sentences,
        "turns": turns,
        "seconds": times,
        "sentences_per_second": {name: sentences / statistics.median(values) for name, values in times.items()},
        "ratios": _ratios(times, lambda mine, other: other / mine),
        "same_translations": {
            name: sum(a == b for a, b in zip(ours, rows, strict=True)) / sentences for name, rows in found.items()
        },
        "tokens": {name: sum(map(len, rows)) for name, rows in found.items()},
        "bleu": {name: corpus.bleu(rows) for name, rows in found.items()},
    }


def training(programs: dict[str, Any], steps: int, turns: int) -> dict[str, Any]:
    """Target tokens a second of each program and the ratio to the peers."""
    rates: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(turns + 1):
        for name, program in programs.items():
            rate = program.train(turn * steps, steps)
            if turn:  # the first warms up
                rates[name].append(rate)
    return {
        "steps": steps,
        "turns": turns,
        "tokens_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "all": rates,
        "ratios": _ratios(rates, lambda mine, other: mine / other),
    }


def _ratios(values: dict[str, list[float]], of: Callable[[float, float], float]) -> dict[str, dict[str, float]]:
    """Ours to each peer, turn by turn: median, lowest, highest."""
    found = {}
    for name, others in values.items():
        if name.startswith("seqapp"):
            continue
        ratios = sorted(map(of, values["seqapp"], others))
        found[name] = {"median": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1]}
    return found


def table(names: list[str], decoded: list[dict[str, Any]], trained: dict[str, Any]) -> Table:
    """One row a program."""
    drawn = Table(title="sentences/s on test_2016_flickr, and training target tokens/s", title_justify="left")
    drawn.add_column("program")
    for result in decoded:
        search = "greedy" if result["beams"] == 1 else f"beam {result['beams']}"
        drawn.add_column(f"{search} batch {result['batch']}", justify="right")
    drawn.add_column("training", justify="right")
    for name in names:
        cells = [f"{result['sentences_per_second'][name]:,.0f}" if name in result["sentences_per_second"] else ""
                 for result in decoded]  # fmt: skip
        drawn.add_row(name, *cells, f"{trained['tokens_per_second'][name]:,.0f}")
        if not name.startswith("seqapp"):
            ratios = [f"x {result['ratios'][name]['median']:.2f}" for result in decoded]
            drawn.add_row("  seqapp beside it", *ratios, f"x {trained['ratios'][name]['median']:.2f}")
            same = [f"{result['same_translations'][name]:.1%}" for result in decoded]
            drawn.add_row("  same translations", *same, "")
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--opennmt", type=Path, help="python of an environment with OpenNMT-py")
    parser.add_argument("--joeynmt", type=Path, help="python of an environment with JoeyNMT")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training before anything is timed")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="training steps of a turn")
    parser.add_argument("--sentences", type=int, default=1000, help="test sentences of a turn, up to 1,000")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--weights", type=Path, help="weights are kept here; no training where they are")
    parser.add_argument("--quick", action="store_true", help="a short run that records nothing")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.turns, arguments.sentences, arguments.steps = 3, min(arguments.sentences, 128), 5
    torch.set_num_threads(arguments.threads)
    console = Console(width=160)

    corpus = Corpus(arguments.sentences)
    model = build(corpus.vocabularies)
    ours = Ours(corpus, model)
    if arguments.weights and arguments.weights.exists():
        model.load_state_dict(load_file(arguments.weights))
    else:
        step, started = 0, time.perf_counter()
        while time.perf_counter() - started < 60 * arguments.minutes:
            ours.train(step, 20)
            step += 20
        console.print(f"trained for {step} steps, {step / len(corpus.train):.1f} epochs")
        if arguments.weights:
            save_file(model.state_dict(), arguments.weights)
    with peers(arguments, corpus, model) as running:
        gc.collect()
        gc.freeze()  # as the drivers do
        programs: dict[str, Any] = {"seqapp": ours, **running}
        decoded = []
        for batch, beams in WAYS:
            decoded.append(decoding(corpus, programs, batch, beams, arguments.turns))
            rates = {name: round(rate) for name, rate in decoded[-1]["sentences_per_second"].items()}
            console.print(f"batch {batch}, beams {beams}: {rates}, BLEU {decoded[-1]['bleu']}")
        single = Ours(corpus, copy.deepcopy(model), bfloat16=False)
        trained = training({"seqapp": ours, "seqapp, float32": single, **running}, arguments.steps, arguments.turns)
    console.print(table(list(trained["tokens_per_second"]), decoded, trained))
    if not arguments.quick:
        path = record.write(
            "translate",
            {
                "definition": "median of alternating turns; sentences of test_2016_flickr a second from ids to ids, "
                f"sorted by length, at most {LONGEST} tokens, no length penalty; target tokens a second, their ends "
                "counted, padding not, of batches made beforehand: forward, backward, clipping and Adam. All programs "
                "have the same weights when decoding is timed. bleu is BLEU-4 of lower-cased Moses tokens; "
                "same_translations is the share equal to ours, token by token",
                "architecture": {
                    "vocabularies": corpus.vocabularies, "embedding": EMBEDDING, "encoder": HIDDEN // 2,
                    "decoder": HIDDEN, "attention": "general, input feeding", "batch": BATCH, "dropout": DROPOUT,
                },
                "minutes_of_training": arguments.minutes,
                "threads": arguments.threads,
                "decoding": decoded,
                "training": trained,
            },
        )  # fmt: skip
        print(path)


if __name__ == "__main__":
    main()
