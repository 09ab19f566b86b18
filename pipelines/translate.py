"""``seqapp translate``: a file line by line, by one model or by several as one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipelines.predict import complaints
from seqapp.bundle import Bundle
from seqapp.data.tokenizers import clean
from seqapp.errors import SeqappError, Stopped
from seqapp.tasks.translation import Translation
from seqapp.translation import TranslationInput, TranslationOutput

LINES_AT_ONCE = 1024
"""Lines whose sentences are sorted by length and searched together."""
MOST_NOTICES = 20
"""Most notices printed."""


def translate(
    bundles: Sequence[Bundle],
    lines: Iterable[str],
    fields: Mapping[str, Any],
    *,
    done: Callable[[int], None] | None = None,
) -> Iterator[TranslationOutput | None]:
    """The translation of each line, in order; None for a blank one.

    Args:
        bundles: of the same languages and vocabularies; several answer by the mean of their probabilities.
        lines: of any number; a part of them at a time is in memory.
        fields: of a :class:`TranslationInput`, for all lines.
        done: told how many more lines are finished, as they are.

    Raises:
        SeqappError: if the bundles do not translate, or not alike, or a field does not fit.
    """
    tasks = [translator(loaded) for loaded in bundles]
    for task, loaded in zip(tasks, bundles, strict=True):
        if not task.like(tasks[0]):
            raise SeqappError(f"{loaded.path}: its languages or tokens are not those of {bundles[0].path}; models of "
                              "an ensemble share both, as those of one config and several seeds do")  # fmt: skip
    try:
        TranslationInput.model_validate({**fields, "text": "-"})
    except ValidationError as error:
        raise SeqappError("; ".join(complaints(error, TranslationInput))) from None
    models = [loaded.model for loaded in bundles]
    stream = iter(lines)
    while batch := list(islice(stream, LINES_AT_ONCE)):
        inputs = {place: TranslationInput.model_validate({**fields, "text": line})
                  for place, line in enumerate(batch) if line.strip()}  # fmt: skip
        outputs = tasks[0].translate(models, list(inputs.values()), done=done)
        answers = dict(zip(inputs, outputs, strict=True))
        if done is not None:
            done(len(batch) - len(inputs))
        yield from (answers.get(place) for place in range(len(batch)))


def shown(answer: TranslationOutput | None, number: int, *, n_best: int = 1, as_json: bool = False) -> Iterator[str]:
    """The lines to print for an answer; one that is blank for None.

    Args:
        answer: to line ``number``.
        number: of the line, from 1.
        n_best: more than 1 prints so many translations, as "NUMBER ||| TEXT ||| SCORE" after Moses.
        as_json: print the whole answer instead.
    """
    if as_json:
        found = {} if answer is None else answer.model_dump(mode="json", exclude_none=True)
        yield json.dumps({"line": number, **found}, ensure_ascii=False)
    elif answer is None:
        yield ""
    elif n_best == 1:
        yield answer.text
    else:
        # A text's score is the mean of its sentences'; one with fewer translations keeps its last, as in the text.
        scores = [[one.score, *(other.score for other in one.alternatives)] for one in answer.sentences]
        for way, text in enumerate([answer.text, *answer.alternatives]):
            said = [row[min(way, len(row) - 1)] for row in scores]
            yield f"{number} ||| {text} ||| {sum(said) / max(1, len(said)):.4f}"


@contextmanager
def writing(path: Path | None) -> Iterator[Callable[[str], None]]:
    """What writes a line to standard output, or to a file that is there once all is written.

    Until then, and for good after a stop, what is finished stands in a file beside it, called ``*.part``.

    Raises:
        SeqappError: if the file cannot be written.
    """
    if path is None:
        yield lambda line: print(clean(line), flush=sys.stdout.isatty())
        return
    if path.is_dir():  # told before the work, not after it
        raise SeqappError(f"{path}: is a directory; the name of a file fits")
    if not path.parent.is_dir():
        raise SeqappError(f"{path}: there is no directory {path.parent}")
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as stream:
            yield lambda line: print(clean(line), file=stream)
        part.replace(path)
    except OSError as error:
        raise SeqappError(f"{error.filename or path}: {error.strerror}") from None
    except KeyboardInterrupt:
        raise Stopped(f"stopped; what is finished stands in {part}") from None


def translator(loaded: Bundle) -> Translation:
    """The task of a bundle that translates.

    Raises:
        SeqappError: if it does something else.
    """
    if not isinstance(loaded.task, Translation):
        raise SeqappError(f"{loaded.path}: the task {loaded.manifest.task!r} does not translate; a model of the task "
                          "'translation' does")  # fmt: skip
    return loaded.task
