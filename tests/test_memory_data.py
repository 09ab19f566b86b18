"""Problems made by rule: every drawn sequence obeys an independent statement of its rule, and splits share nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from seqapp.data import memory
from seqapp.data.memory import ROWS, Rows, as_steps
from seqapp.data.splits import SOURCES, Splits, split_by_group
from seqapp.data.steps import Steps, read_steps
from seqapp.errors import ConfigError, DataError

KINDS = list(ROWS)
kinds = pytest.mark.parametrize("kind", KINDS)


def drawn(kind: str, rows: int, length: int, *, seed: int = 1, **options: Any) -> Rows:
    return ROWS[kind](torch.Generator().manual_seed(seed), rows, length, **options)


def small(kind: str, **options: Any) -> Splits[Steps]:
    sizes = {"train": 60} if kind == "anbn" else {"train": 60, "validation": 20, "test": 20}
    return SOURCES.build({"kind": kind, **sizes, **options})


@kinds
@pytest.mark.parametrize("length", [3, 17])
def test_shapes_types_and_bounds(kind: str, length: int) -> None:
    rows = drawn(kind, 12, length)
    size = rows.inputs.shape[1]
    assert rows.inputs.shape[:2] == rows.targets.shape[:2] == rows.asked.shape == (12, size)
    assert size == rows.lengths.max()
    assert rows.asked.any(1).all()
    outside = torch.arange(size) >= rows.lengths[:, None]
    assert not rows.asked[outside].any()
    assert not rows.inputs[outside].any()
    assert not rows.targets[~rows.asked].any()
    for values, count in ((rows.inputs, rows.vocabulary_size), (rows.targets, rows.classes)):
        if values.dim() == 2:
            assert values.dtype == torch.int64
            assert 0 <= values.min() <= values.max() < count
        else:
            assert values.dtype == torch.float32
            assert values.shape[2] == count
            assert values.isfinite().all()


@kinds
def test_a_seed_decides_everything(kind: str) -> None:
    assert all(
        torch.equal(one, other) for one, other in zip(drawn(kind, 9, 20)[:4], drawn(kind, 9, 20)[:4], strict=True)
    )
    assert not torch.equal(drawn(kind, 9, 20).lengths, drawn(kind, 9, 20, seed=2).lengths) or not torch.equal(
        drawn(kind, 9, 20).inputs, drawn(kind, 9, 20, seed=2).inputs
    )
    assert small(kind).digests() == small(kind).digests()
    other = small(kind, seed=2).digests()
    assert small(kind).digests()["train"] != other["train"]


def test_copy_by_rule() -> None:
    rows = drawn("copy", 30, 7, symbols=5, recited=3)
    assert (rows.vocabulary_size, rows.classes) == (7, 5)
    for inputs, targets, asked in zip(*(part.tolist() for part in rows[:3]), strict=True):
        data = inputs[:3]
        assert max(data) < 5
        # Arjovsky et al. 2016: S symbols, T - 1 blanks, the delimiter, S blanks.
        assert inputs == [*data, *[5] * 6, 6, *[5] * 3]
        assert asked == [False] * 10 + [True] * 3
        assert targets[10:] == data
    assert rows.inputs[:, :3].unique().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("length", [2, 9, 10])
def test_adding_by_rule(length: int) -> None:
    rows = drawn("adding", 400, length)
    values, markers = rows.inputs.unbind(-1)
    assert torch.equal(markers[:, : length // 2].sum(1), torch.ones(400))
    assert torch.equal(markers[:, length // 2 :].sum(1), torch.ones(400))
    assert set(markers.flatten().tolist()) == {0, 1} or length == 2
    assert (markers.sum(0) > 0).all()
    for row, mark, target in zip(values.tolist(), markers.tolist(), rows.targets[:, -1, 0].tolist(), strict=True):
        assert target == pytest.approx(sum(v for v, m in zip(row, mark, strict=True) if m), abs=1e-6)
    assert rows.asked.sum(0).tolist() == [0] * (length - 1) + [400]


def test_always_answering_one_to_adding_costs_a_sixth() -> None:
    answers = drawn("adding", 40_000, 6).targets[:, -1]
    # The squared deviation of a sum of two uniform numbers has mean 1/6 and variance 1/15 + ... < 0.06.
    assert (answers - 1).square().mean().item() == pytest.approx(1 / 6, abs=4 * math.sqrt(0.06 / 40_000))


def test_first_token_by_rule() -> None:
    rows = drawn("first_token", 50, 9, symbols=4)
    assert rows.inputs.shape == (50, 10)
    assert torch.equal(rows.targets[:, -1], rows.inputs[:, 0])
    assert rows.asked.sum(0).tolist() == [0] * 9 + [50]
    assert rows.inputs[:, 1:].unique().tolist() == [0, 1, 2, 3]


def test_parity_by_rule() -> None:
    rows = drawn("parity", 50, 12)
    for bits, targets in zip(rows.inputs.tolist(), rows.targets.tolist(), strict=True):
        assert targets == [bits[: t + 1].count(1) % 2 for t in range(12)]
    assert rows.asked.all()
    end = drawn("parity", 50, 12, asked_at="end")
    assert torch.equal(end.inputs, rows.inputs)
    assert torch.equal(end.targets[:, -1], rows.targets[:, -1])
    assert end.asked.sum(0).tolist() == [0] * 11 + [50]


def test_anbn_by_rule() -> None:
    strings = as_steps(drawn("anbn", 300, 6, shortest=2), ("a", "b", "end"))
    seen = set()
    for string in strings:
        n = string.inputs.count("a")
        seen.add(n)
        assert string.inputs == ("end", *"a" * n, *"b" * n)
        assert string.targets == ("a", *[None] * n, *"b" * (n - 1), "end")
    assert seen == {2, 3, 4, 5, 6}


def test_anbn_splits_go_on_where_the_one_before_ended() -> None:
    splits = SOURCES.build(
        {"kind": "anbn", "shortest": 2, "longest": 4, "validation_longest": 6, "test_longest": 9, "train": 99}
    )
    lengths = [[steps.inputs.count("a") for steps in part] for part in (splits.train, splits.validation, splits.test)]
    assert set(lengths[0]) == {2, 3, 4}
    assert len(lengths[0]) == 99
    assert lengths[1:] == [[5, 6], [7, 8, 9]]
    assert SOURCES.build({"kind": "anbn", "validation_longest": 12, "test_longest": 12}).test == ()
    for wrong in ({"longest": 15}, {"shortest": 11}, {"test_longest": 14}):
        with pytest.raises(ConfigError, match=r"longest < validation_longest <= test_longest fits, not "):
            SOURCES.build({"kind": "anbn", **wrong})


def test_narma_is_the_published_recursion() -> None:
    rows = drawn("narma", 40, 60)
    for u, targets in zip(rows.inputs[..., 0].tolist(), rows.targets[..., 0].tolist(), strict=True):
        y = [0.0]
        for t in range(60):
            recent = sum(y[max(0, t - 9) : t + 1])
            old = u[t - 9] if t >= 9 else 0.0
            y.append(0.3 * y[t] + 0.05 * y[t] * recent + 1.5 * old * u[t] + 0.1)
        assert targets == pytest.approx(y[1:], abs=1e-5)
    assert 0 <= rows.inputs.min() < rows.inputs.max() < 0.5


def test_narma_that_runs_away_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = memory._narma, []

    def wild(chance: torch.Generator, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        u, y = original(chance, rows, length)
        if not calls:
            y[0, -1], y[2, 3] = float("inf"), float("nan")
        calls.append(rows)
        return u, y

    monkeypatch.setattr(memory, "_narma", wild)
    rows = drawn("narma", 5, 20)
    assert calls == [5, 2]
    assert rows.targets.isfinite().all()
    assert rows.targets.max() <= 1


def test_narma_that_always_runs_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def wild(chance: torch.Generator, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(rows)
        y = torch.zeros(rows, length)
        for row in range(rows):
            y[row, [30, 40, 50][row % 3] :] = float("nan")
        return torch.zeros(rows, length), y

    monkeypatch.setattr(memory, "_narma", wild)
    with pytest.raises(ConfigError, match=r"narma: in 99 steps every draw runs away; half .* a length of 40 fits"):
        drawn("narma", 3, 99)
    assert calls == [3, 3, *[256] * (memory._PATIENCE - 1)]


def test_one_unlucky_row_of_narma_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    chances = torch.Generator().manual_seed(0)

    def mostly_wild(chance: torch.Generator, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.rand(rows, 1, generator=chances).expand(rows, length).clone()
        y[y[:, 0] > 0.02, -1] = float("nan")
        return y / 2, y

    monkeypatch.setattr(memory, "_narma", mostly_wild)
    rows = drawn("narma", 40, 7)
    assert torch.equal(rows.inputs * 2, rows.targets)
    assert rows.targets.max() <= 0.02


@kinds
def test_splits_share_no_sequence_and_have_the_sizes_asked_for(kind: str) -> None:
    splits = small(kind)
    train, validation, test = (
        [steps.inputs for steps in part] for part in (splits.train, splits.validation, splits.test)
    )
    if kind != "anbn":
        assert (len(train), len(validation), len(test)) == (60, 20, 20)
    assert len(set(validation)) == len(validation)
    assert len(set(test)) == len(test)
    assert not set(train) & set(validation)
    assert not set(train) & set(test)
    assert not set(validation) & set(test)
    assert json.loads(json.dumps(splits.train[0].targets)) is not None


def test_a_small_space_is_shared_out_and_one_too_small_is_told() -> None:
    splits = SOURCES.build({"kind": "parity", "length": 4, "train": 500, "validation": 5, "test": 4})
    assert len({steps.inputs for steps in splits.train}) == 16 - 9
    with pytest.raises(ConfigError, match=r"found 12 of 13 validation sequences .*; longer sequences, or smaller"):
        SOURCES.build({"kind": "parity", "length": 4, "train": 5, "validation": 13, "test": 4})
    with pytest.raises(ConfigError, match=r"found 0 of 5 train sequences"):
        SOURCES.build({"kind": "parity", "length": 4, "train": 5, "validation": 12, "test": 4})
    with pytest.raises(ConfigError, match=r"length 1 has no two halves; 2 or more fits"):
        SOURCES.build({"kind": "adding", "length": 1})


def test_every_option_has_a_line_of_help() -> None:
    for kind in KINDS:
        missing = [name for name, option in SOURCES[kind].options.items() if not option.help]
        assert not missing, kind


def test_read_steps(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(
        '{"inputs": ["a", 1], "targets": [null, "end"]}\n'
        "\n"
        '{"inputs": [[0.5, 1], [2, 3]], "targets": [0.25], "note": "x"}\n'
        '{"inputs": [0.5], "targets": [[1, 2.5]]}\n'
    )
    assert read_steps(file) == [
        (1, Steps(("a", 1), (None, "end"))),
        (3, Steps(((0.5, 1.0), (2.0, 3.0)), (None, (0.25,)))),
        (4, Steps(((0.5,),), ((1.0, 2.5),))),
    ]
    file.write_text('{"x": [1], "y": [2]}\n')
    assert read_steps(file, inputs="x", targets="y") == [(1, Steps((1,), (2,)))]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"input": [1], "targets": [1]}', r"nothing is called 'inputs'; did you mean 'input'\?"),
        ('{"inputs": [1]}', r"nothing is called 'targets'; known: inputs"),
        ('{"inputs": "ab", "targets": [1]}', r"'inputs' is 'ab'; a list with an entry a step fits"),
        ('{"inputs": [], "targets": [1]}', r"'inputs' is \[\]; a list"),
        ('{"inputs": [1, 2, 3], "targets": [1, 2]}', r"3 inputs and 2 targets; as many targets, or one, fit"),
        ('{"inputs": [1, null], "targets": [1, 2]}', r"an input is null"),
        ('{"inputs": [1, 2], "targets": [null, null]}', r"every target is null"),
        ('{"inputs": [true], "targets": [1]}', r"a step is True; a symbol"),
        ('{"inputs": [[0.5, "a"]], "targets": [1]}', r"a step is \[0.5, 'a'\]; a symbol"),
        ('{"inputs": [[]], "targets": [1]}', r"a step is \[\]; a symbol"),
        ('{"inputs": [[1' + "0" * 400 + ']], "targets": [1]}', r"a step is \[10*; numbers that a float can hold fit"),
    ],
)
def test_a_file_that_does_not_fit_is_told_with_its_line(tmp_path: Path, line: str, problem: str) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"inputs": [1], "targets": [1]}\n' + line + "\n")
    with pytest.raises(DataError, match=r"own\.jsonl:2: " + problem):
        read_steps(file)


def test_own_sequences_are_split_without_sharing_inputs(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    rows = [{"inputs": [n % 7, n % 3], "targets": [n % 2]} for n in range(84)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    splits = SOURCES.build({"kind": "sequences", "train": str(path), "validation_share": 0.2})
    parts = {name: {row.inputs for row in getattr(splits, name)} for name in ("train", "validation", "test")}
    assert all(parts.values())
    assert not parts["train"] & parts["validation"]
    assert not parts["train"] & parts["test"]
    assert not parts["validation"] & parts["test"]
    assert sum(len(getattr(splits, name)) for name in parts) == 84
    assert splits.train[0].targets[0] is None
    given = SOURCES.build({"kind": "sequences", "train": str(path), "validation": str(path), "test_share": 0})
    assert (len(given.train), len(given.validation), len(given.test)) == (84, 84, 0)


def test_a_symbol_is_never_set_aside_from_training(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    rows = [{"inputs": ["a", n], "targets": [None, "even" if n % 2 == 0 else "odd"]} for n in range(10)]
    rows = [{"inputs": [*row["inputs"], m], "targets": [*row["targets"], None]} for m in range(9) for row in rows]
    rows += [{"inputs": ["rare", 1, 2], "targets": ["odd"]}, {"inputs": [0, 0, 0], "targets": ["never"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    moved = 0
    for seed in range(12):
        chosen = {"kind": "sequences", "train": str(path), "validation_share": 0.3, "test_share": 0.3, "seed": seed}
        splits = SOURCES.build(chosen)
        parts = (splits.train, splits.validation, splits.test)
        assert sum(map(len, parts)) == len(rows)
        assert [row for row in splits.train if "rare" in row.inputs]
        assert [row for row in splits.train if "never" in row.targets]
        places = [[*map(json.dumps, row["inputs"])] for row in rows]
        order = [places.index([*map(json.dumps, row.inputs)]) for row in splits.train]
        assert order == sorted(order)
        assert SOURCES.build(chosen).digests() == splits.digests()
        moved += len(splits.train) != len(split_by_group(range(len(rows)), lambda n: n, [0.4, 0.3, 0.3], seed)[0])
    assert moved, "no seed set a rare symbol aside, so nothing was tested"
    path.write_text("".join(json.dumps({"inputs": [n, n], "targets": [1]}) + "\n" for n in range(10)))
    with pytest.raises(DataError, match=r"own\.jsonl: no row is left for validation: each that was set aside holds"):
        SOURCES.build({"kind": "sequences", "train": str(path), "test_share": 0})


def test_own_sequences_that_do_not_fit_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"inputs": [1, 2], "targets": [1]}\n{"inputs": [1], "targets": [1, 2]}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"own\.jsonl:2: 1 inputs and 2 targets"):
        SOURCES.build({"kind": "sequences", "train": str(path)})
    path.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="holds no rows"):
        SOURCES.build({"kind": "sequences", "train": str(path)})
    path.write_text('{"inputs": [1, 2], "targets": [1]}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"own\.jsonl: 1 group\(s\) in 1 example\(s\) are too few"):
        SOURCES.build({"kind": "sequences", "train": str(path)})
    with pytest.raises(ConfigError, match="leave nothing to train on"):
        SOURCES.build({"kind": "sequences", "train": str(path), "validation_share": 0.5, "test_share": 0.5})
