"""The console command: what goes to which stream, the exit status, and that an error is one sentence."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipelines import tracking
from pipelines.options import SECTIONS
from seqapp import bundle
from seqapp.config import Section
from seqapp.registry import Registry, reachable
from tests.pipelines.worlds import Done, Said, World, texts, write_csv

Seqapp = Callable[..., Said]


def records(said: Said) -> list[dict[str, object]]:
    return [json.loads(line) for line in said.out.splitlines()]


def refused(said: Said) -> str:
    """The one sentence of a command that could not be carried out."""
    assert said.status == 1, said
    assert said.out == ""
    assert "Traceback" not in said.err
    lines = [line for line in said.err.splitlines() if line]
    assert len(lines) == 1, said.err
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


# predict


def answers(done: Done, given: list[str]) -> list[dict[str, object]]:
    loaded = bundle.load(done.trained.bundle)
    found = loaded.predict([loaded.task.Input(text=text) for text in given])
    return [answer.model_dump(exclude_none=True) for answer in found]


def close(record: dict[str, object], answer: dict[str, object]) -> bool:
    """Equal but for the last digits: a batch of another size may round differently."""
    numbers = {"score": pytest.approx(answer["score"], abs=1e-5), "scores": pytest.approx(answer["scores"], abs=1e-5)}
    return record == {**answer, **numbers, "line": record["line"]}


GIVEN = ["the film was great", "this meal is bad", "", "a phone", "   ", 'quite "poor", the meal', "good"]
ENDINGS = {
    ".txt": "\n".join(GIVEN) + "\n",
    ".csv": "id,text\n" + "".join(f'{i},"{text.replace(chr(34), chr(34) * 2)}"\n' for i, text in enumerate(GIVEN)),
    ".tsv": "id\ttext\n" + "".join(f'{i}\t"{text.replace(chr(34), chr(34) * 2)}"\n' for i, text in enumerate(GIVEN)),
    ".jsonl": "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(GIVEN)),
}


@pytest.mark.parametrize("kind", [*ENDINGS, "stdin", "CR LF"])
def test_predict_answers_each_row_in_order_and_names_the_bad_ones(done: Done, seqapp: Seqapp, kind: str) -> None:
    content = ENDINGS.get(kind, ENDINGS[".txt"])
    content = content.replace("\n", "\r\n") if kind == "CR LF" else content
    file = done.path / f"given{kind if kind in ENDINGS else '.txt'}"
    file.write_bytes(content.encode())
    if kind == "stdin":
        said = seqapp("predict", done.trained.bundle, stdin=content.encode())
    else:
        said = seqapp("predict", "sentiment-tiny", file)
    first = 2 if kind in (".csv", ".tsv") else 1
    found = records(said)
    assert [record["line"] for record in found] == list(range(first, first + len(GIVEN)))
    bad = [place for place, text in enumerate(GIVEN) if not text.strip()]
    for place, record in enumerate(found):
        if place in bad:
            assert set(record) == {"line", "error"}
            assert "empty" in str(record["error"])
    good = [text for text in GIVEN if text.strip()]
    answered = [record for place, record in enumerate(found) if place not in bad]
    assert all(close(record, answer) for record, answer in zip(answered, answers(done, good), strict=True))
    assert said.status == 1
    assert said.err == "error: 2 row(s) could not be answered; each says why in its line\n"


def test_predict_without_bad_rows_is_a_success(done: Done, seqapp: Seqapp) -> None:
    said = seqapp("predict", "sentiment-tiny/1", "-", stdin=b"the film was great")
    assert (said.status, said.err) == (0, "")
    (record,) = records(said)
    assert close(record, answers(done, ["the film was great"])[0])


def test_predict_keeps_the_order_over_many_chunks(done: Done, seqapp: Seqapp) -> None:
    given = [text for text, _ in texts(3000, seed=5, longest=12)]
    bad = {0, 1023, 1024, 2500, 2999}
    file = done.path / "many.txt"
    file.write_text("".join(f"{'' if place in bad else text}\n" for place, text in enumerate(given)))
    found = records(seqapp("predict", done.trained.bundle, file))
    assert [record["line"] for record in found] == list(range(1, 3001))
    assert {place for place, record in enumerate(found) if "error" in record} == bad
    good = [place for place in range(3000) if place not in bad]
    wanted = answers(done, [given[place] for place in good])
    assert all(close(found[place], answer) for place, answer in zip(good, wanted, strict=True))


def test_nothing_to_predict_is_no_output(done: Done, seqapp: Seqapp) -> None:
    assert seqapp("predict", done.trained.bundle, "-") == Said(0, "", "")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("bytes.txt", b"good\nfine\nbl\xe9d\n", "bytes.txt:3: byte 2 is not utf-8; --encoding names another"),
        ("bytes.csv", b"text\ngood\nbl\xe9d\n", "bytes.csv:3: byte 12 (0xe9) is not utf-8 text"),
        ("bytes.jsonl", b'{"text": "good"}\n{"text": "bl\xe9d"}\n', "bytes.jsonl:2: byte 29 (0xe9) is not utf-8 text"),
        ("other.csv", b"body,label\ngood,1\n", "other.csv:2: no column 'text'; known: body, label"),
        ("table.xlsx", b"PK\x03\x04", "table.xlsx: the extension '.xlsx' does not tell"),
    ],
)
def test_predict_says_which_line_it_cannot_read(
    done: Done, seqapp: Seqapp, name: str, content: bytes, said: str
) -> None:
    (done.path / name).write_bytes(content)
    assert refused(seqapp("predict", done.trained.bundle, name)).startswith(said)


def test_predict_knows_encodings_columns_and_byte_order_marks(done: Done, seqapp: Seqapp) -> None:
    (wanted,) = answers(done, ["the film was café"])
    for name, content, options in (
        ("latin.txt", "the film was café\n".encode("latin-1"), ["--encoding", "latin-1"]),
        ("latin.csv", "body\nthe film was café\n".encode("latin-1"), ["--encoding", "latin-1", "--text", "body"]),
        ("marked.txt", "\ufeffthe film was café\n".encode(), []),
        ("wide.txt", "the film was café\n".encode("utf-16"), ["--encoding", "utf-16"]),
    ):
        (done.path / name).write_bytes(content)
        said = seqapp("predict", done.trained.bundle, name, *options)
        assert said.status == 0, (name, said.err)
        (record,) = records(said)
        assert close(record, wanted), name
    assert refused(seqapp("predict", done.trained.bundle, "latin.txt", "--encoding", "klingon")).startswith(
        "latin.txt: no encoding is called 'klingon'"
    )


# evaluate


def test_evaluate_counts_as_a_person_would(done: Done, seqapp: Seqapp) -> None:
    rows = [(text, label if place % 5 else "negative") for place, (text, label) in enumerate(texts(60, seed=12))]
    write_csv(done.path / "labelled.csv", rows)
    said = seqapp("evaluate", "sentiment-tiny", "--data", "labelled.csv")
    assert (said.status, said.err) == (0, "")
    figures = json.loads(said.out)
    predicted = [str(record["label"]) for record in records(seqapp("predict", "sentiment-tiny", "labelled.csv"))]
    pairs = list(zip((label for _, label in rows), predicted, strict=True))
    right = sum(true == said for true, said in pairs)
    assert 0 < right < 60
    assert figures["accuracy"] == pytest.approx(right / 60, abs=1e-12)
    assert figures["examples"] == 60
    assert figures["model"] == "sentiment-tiny"
    names = ("negative", "positive")
    assert figures["confusion"] == [
        {"true": true, **{called: pairs.count((true, called)) for called in names}} for true in names
    ]
    low, high = figures["accuracy_interval_95"]
    assert 0 < low < right / 60 < high < 1
    scores = {name: 2 * pairs.count((name, name)) / sum((name in pair) + (pair == (name, name)) for pair in pairs)
              for name in names}  # fmt: skip
    assert figures["macro_f1"] == pytest.approx(sum(scores.values()) / 2, abs=1e-6)


def test_evaluate_takes_other_columns(done: Done, seqapp: Seqapp) -> None:
    write_csv(done.path / "named.csv", texts(10, seed=12), header=("body", "class"))
    said = seqapp("evaluate", done.trained.bundle, "--data", "named.csv", "--text", "body", "--label", "class")
    assert json.loads(said.out)["examples"] == 10


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("body,label\ngood,positive\n", "odd.csv:1: no column is called 'text' (option text)"),
        ("text,label\ngood,perfect\n", "no class is called 'perfect'; known: negative, positive"),
        ("text,label\ngood,positive\n,negative\n", "odd.csv:3: the text (column 'text') is empty"),
        ("text,label\n", "odd.csv:1: the file holds no rows"),
    ],
)
def test_evaluate_says_what_is_wrong_with_the_file(done: Done, seqapp: Seqapp, content: str, said: str) -> None:
    (done.path / "odd.csv").write_text(content)
    assert said in refused(seqapp("evaluate", done.trained.bundle, "--data", "odd.csv"))


# export


def test_export_writes_a_bundle_and_replaces_only_a_bundle(done: Done, seqapp: Seqapp, tmp_path: Path) -> None:
    target = tmp_path / "new" / "out"
    for _ in range(2):
        said = seqapp("export", "sentiment-tiny@champion", target)
        assert (said.status, said.err) == (0, "")
        assert said.out.startswith(f"{target}: README.md, bundle.yaml")
        (target / "left over").write_text("from the older bundle") if _ == 0 else None
    assert not (target / "left over").exists()
    given = [text for text, _ in texts(5, seed=3)]
    loaded = bundle.load(target)
    assert [answer.model_dump(exclude_none=True) for answer in
            loaded.predict([loaded.task.Input(text=text) for text in given])] == answers(done, given)  # fmt: skip


def test_an_export_that_fails_leaves_the_old_bundle(
    done: Done, seqapp: Seqapp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    seqapp("export", done.trained.bundle, target)
    before = {file.name: file.read_bytes() for file in target.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copytree", full)
    assert "No space left on device" in refused(seqapp("export", done.trained.bundle, target))
    assert {file.name: file.read_bytes() for file in target.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_export_leaves_a_foreign_directory_alone(done: Done, seqapp: Seqapp, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert refused(seqapp("export", "sentiment-tiny", tmp_path)).startswith(f"{tmp_path}: not a bundle")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert refused(seqapp("export", "sentiment-tiny", tmp_path / "thesis.txt"))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_export_to_where_nothing_can_stand_is_refused(done: Done, seqapp: Seqapp, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    target = tmp_path / "thesis.txt" / "bundle"
    assert refused(seqapp("export", "sentiment-tiny", target)).startswith(f"{target}: cannot be written")


def test_export_onto_itself_keeps_the_bundle(done: Done, seqapp: Seqapp) -> None:
    assert "is the very bundle" in refused(seqapp("export", done.trained.bundle, done.trained.bundle))
    bundle.load(done.trained.bundle).check_golden()


def test_export_of_a_damaged_bundle_is_refused(done: Done, seqapp: Seqapp, tmp_path: Path) -> None:
    assert seqapp("export", "sentiment-tiny", tmp_path / "copy").status == 0
    weights = tmp_path / "copy" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 0xFF
    weights.write_bytes(bytes(content))
    assert "damaged" in refused(seqapp("export", tmp_path / "copy", tmp_path / "other"))
    assert not (tmp_path / "other").exists()


# References and servers


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("predict", "nobody"), "nobody@champion: not in the registry"),
        (("predict", "nobody/3"), "nobody/3: not in the registry"),
        (("predict", "f" * 32), f"run {'f' * 32}: "),
        (("predict", "here/not"), "here/not: no such directory"),
        (("predict", "."), ".: not a bundle: it has no bundle.yaml"),
        (("evaluate", "nobody", "--data", "data.csv"), "nobody@champion: not in the registry"),
        (("export", "nobody", "out"), "nobody@champion: not in the registry"),
        (("evaluate", "sentiment-tiny", "--data", "absent.csv"), "absent.csv: no such file"),
        (("predict", "sentiment-tiny", "absent.csv"), "absent.csv: no such file"),
        (("predict", "sentiment-tiny", "absent.txt"), "absent.txt: No such file"),
        (("train", "absent.yaml"), "absent.yaml: no such file; there are tiny.yaml"),
        (("train", "train.epochs=3"), "no config given"),
        (("train", "tiny.yaml", "train.epoch=3"), "command line (train.epoch=3): train.epoch: section 'train' has no"),
        (("train", "tiny.yaml", "train.epochs=0"), "command line (train.epochs=0): train.epochs: takes int >= 1"),
        (("config", "tiny.yaml", "model.encoder.kind=lsmt"), "command line (model.encoder.kind=lsmt)"),
        (("train", "tiny.yaml", "data.train=no.csv"), "no.csv: no such file; there are"),
        (("kinds", "lsmt"), "nothing is called 'lsmt'; did you mean 'lstm'?"),
        (("compare", "tagging"), "no runs of 'tagging' at sqlite:///"),
        (("data", "fetch", "nothing"), "no public data set is called 'nothing'; known: sst, mr, imdb"),
    ],
)
def test_an_error_is_one_sentence(done: Done, seqapp: Seqapp, arguments: tuple[str, ...], said: str) -> None:
    assert refused(seqapp(*arguments)).startswith(said)


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "sentiment-tiny"),
        ("evaluate", "sentiment-tiny", "--data", "data.csv"),
        ("export", "sentiment-tiny", "out"),
        ("compare",),
        ("train", "tiny.yaml"),
        ("baseline", "tiny.yaml"),
    ],
)
def test_a_server_that_is_not_there_is_told_at_once(
    world: World, seqapp: Seqapp, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    began = time.monotonic()
    said = refused(seqapp(*arguments))
    assert said.startswith("the tracking server http://127.0.0.1:9 cannot be used: ")
    assert "refused" in said
    assert time.monotonic() - began < 5
    assert not list(world.path.glob("runs/*"))


@pytest.mark.parametrize("uri", ["garbage://x", "file:./mlruns", "sqlite:///{path}/data.csv"])
def test_a_store_that_cannot_be_used_is_one_sentence(
    world: World, seqapp: Seqapp, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    uri = uri.format(path=world.path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert refused(seqapp("compare")).startswith(f"the tracking server {uri} cannot be used: ")


def test_the_console_script_fails_without_a_traceback(world: World) -> None:
    environment = {**world.environment(), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    said = subprocess.run(
        world.command("predict", "nobody"), cwd=world.path, env=environment, capture_output=True, text=True, timeout=60
    )
    refused(Said(said.returncode, said.stdout, said.stderr))


# config and kinds


def test_config_is_a_fixed_point(world: World, seqapp: Seqapp) -> None:
    said = seqapp("config", "tiny.yaml", "train.epochs=7", "model.encoder={kind: gru, hidden_size: 5}")
    assert (said.status, said.err) == (0, "")
    printed = yaml.safe_load(said.out)
    assert printed["train"]["epochs"] == 7
    assert printed["model"]["encoder"]["kind"] == "gru"
    assert printed["train"]["weight_decay"] == 0.0
    world.config("again.yaml", said.out)
    assert seqapp("config", "again.yaml").out == said.out


def test_every_config_of_the_project_is_a_fixed_point(world: World, seqapp: Seqapp) -> None:
    configs = Path(__file__).parents[2] / "configs"
    found = sorted(path for path in configs.rglob("*.yaml") if path.parent != configs / "serving")
    assert found
    for path in found:
        said = seqapp("config", path)
        assert said.status == 0, said.err
        world.config("again.yaml", said.out)
        assert seqapp("config", "again.yaml").out == said.out, path


def families() -> dict[str, Registry[object]]:
    sections: list[Section] = list(SECTIONS.values())
    registries = [section for section in sections if isinstance(section, Registry)]
    return {family.name: family for registry in registries for family in reachable(registry)}


def test_kinds_lists_everything_registered(world: World, seqapp: Seqapp) -> None:
    said = seqapp("kinds")
    assert (said.status, said.err) == (0, "")
    lines = [line.split() for line in said.out.splitlines() if line.startswith("kind: ")]
    listed = [line[1] for line in lines]
    assert sorted(listed) == sorted(kind for family in families().values() for kind in family.own)
    assert {"sentiment", "lstm", "gru", "birnn", "stack", "table", "reviews", "word", "max", "full"} <= set(listed)
    for option in ("hidden_size", "learning_rate", "validation_share", "max_vocabulary"):
        assert any(line.strip().startswith(option) for line in said.out.splitlines()), option


@pytest.mark.parametrize(("name", "there", "absent"), [("lstm", "kind: lstm", "kind: gru"),
                                                       ("pooling", "kind: attention", "kind: lstm"),
                                                       ("train", "learning_rate", "kind: lstm")])  # fmt: skip
def test_kinds_of_one_name(world: World, seqapp: Seqapp, name: str, there: str, absent: str) -> None:
    said = seqapp("kinds", name)
    assert there in said.out
    assert absent not in said.out


def test_the_schema_is_json_and_complete(world: World, seqapp: Seqapp) -> None:
    said = seqapp("kinds", "--schema")
    schema = json.loads(said.out)
    assert set(schema["properties"]) == set(SECTIONS)
    assert schema["additionalProperties"] is False
    references = [part.split('"')[0] for part in said.out.split('"#/$defs/')[1:]]
    assert set(references) <= set(schema["$defs"])
    for name, family in families().items():
        ways = schema["$defs"][name.replace(" ", "_")]["oneOf"]
        assert sorted(way["properties"]["kind"]["const"] for way in ways if "properties" in way) == sorted(family), name
    rate = schema["properties"]["train"]["properties"]["learning_rate"]
    assert rate["exclusiveMinimum"] == 0
    assert rate["description"]


# The comparison after training, and data


def test_train_prints_the_comparison_and_where_the_bundle_is(world: World, seqapp: Seqapp) -> None:
    elsewhere = {"network": "gru", "dataset": "other", "validation_digest": "v" * 64, "test_digest": "t" * 64}
    earlier = tracking.create_run("sentiment", "earlier", elsewhere)
    tracking.log_metrics(earlier, {"best_validation/accuracy": 1})
    tracking.finish(earlier)
    said = seqapp("train", "tiny.yaml", "train.epochs=1", "--quiet", "--no-register")
    assert said.status == 0, said.err
    assert said.out.count("validation data") == 1
    assert "earlier" not in said.out, "runs on other data are not in the way"
    assert "Keep tiny (lstm): it has the best validation accuracy" in said.out
    (folder,) = world.path.glob("runs/*/")
    assert said.out.splitlines()[-1].startswith(f"tiny: bundle runs/{folder.name}/bundle, run {folder.name[-8:]}")
    assert list(world.client.search_registered_models()) == []


def test_data_list_names_every_public_data_set(world: World, seqapp: Seqapp) -> None:
    said = seqapp("data", "list")
    assert (said.status, said.err) == (0, "")
    for name in ("sst", "mr", "imdb"):
        assert any(line.startswith("│") and line.split("│")[1].strip() == name for line in said.out.splitlines()), name


@pytest.mark.parametrize("command", ["train", "predict", "evaluate", "export", "compare", "config", "kinds"])
def test_every_command_explains_itself(world: World, seqapp: Seqapp, command: str) -> None:
    said = seqapp(command, "--help")
    assert said.status == 0
    assert "Usage:" in said.out
    assert command in seqapp("--help").out


def test_the_name_of_a_config_is_shown_as_it_is(world: World, seqapp: Seqapp) -> None:
    world.config("[b]:smile:.yaml")
    said = seqapp("train", "[b]:smile:.yaml", "train.epochs=1", "--no-register", "--quiet")
    assert said.status == 0, said.err
    assert "\n[b]:smile:: bundle runs/sentiment-[b]:smile:-" in said.out
