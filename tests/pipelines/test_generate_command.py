"""``seqapp generate``: the text and nothing else on standard output, what a person should know on standard error."""

import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from seqapp import bundle
from seqapp.completion import GenerationInput, Piece
from seqapp.data.text import Passage
from seqapp.tasks import TASKS
from seqapp.tasks.generation import Generation
from tests.pipelines.test_command_line import refused
from tests.pipelines.worlds import Done, Said

Seqapp = Callable[..., Said]

TEXTS = ("the café is open\n", "no, the cat sat there\n", "你好 🙂\n")
SPEC = {"kind": "language_model", "embedding_size": 6, "encoder": {"kind": "lstm", "hidden_size": 6}}


def write_writer(path: Path, conditions: tuple[Any, ...] = (None, None, None), kind: str = "character") -> Path:
    """A language model that has learned nothing."""
    spec = {"kind": "generation", "tokenizer": {"kind": kind}, "reads": "rows"}
    task = TASKS.build(spec)
    task.prepare([Passage(text, True, given) for text, given in zip(TEXTS, conditions, strict=True)])
    torch.manual_seed(0)
    model = task.build_model(SPEC)
    model.get_parameter("head.project.weight").data.mul_(5)
    return bundle.save(path, task=task, model=model, resolved={"task": spec, "model": SPEC}, metrics={}, name="writer")


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("writers")
    return {
        "plain": write_writer(folder / "plain"),
        "class": write_writer(folder / "class", ("Greek", "Welsh", "Greek")),
        "features": write_writer(folder / "features", ((0.5, 1.0), (0.0, 2.0), (1.0, 1.0))),
        "bytes": write_writer(folder / "bytes", kind="byte_bpe"),
    }


def answer(path: Path, **fields: Any) -> Any:
    (output,) = bundle.load(path).predict([GenerationInput(**fields)])
    return output


def test_the_text_is_all_of_standard_output(writers: dict[str, Path], seqapp: Seqapp) -> None:
    said = seqapp("generate", writers["plain"], "the cat", "--seed", "3", "--max-tokens", "20")
    wanted = answer(writers["plain"], prompt="the cat", seed=3, max_tokens=20, temperature=0.8)
    assert said == Said(0, f"the cat{wanted.completions[0].text}\n", "")
    # And with every option, the same as from the task.
    said = seqapp(
        "generate", writers["plain"], "the cat", "--seed", "3", "--max-tokens", "20", "--min-tokens", "20",
        "--temperature", "1.5", "--top-k", "9", "--top-p", "0.9", "--min-p", "0.01", "--typical-p", "0.95",
        "--repetition-penalty", "1.2", "--no-repeat-ngram-size", "3", "--stop", "zz", "--stop", "e",
        "--option", "frequency_penalty=0.5", "--option", 'logit_bias={"t": 1.5}',
    )  # fmt: skip
    wanted = answer(
        writers["plain"], prompt="the cat", seed=3, max_tokens=20, min_tokens=20, temperature=1.5, top_k=9, top_p=0.9,
        min_p=0.01, typical_p=0.95, repetition_penalty=1.2, no_repeat_ngram_size=3, stop=["zz", "e"],
        frequency_penalty=0.5, logit_bias={"t": 1.5},
    )  # fmt: skip
    assert said == Said(0, f"the cat{wanted.completions[0].text}\n", "")


def test_no_prompt_starts_a_text_and_echo_does_not_double_one(writers: dict[str, Path], seqapp: Seqapp) -> None:
    asked = ("--temperature", "0", "--max-tokens", "5", "--min-tokens", "5")
    assert seqapp("generate", writers["plain"], *asked).out == seqapp("generate", writers["plain"], "", *asked).out
    plain = seqapp("generate", writers["plain"], "the", *asked)
    assert seqapp("generate", writers["plain"], "the", *asked, "--option", "echo=true") == plain


def test_notes_go_to_standard_error(writers: dict[str, Path], seqapp: Seqapp) -> None:
    said = seqapp("generate", writers["plain"], "the Zoo", "--temperature", "0", "--seed", "3", "--max-tokens", "3")
    assert said.status == 0
    assert said.out.startswith("the Zoo")
    assert len(said.out.splitlines()[0]) <= len("the Zoo") + 3
    notes = said.err.splitlines()
    assert all(note.startswith("note: ") for note in notes)
    assert any("seed changes nothing" in note for note in notes)
    assert any("'Z' at 4" in note for note in notes)


