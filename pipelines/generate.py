"""``seqapp generate``: a completion that appears on the terminal as it is made."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from pipelines.predict import complaints
from seqapp.bundle import Bundle
from seqapp.completion import GenerationInput
from seqapp.data.tokenizers import clean
from seqapp.errors import SeqappError
from seqapp.tasks import InputError
from seqapp.tasks.generation import Generation


def generate(loaded: Bundle, fields: Mapping[str, Any], *, as_json: bool = False) -> None:
    """Print completions of a prompt; notes go to standard error.

    Args:
        loaded: a bundle of a language model.
        fields: of a :class:`GenerationInput`; a condition of numbers may be written "0.1,2".
        as_json: print the whole answer instead of the text.

    Raises:
        SeqappError: naming the field that does not fit.
    """
    task = loaded.task
    if not isinstance(task, Generation):
        raise SeqappError(f"{loaded.path}: the task {loaded.manifest.task!r} does not go on from a prompt; a model of "
                          "the task 'generation' does")  # fmt: skip
    try:
        given = GenerationInput.model_validate({**fields, "condition": _condition(task, fields.get("condition"))})
    except ValidationError as error:
        raise SeqappError("; ".join(complaints(error, GenerationInput))) from None
    try:
        if as_json:
            (answer,) = task.predict(loaded.model, [given])
            print(clean(json.dumps(answer.model_dump(), ensure_ascii=False, indent=1)))
            return
        if given.n == 1 and given.beam_size is None:
            _stream(task, loaded, given)
            return
        (answer,) = task.predict(loaded.model, [given])
    except InputError as error:
        raise SeqappError(error.problem) from None
    _tell(answer.notes)
    for number, one in enumerate(answer.completions, 1):
        print(f"--- {number} of {len(answer.completions)}: {one.tokens} tokens, "
              f"log-probability {one.score:.2f}, {one.finish_reason}\n{clean(one.text)}")  # fmt: skip


def _stream(task: Generation, loaded: Bundle, given: GenerationInput) -> None:
    pieces = task.stream(loaded.model, given)  # what does not fit is said before anything is printed
    if not given.echo:
        print(clean(given.prompt), end="", flush=True)
    notes: list[str] = []
    try:
        for piece in pieces:
            notes += piece.notes
            if piece.seed is not None and given.seed is None:
                notes.append(f"--seed {piece.seed} gives this text again")
            print(clean(piece.text), end="", flush=True)
    except KeyboardInterrupt:
        notes.append("stopped")
    print()
    sys.stdout.flush()
    _tell(notes)


def _tell(notes: list[str]) -> None:
    for note in notes:
        print(f"note: {clean(note)}", file=sys.stderr)


def _condition(task: Generation, given: Any) -> Any:
    if not isinstance(given, str) or not task.features:
        return given
    try:
        return [float(number) for number in given.split(",")]
    except ValueError:
        raise SeqappError(f"condition: {task.features} numbers such as 0.1,2 fit, not {given!r:.60}") from None
