"""A text as rows of pieces: nothing is lost, nothing is read twice, and the past is the text's own."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqapp.data.batching import Idle
from seqapp.data.streams import Batch, Pieces, Span, Stream, evaluation_pieces, training_pieces
from seqapp.data.tokenizers import BOS, EOS, PAD


def stream_of(*documents: list[int], characters: int | None = None) -> Stream:
    return Stream.write(documents, characters, vocabulary_size=1000)


def scored(pieces: Pieces) -> list[tuple[int, int]]:
    """(input, target) of everything scored, row by row in the order of the rows."""
    rows: dict[int, list[tuple[int, int]]] = {}
    for batch in pieces:
        for row in range(len(batch.lengths)):
            for t in range(int(batch.lengths[row])):
                if batch.scored[row, t]:
                    rows.setdefault(row, []).append((int(batch.inputs[row, t]), int(batch.targets[row, t])))
    return [pair for row in rows.values() for pair in row]


def pairs(ids: list[int]) -> list[tuple[int, int]]:
    before = [BOS, *[BOS if token == EOS else token for token in ids[:-1]]]
    return list(zip(before, ids, strict=True))


def test_inputs_are_the_tokens_before_and_a_document_begins_with_bos() -> None:
    stream = stream_of([7, 8, EOS], [9, EOS], [5])
    assert stream.targets(0, 6).tolist() == [7, 8, EOS, 9, EOS, 5]
    assert stream.inputs(0, 6).tolist() == [BOS, 7, 8, BOS, 9, BOS]
    assert [stream.inputs(t, t + 1).tolist()[0] for t in range(6)] == stream.inputs(0, 6).tolist()
    assert len(stream) == stream.characters == 6


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_training_reads_every_token_once_and_goes_on_where_a_row_stopped(data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(3, 900), min_size=1, max_size=80))
    rows, steps, epoch = (data.draw(st.integers(1, most)) for most in (9, 12, 5))
    pieces = training_pieces(stream_of(ids), rows=rows, steps=steps, seed=1, epoch=epoch)
    made = list(pieces)
    assert len(made) == len(pieces)
    assert [batch.fresh for batch in made] == [True, *[False] * (len(made) - 1)]
    assert sorted(scored(pieces)) == sorted(pairs(ids))
    assert all(batch.inputs.shape[1] <= steps for batch in made)
    for before, after in pairwise(made):
        count = len(after.lengths)
        assert count <= len(before.lengths)
        assert bool((before.lengths[:count] == before.inputs.shape[1]).all()), "a row that goes on has not ended"
        carried = before.targets[:count, -1]
        assert torch.equal(after.inputs[:, 0], torch.where(carried == EOS, BOS, carried))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_evaluation_scores_every_token_once_after_its_own_past(data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(3, 900), min_size=1, max_size=150))
    context, rows, steps = (data.draw(st.integers(1, most)) for most in (6, 5, 9))
    pieces = evaluation_pieces(stream_of(ids), context=context, rows=rows, steps=steps)
    assert sorted(scored(pieces)) == sorted(pairs(ids))
    history: list[list[int]] = []
    for batch in pieces:
        history = history or [[] for _ in batch.lengths]
        for row in range(len(batch.lengths)):
            for t in range(int(batch.lengths[row])):
                history[row].append(int(batch.targets[row, t]))
                if batch.scored[row, t] and len(history[row]) < len(ids):
                    begins_text = history[row] == ids[: len(history[row])]
                    assert begins_text or len(history[row]) > context
    assert all("".join(map(chr, row)) in "".join(map(chr, ids)) for row in history)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_processes_read_the_rows_of_one_in_as_many_pieces(data: st.DataObject) -> None:
    stream = stream_of(data.draw(st.lists(st.integers(3, 900), min_size=1, max_size=120)))
    world, rows, steps = (data.draw(st.integers(1, most)) for most in (5, 9, 12))

    def made(rank: int, world: int) -> list[Pieces]:
        return [
            training_pieces(stream, rows=rows, steps=steps, seed=1, epoch=2, rank=rank, world=world),
            evaluation_pieces(stream, context=2, rows=rows, steps=steps, rank=rank, world=world),
        ]

    for alone, *shares in zip(made(0, 1), *(made(rank, world) for rank in range(world)), strict=True):
        pieces = [list(share) for share in shares]
        assert [len(share) for share in shares] == [len(alone)] * world == [len(own) for own in pieces]
        for whole, *parts in zip(alone, *pieces, strict=True):
            found = [part for part in parts if not isinstance(part, Idle)]
            assert {part.inputs.shape[1] for part in found} == {whole.inputs.shape[1]}
            assert {part.fresh for part in found} == {whole.fresh}
            assert sorted(row for part in found for row in texts(part)) == sorted(texts(whole))
            assert sum(part.characters for part in found) == pytest.approx(whole.characters)
            assert all(part.weight == 0 for part in parts if isinstance(part, Idle))
        for own in pieces:
            idle = [isinstance(part, Idle) for part in own]
            assert idle == sorted(idle), "rows that have ended do not go on"


def texts(batch: Batch) -> list[tuple[list[int], list[int], list[bool]]]:
    """Inputs, targets and what is scored of each row."""
    return list(zip(batch.inputs.tolist(), batch.targets.tolist(), batch.scored.tolist(), strict=True))


def test_epochs_cut_at_other_places_and_an_epoch_repeats() -> None:
    stream = stream_of(list(range(4, 900)))

    def cuts(epoch: int) -> range:
        return training_pieces(stream, rows=3, steps=50, seed=5, epoch=epoch).cuts

    assert cuts(1) == cuts(1)
    assert len({cuts(epoch) for epoch in range(8)}) > 4


def test_characters_of_all_pieces_are_those_of_the_text() -> None:
    stream = stream_of(list(range(4, 104)), characters=731)
    for pieces in (training_pieces(stream, rows=7, steps=9, seed=0, epoch=0), evaluation_pieces(stream, context=2)):
        assert sum(batch.characters for batch in pieces) == pytest.approx(731)


def test_padding_is_marked_and_not_scored() -> None:
    (batch,) = Pieces(stream_of([5, 6, 7, 8, 9]), [Span(0, 3), Span(3, 5)], steps=9)
    assert batch.inputs.tolist() == [[BOS, 5, 6], [7, 8, PAD]]
    assert batch.targets.tolist() == [[5, 6, 7], [8, 9, PAD]]
    assert batch.scored.tolist() == [[True] * 3, [True, True, False]]
    assert isinstance(batch, Batch)


@pytest.mark.parametrize(("size", "bytes_each"), [(2**16, 2), (2**16 + 1, 4)])
def test_a_token_takes_as_few_bytes_as_the_vocabulary_lets_it(size: int, bytes_each: int) -> None:
    stream = Stream.write([[size - 1, 0]], vocabulary_size=size)
    assert stream.ids.itemsize == bytes_each
    assert stream.targets(0, 2).tolist() == [size - 1, 0]


def test_a_text_larger_than_the_memory_allowed_is_read_in_pieces() -> None:
    block = numpy.full(2**18, 77)
    stream = Stream.write((block for _ in range(64)), vocabulary_size=100)  # 32 MiB in the file
    tracemalloc.start()
    count = 0
    for batch in training_pieces(stream, rows=512, steps=64, seed=0, epoch=0):
        count += int(batch.scored.sum())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 64 * 2**18
    assert peak < 4 * 2**20