def test_the_text_appears_as_it_is_made(
    writers: dict[str, Path], seqapp: Seqapp, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    stdout = io.StringIO()

    def pieces(self: Generation, model: Any, request: Any, **_: Any) -> Iterator[Piece]:
        for part in ("a", "b", "c"):
            shown.append(stdout.getvalue())
            yield Piece(index=0, text=part, finish_reason="length" if part == "c" else None)
        raise KeyboardInterrupt

    monkeypatch.setattr(Generation, "stream", pieces)
    monkeypatch.setattr(sys, "stdout", stdout)
    said = seqapp("generate", writers["plain"], "x")
    assert shown == ["x", "xa", "xab"]
    assert stdout.getvalue() == "xabc\n"
    assert (said.status, said.err) == (0, "note: stopped\n")


def test_several_completions_are_told_apart(writers: dict[str, Path], seqapp: Seqapp) -> None:
    for options, fields in (
        (("--n", "3", "--seed", "2"), {"n": 3, "seed": 2, "temperature": 0.8}),
        (("-n", "2", "--beam-size", "4", "--length-penalty", "0.5"), {"n": 2, "beam_size": 4, "length_penalty": 0.5}),
    ):
        said = seqapp("generate", writers["plain"], "no", "--max-tokens", "9", *options)
        wanted = answer(writers["plain"], prompt="no", max_tokens=9, **fields)
        assert (said.status, said.err) == (0, "")
        for number, completion in enumerate(wanted.completions, 1):
            head = f"--- {number} of {fields['n']}: {completion.tokens} tokens, log-probability {completion.score:.2f}"
            assert f"{head}, {completion.finish_reason}\n{completion.text}\n" in said.out


def test_json_is_the_whole_answer(writers: dict[str, Path], seqapp: Seqapp) -> None:
    options = ("--max-tokens", "6", "--beam-size", "3", "--option", "return_beams=true", "--option", "logprobs=0")
    said = seqapp("generate", writers["plain"], "the Zé", *options, "--json")
    assert (said.status, said.err) == (0, "")
    wanted = answer(writers["plain"], prompt="the Zé", max_tokens=6, beam_size=3, return_beams=True, logprobs=0)
    assert json.loads(said.out) == wanted.model_dump(mode="json")
    assert "'Z' at 4" in json.loads(said.out)["notes"][0]
    drawn = json.loads(seqapp("generate", writers["plain"], "no", "--json").out)["seed"]
    assert isinstance(drawn, int)


def test_a_prompt_comes_from_standard_input(
    writers: dict[str, Path], seqapp: Seqapp, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--temperature", "0", "--max-tokens", "5")
    prompt = "the café\nis open"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.FileIO(0, closefd=False), "utf-8"))
        said = seqapp("generate", writers["plain"], "-", *asked, stdin=prompt.encode())
    assert said == seqapp("generate", writers["plain"], prompt, *asked)
    assert said.out.startswith(prompt)


def test_a_condition_is_a_class_or_numbers(writers: dict[str, Path], seqapp: Seqapp) -> None:
    asked = ("the", "--temperature", "0", "--max-tokens", "8", "--condition")
    fields: dict[str, Any] = {"prompt": "the", "temperature": 0, "max_tokens": 8}
    for kind, given, condition in (("class", "Welsh", "Welsh"), ("features", "0.5,-2", [0.5, -2.0])):
        wanted = answer(writers[kind], **fields, condition=condition)
        assert seqapp("generate", writers[kind], *asked, given).out == f"the{wanted.completions[0].text}\n"
    said = refused(seqapp("generate", writers["features"], *asked, "warm"))
    assert said == "condition: 2 numbers such as 0.1,2 fit, not 'warm'"


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("plain", ["--temperature", "-1"], r"temperature: .*greater than or equal to 0"),
        ("plain", ["--temperature", "nan"], r"temperature: .*finite"),
        ("plain", ["--top-p", "0"], r"top_p: .*greater than 0"),
        ("plain", ["--top-p", "1.5"], r"top_p: .*less than or equal to 1"),
        ("plain", ["--max-tokens", "99999"], r"max_tokens: .*4096"),
        ("plain", ["--min-tokens", "300"], r"min_tokens is 300, more than max_tokens, 200"),
        ("plain", ["--beam-size", "2", "--n", "3"], r"n is 3, more than the 2 hypotheses that beam_size keeps"),
        ("plain", ["--beam-size", "60"], r"beam_size: 60 is more than the \d+ tokens this model knows"),
        ("plain", ["--stop", ""], r"a stop text is empty"),
        ("plain", ["--condition", "Greek"], r"condition: this model was trained without"),
        ("class", [], r"condition: one of Greek, Welsh fits, not None"),
        ("class", ["--condition", "Grek"], r"condition: .*'Grek'.*Greek"),
        ("features", ["--condition", "1"], r"condition: 2 numbers fit, not \[1.0\]"),
        ("features", ["--condition", "1,nan"], r"condition: .*finite"),
        ("plain", ["--option", "seed"], r"--option: 'seed' is not of the form NAME=VALUE"),
        ("plain", ["--option", "frequency_penalti=1"], r"frequency_penalti.*frequency_penalty"),
        ("plain", ["--option", 'logit_bias={"dragon": 1}'], r"logit_bias: no token of this model is 'dragon'"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_what_does_not_fit_is_one_sentence_and_no_text(
    writers: dict[str, Path], seqapp: Seqapp, kind: str, options: list[str], says: str, more: list[str]
) -> None:
    said = refused(seqapp("generate", writers[kind], "the", *options, *more))
    assert re.search(says, said), said
    # A person has not heard of the library that checks the fields.
    assert "Value error" not in said


def test_a_model_of_another_task_and_no_model_are_refused(done: Done, seqapp: Seqapp) -> None:
    said = refused(seqapp("generate", done.trained.bundle, "the"))
    assert "the task 'sentiment' does not go on from a prompt; a model of the task 'generation' does" in said
    assert "runs/nothing: no such directory" in refused(seqapp("generate", "runs/nothing", "the"))


def test_what_is_no_text_is_no_crash(writers: dict[str, Path], seqapp: Seqapp, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("--temperature", "0", "--max-tokens", "3")
    # An argument of the shell that is not UTF-8 comes as a lone surrogate, which a strict terminal cannot show.
    strict = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", strict)
        said = seqapp("generate", writers["plain"], "the\udcff", *asked)
        assert seqapp("generate", writers["plain"], "the\udcff", *asked, "--option", "echo=true", "--json").status == 0
        strict.flush()
    assert (said.status, len(said.err.splitlines())) == (0, 1)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.FileIO(0, closefd=False), "utf-8"))
        said = seqapp("generate", writers["plain"], "-", *asked, stdin=b"the\nca\xff")
    assert re.search(r"byte 6 .*(?i:utf-8)", refused(said))
