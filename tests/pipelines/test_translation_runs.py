"""Translators by command: trained on aligned files, looked at in MLflow, evaluated, and asked for translations."""

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import translate as translation
from pipelines.run import Trained
from pipelines.run import baseline as run_baselines
from seqapp import bundle
from seqapp.data.pairs import SentencePair
from seqapp.data.splits import SOURCES, Splits
from seqapp.errors import SeqappError
from seqapp.registry import Kind
from seqapp.translation import TranslationInput
from seqapp.translation_scores import Translations
from tests.pipelines.test_command_line import refused
from tests.pipelines.worlds import Said, World

Seqapp = Callable[..., Said]

CONFIG = """
task: {kind: translation, tokenizer: {kind: word}, shared: false, beam_size: 2}
model:
  kind: translator
  embedding_size: 16
  encoder: {kind: birnn, layer: {kind: lstm, hidden_size: 16}}
  decoder: {kind: lstm, hidden_size: 24}
  attention: {kind: KIND}
data: {kind: pairs, train: [mine.en, mine.de], source: en, target: de, test_share: 0.1}
train: {epochs: 8, batch_tokens: 256, batch_rows: 16, learning_rate: 2e-2}
"""
WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf", "six": "sechs"}


def counted(seed: int = 0, count: int = 240) -> list[tuple[str, str]]:
    """Numbers in English, and in German in reverse order."""
    rows = [row for size in (3, 4) for row in itertools.product(WORDS, repeat=size)]
    chosen = random.Random(seed).sample(rows, count)
    return [(" ".join(row), " ".join(WORDS[word] for word in reversed(row))) for row in chosen]


def write_files(folder: Path, rows: list[tuple[str, str]], name: str = "mine") -> None:
    for place, language in enumerate(("en", "de")):
        (folder / f"{name}.{language}").write_text("".join(f"{row[place]}\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def trained(make_world: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Trained]:
    made = make_world(tmp_path_factory.mktemp("translators"))
    write_files(made.path, counted())
    write_files(made.path, counted(seed=1, count=20), "new")
    made.config("count.yaml", CONFIG.replace("KIND", "general"))
    with pytest.MonkeyPatch.context() as patch:
        made.enter(patch)
        return made, made.train(config="count.yaml")


@pytest.fixture
def run(trained: tuple[World, Trained], monkeypatch: pytest.MonkeyPatch) -> tuple[World, Trained]:
    trained[0].enter(monkeypatch)
    return trained


def test_it_learns_and_is_chosen_by_bleu(run: tuple[World, Trained]) -> None:
    world, found = run
    assert found.scores["test"]["bleu"] > 60
    assert set(found.scores["test"]) >= {"nll", "perplexity", "bleu", "bleu_lowercased", "chrf", "ter"}
    history = world.history(found.run_id)
    bleus = [value for _, value in sorted(history["validation/bleu"])]
    assert len(bleus) == 8
    assert history["best_validation/bleu"][0][1] == pytest.approx(max(bleus))
    tags = world.client.get_run(found.run_id).data.tags
    assert (tags["metric"], tags["direction"], tags["network"]) == ("bleu", "max", "birnn of lstm, general attention")


def test_what_a_person_can_look_at(run: tuple[World, Trained]) -> None:
    world, found = run
    client = world.client

    def names(folder: str = "") -> set[str]:
        return {artifact.path for artifact in client.list_artifacts(found.run_id, folder)}

    assert names("samples") == {f"samples/epoch-{epoch:03}.txt" for epoch in range(9)}
    assert names("attention/1") == {f"attention/1/epoch-{epoch:03}.png" for epoch in range(9)}
    assert names() >= {"bleu_by_length_test.png", "bleu_by_length_validation.png", "definitions.json",
                       "translations_test.tsv", "model_card.md"}  # fmt: skip
    said = Path(client.download_artifacts(found.run_id, "translations_test.tsv")).read_text(encoding="utf-8")
    assert all(len(line.split("\t")) == 3 for line in said.splitlines())
    assert len(said.splitlines()) == 24
    card = Path(client.download_artifacts(found.run_id, "model_card.md")).read_text(encoding="utf-8")
    assert "Translates from en to de." in card
    assert "BLEU (sacreBLEU 13a), beam 2" in card


def test_evaluate_gives_what_the_search_says(run: tuple[World, Trained], seqapp: Seqapp) -> None:
    _, found = run
    said = seqapp("evaluate", found.bundle, "--source", "new.en", "--target", "new.de")
    assert said.status == 0
    figures = json.loads(said.out)
    loaded = bundle.load(found.bundle)
    rows = counted(seed=1, count=20)
    answers = loaded.predict([TranslationInput(text=source) for source, _ in rows])
    scored = Translations(tuple(source for source, _ in rows), tuple(answer.text for answer in answers),
                          tuple(target for _, target in rows), ("en", "de"))  # fmt: skip
    for name, value in scored.scores().items():
        assert figures[name] == pytest.approx(value)
    assert figures["translation"]["definitions"]["bleu"].startswith("nrefs:1|case:mixed")
    assert figures["translation"]["definitions"]["search"] == "beam of 2, length penalty 1"
    assert sum(row["sentences"] for row in figures["translation"]["by_length"]) == 20


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        (["--source", "new.en"], "--source FILE --target FILE"),
        (["--target", "new.de"], "--source FILE --target FILE"),
        ([], "--data FILE"),
        (["--data", "new.en", "--source", "new.en", "--target", "new.de"], "--data FILE"),
        (["--source", "new.en", "--target", "missing.de"], "missing.de: no such file"),
        (["--source", "new.en", "--target", "mine.de"], "20"),
    ],
)
def test_evaluate_says_what_it_needs(run: tuple[World, Trained], seqapp: Seqapp, given: list[str], wrong: str) -> None:
    assert wrong in refused(seqapp("evaluate", run[1].bundle, *given))


def test_translate_keeps_the_order_and_the_blank_lines(run: tuple[World, Trained], seqapp: Seqapp) -> None:
    _, found = run
    lines = ["one two three four", "", "six six one", "two", "five four three two"]
    Path("in.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    said = seqapp("translate", found.bundle, "in.txt")
    loaded = bundle.load(found.bundle)
    wanted = [loaded.predict([TranslationInput(text=line)])[0].text if line else "" for line in lines]
    assert (said.status, said.out.splitlines()) == (0, wanted)
    assert seqapp("translate", found.bundle, stdin="\n".join(lines).encode()).out == said.out
    written = seqapp("translate", found.bundle, "in.txt", "--output", "out.txt", "--with", found.bundle)
    assert (written.status, written.out) == (0, "")
    assert Path("out.txt").read_text(encoding="utf-8") == said.out
    assert not Path("out.txt.part").exists()


def test_translate_gives_alternatives_scores_and_attention(run: tuple[World, Trained], seqapp: Seqapp) -> None:
    _, found = run
    said = seqapp("translate", found.bundle, "--n-best", "2", stdin=b"one two three\n\nsix one one\n")
    rows = [line.split(" ||| ") for line in said.out.splitlines()]
    assert [row[0] for row in rows] == ["1", "1", "", "3", "3"]
    assert float(rows[0][2]) >= float(rows[1][2])
    said = seqapp("translate", found.bundle, "--json", stdin=b"one two three\n\n")
    first, second = map(json.loads, said.out.splitlines())
    assert second == {"line": 2}
    (sentence,) = first["sentences"]
    assert sentence["source_tokens"] == ["one", "two", "three", "<eos>"]
    assert len(sentence["attention"]) == len(sentence["target_tokens"])
    assert all(sum(row) == pytest.approx(1, abs=1e-3) for row in sentence["attention"])


def test_what_translate_refuses(
    run: tuple[World, Trained], seqapp: Seqapp, done: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, found = run
    assert "does not translate" in refused(seqapp("translate", done.trained.bundle, stdin=b"x"))
    world.enter(monkeypatch)
    assert "beam_size" in refused(seqapp("translate", found.bundle, "--beam-size", "65", stdin=b"one\n"))
    assert "--n-best 3" in refused(
        seqapp("translate", found.bundle, "--beam-size", "2", "--n-best", "3", stdin=b"one\n")
    )
    none = seqapp("translate", found.bundle, "--n-best", "0", stdin=b"one\n")
    assert none.status != 0
    assert "--n-best" in none.err
    assert "nowhere" in refused(seqapp("translate", found.bundle, "--output", "nowhere/x", stdin=b"one\n"))
    Path("folder").mkdir(exist_ok=True)
    assert refused(seqapp("translate", found.bundle, "--output", "folder", stdin=b"one\n")).startswith(
        "folder: is a directory"
    )
    assert not Path("folder.part").exists()


def test_scores_of_a_text_of_several_sentences_are_means_of_its_sentences(run: tuple[World, Trained]) -> None:
    loaded = bundle.load(run[1].bundle)
    (answer,) = loaded.predict([TranslationInput(text="one two\nsix one four", alternatives=1, beam_size=2)])
    rows = [line.split(" ||| ") for line in translation.shown(answer, 1, n_best=2)]
    assert [text for _, text, _ in rows] == [answer.text, *answer.alternatives]
    first, second = answer.sentences
    wanted = [answer.score, (first.alternatives[0].score + second.alternatives[0].score) / 2]
    assert [float(score) for *_, score in rows] == pytest.approx(wanted, abs=1e-4)


def test_models_of_other_tokens_are_no_ensemble(run: tuple[World, Trained], monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = run
    loaded, other = bundle.load(found.bundle), bundle.load(found.bundle)
    other.task.target_tokenizer = other.task.source_tokenizer  # type: ignore[attr-defined]
    with pytest.raises(SeqappError, match="languages or tokens are not those"):
        list(translation.translate([loaded, other], ["one"], {}))


def test_a_stop_keeps_what_is_finished(tmp_path: Path) -> None:
    def stopped() -> None:
        with translation.writing(tmp_path / "out.txt") as write:
            write("first")
            raise KeyboardInterrupt

    with pytest.raises(SeqappError, match=r"stopped; what is finished stands in .*out\.txt\.part"):
        stopped()
    assert (tmp_path / "out.txt.part").read_text(encoding="utf-8") == "first\n"
    assert not (tmp_path / "out.txt").exists()


def test_further_test_splits_are_reported_by_themselves(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [SentencePair(source, target, ("en", "de")) for source, target in counted(count=80)]

    def twice() -> Splits[SentencePair]:
        return Splits("twice", rows[:50], rows[50:60], rows[60:70], further={"odd": rows[70:]})

    monkeypatch.setitem(SOURCES.own, "twice", Kind("twice", twice, ()))
    world.config("twice.yaml", CONFIG.replace("KIND", "none").partition("data:")[0] + "data: {kind: twice}\n"
                 "train: {epochs: 1, batch_tokens: 256}\n")  # fmt: skip
    found = world.train(config="twice.yaml", register=False)
    assert set(found.scores) == {"validation", "test", "odd"}
    logged = world.history(found.run_id)
    assert logged["odd/bleu"][0][1] == found.scores["odd"]["bleu"]
    assert logged["odd/examples"] == [(0, 10)]
    # The simple methods are measured on them, too.
    for result in run_baselines("twice.yaml"):
        assert set(result.scores) == {"validation", "test", "odd"}
    # A network without attention has no pictures of it.
    assert not world.client.list_artifacts(found.run_id, "attention")
