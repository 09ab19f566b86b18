"""A bundle answers as it was saved, or is refused with the reason; nothing in it can run or ask for memory."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import seqapp
from pipelines.options import SECTIONS
from seqapp import bundle, config
from seqapp.bundle import MANIFEST, Bundle, load, read_manifest, save
from seqapp.data.splits import LabelledText
from seqapp.data.text import Passage
from seqapp.errors import BundleError
from seqapp.nn.recurrent import ENCODERS
from seqapp.tasks import TASKS, Task
from seqapp.tasks.sentiment import SentimentInput

RESOLVED = config.check(
    {
        "task": "sentiment",
        "model": {
            "kind": "classifier",
            "embedding_size": 5,
            "encoder": {"kind": "birnn", "layer": {"kind": "lstm", "hidden_size": 4}},
            "pooling": {"kind": "concat", "parts": ["max", "last"]},
        },
        "data": "reviews",
        "train": {"model_name": "1e3"},
    },
    sections=SECTIONS,
)
GOLDEN = [SentimentInput(text="a good film"), SentimentInput(text="a bad film !", explain=True)]
ASKED = [SentimentInput(text="good , unseen"), SentimentInput(text="bad bad film", explain=True)]
FILES = ["README.md", "config.yaml", "golden.json", "labels.json", "metrics.json", "tokenizer.json",
         "weights.safetensors"]  # fmt: skip


@functools.cache
def trained() -> tuple[Task[Any, Any], nn.Module]:
    torch.manual_seed(5)
    task = TASKS.build(RESOLVED["task"])
    task.prepare([LabelledText("a good film , fine", "positive"), LabelledText("a bad film !", "negative")])
    model = task.build_model(RESOLVED["model"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.8, 0.8)
    return task, model.eval()


def write(path: Path, **changes: Any) -> Path:
    task, model = trained()
    given = {"task": task, "model": model, "resolved": RESOLVED, "metrics": {"test": {"accuracy": 0.5}},
             "name": "toy", "golden": GOLDEN, "card": "# Toy größe\n"}  # fmt: skip
    return save(path, **{**given, **changes})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return write(tmp_path / "bundle")


def reason(path: Path) -> str:
    """Why ``path`` is refused, with its folder cut off."""
    with pytest.raises(BundleError) as caught:
        load(path).check_golden()
    return str(caught.value).replace(str(path.parent) + "/", "")


def reseal(path: Path, **changes: Any) -> None:
    """Make the manifest agree with the files again, as somebody who forges a bundle would."""
    manifest = yaml.safe_load((path / MANIFEST).read_text())
    manifest["files"] = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir() if file.name != MANIFEST
    }
    (path / MANIFEST).write_text(yaml.safe_dump({**manifest, **changes}))


def change_config(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tree = yaml.safe_load((path / "config.yaml").read_text())
    change(tree)
    (path / "config.yaml").write_text(yaml.safe_dump(tree))
    reseal(path)


def change_weights(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(path / "weights.safetensors")
    change(weights)
    save_file(weights, path / "weights.safetensors")
    reseal(path)


def test_save_and_load_give_identical_answers(saved: Path) -> None:
    task, model = trained()
    loaded = load(saved)
    assert loaded.predict(ASKED) == task.predict(model, ASKED)
    loaded.check_golden()
    assert not loaded.model.training
    assert loaded.config == RESOLVED
    assert loaded.metrics == {"test": {"accuracy": 0.5}}
    assert loaded.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert all(not parameter.is_meta for parameter in loaded.model.parameters())
    assert (saved / "README.md").read_text(encoding="utf-8") == "# Toy größe\n"


def test_the_manifest_lists_every_file(saved: Path) -> None:
    manifest = read_manifest(saved)
    assert sorted(manifest.files) == FILES == sorted(file.name for file in saved.iterdir() if file.name != MANIFEST)
    assert (manifest.format, manifest.version, manifest.task, manifest.name) == ("seqapp-bundle", 1, "sentiment", "toy")
    assert manifest.seqapp == seqapp.__version__
    assert yaml.safe_load((saved / MANIFEST).read_text())["created"] == manifest.created


def test_a_loaded_bundle_is_saved_again_the_same(saved: Path, tmp_path: Path) -> None:
    loaded = load(saved)
    again = write(tmp_path / "again", task=loaded.task, model=loaded.model, resolved=loaded.config)
    assert read_manifest(again).files == read_manifest(saved).files


def test_a_copied_or_renamed_bundle_is_the_same_bundle(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "elsewhere" / "copy")
    (tmp_path / "link").symlink_to(saved)
    for path in (tmp_path / "elsewhere" / "copy", tmp_path / "link", str(saved)):
        assert load(path).predict(ASKED) == load(saved).predict(ASKED)


def test_saving_leaves_the_training_mode_alone_but_answers_in_eval_mode(tmp_path: Path) -> None:
    task, _ = trained()
    model = task.build_model({**RESOLVED["model"], "dropout": 0.9}).train()
    path = write(
        tmp_path / "bundle", model=model, resolved={**RESOLVED, "model": {**RESOLVED["model"], "dropout": 0.9}}
    )
    assert model.training
    load(path).check_golden()


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(saved: Path, name: str) -> None:
    file = saved / name
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (whole[:-1], bytes(flipped), whole + b"\n", b""):
        file.write_bytes(content)
        assert reason(saved) == f"bundle/{name}: damaged: its SHA-256 is not the one in bundle.yaml"
    file.unlink()
    assert reason(saved) == f"bundle/{name}: missing; bundle.yaml lists it"
    file.mkdir()
    assert reason(saved) == f"bundle/{name}: missing; bundle.yaml lists it"


def test_a_directory_that_is_no_bundle(tmp_path: Path, saved: Path) -> None:
    assert reason(tmp_path / "none") == "none: no such directory"
    (tmp_path / "empty").mkdir()
    assert reason(tmp_path / "empty") == "empty: not a bundle: it has no bundle.yaml"
    with pytest.raises(BundleError, match="no such directory"):
        load(saved / "config.yaml")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "foreign: format is not 'seqapp-bundle'"),
        ("- a\n", "foreign: format is not 'seqapp-bundle'"),
        ("just words", "foreign: format is not 'seqapp-bundle'"),
        ("format: mlflow\nversion: 1\n", "foreign: format is not 'seqapp-bundle'"),
        ("format: seqapp-bundle\n", f"format version None; this seqapp {seqapp.__version__} reads 1"),
        ("format: seqapp-bundle\nversion: 2\n", f"format version 2; this seqapp {seqapp.__version__} reads 1"),
        ("format: seqapp-bundle\nversion: '1'\n", f"format version '1'; this seqapp {seqapp.__version__} reads 1"),
        ("format: seqapp-bundle\nversion: 1\n", "damaged: task: Field required"),
        ("format: [", "damaged: "),
        ("format: seqapp-bundle\nformat: x\n", "damaged: "),
        ("a: &x [1]\nb: *x\n", "aliases (*name) are not allowed"),
        ("!!python/object/apply:os.system [touch pwned]", "are not allowed"),
        ("format: !!python/name:os.system\n", "are not allowed"),
        ("format: !!bool maybe\n", "are not allowed"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_a_foreign_or_newer_manifest(saved: Path, text: str, why: str) -> None:
    (saved / MANIFEST).write_text(text)
    assert reason(saved).startswith("bundle/bundle.yaml: ")
    assert why in reason(saved)
    assert not Path("pwned").exists()


def test_a_manifest_that_is_not_text(saved: Path) -> None:
    (saved / MANIFEST).write_bytes(b"\xff\xfe\x00")
    assert reason(saved).startswith("bundle/bundle.yaml: damaged: ")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"surplus": 1}, "bundle/bundle.yaml: damaged: surplus: Extra inputs are not permitted"),
        ({"version": True}, "bundle/bundle.yaml: damaged: version: Input should be a valid integer"),
        ({"name": 3}, "bundle/bundle.yaml: damaged: name: Input should be a valid string"),
        ({"files": {"config.yaml": 3}}, "bundle/bundle.yaml: damaged: files.config.yaml: Input should be a valid"),
        ({"files": {}}, "bundle/bundle.yaml: does not list config.yaml"),
        ({"task": "tagging"}, "bundle: bundle.yaml says task 'tagging', config.yaml 'sentiment'"),
    ],
)
def test_a_manifest_that_does_not_fit(saved: Path, change: dict[str, Any], why: str) -> None:
    reseal(saved, **change)
    assert reason(saved).startswith(why)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "sub/inside", "..", ".", "sub/", "./config.yaml"])
def test_a_file_name_is_a_plain_name(saved: Path, name: str, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    (saved / "sub").mkdir()
    (saved / "sub" / "inside").write_text("x")
    manifest = yaml.safe_load((saved / MANIFEST).read_text())
    manifest["files"] = {name: hashlib.sha256(b"x").hexdigest(), **manifest["files"]}
    (saved / MANIFEST).write_text(yaml.safe_dump(manifest))
    assert reason(saved) == f"bundle/bundle.yaml: {name!r} is not a plain file name"


@pytest.mark.parametrize("name", ["", "a\0b", "none", "x" * 300])
def test_a_file_name_that_leads_nowhere(saved: Path, name: str) -> None:
    manifest = yaml.safe_load((saved / MANIFEST).read_text())
    (saved / MANIFEST).write_text(yaml.safe_dump({**manifest, "files": {**manifest["files"], name: "0"}}))
    assert reason(saved).endswith("missing; bundle.yaml lists it")


@pytest.mark.parametrize("name", FILES)
def test_a_symbolic_link_to_other_content_is_refused(saved: Path, name: str) -> None:
    (saved / name).unlink()
    (saved / name).symlink_to("/etc/hostname")
    assert reason(saved) == f"bundle/{name}: damaged: its SHA-256 is not the one in bundle.yaml"
    (saved / name).unlink()
    (saved / name).symlink_to("/dev/zero")
    assert reason(saved) == f"bundle/{name}: missing; bundle.yaml lists it"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda w: w.update(extra=torch.zeros(1)), "its tensors are not those of the config's model: extra"),
        (lambda w: w.pop("encoder.ahead.b"), "its tensors are not those of the config's model: encoder.ahead.b"),
        (lambda w: w.update({"encoder.ahead.b": torch.zeros(15)}),
         "encoder.ahead.b has shape (15,); the config's model has (16,)"),
        (lambda w: w.update({"head.project.weight": w["head.project.weight"].T.contiguous()}),
         "head.project.weight has shape (16, 2); the config's model has (2, 16)"),
        (lambda w: w.update({"encoder.ahead.b": torch.zeros(16, dtype=torch.float64)}),
         "encoder.ahead.b is torch.float64; torch.float32 fits"),
        (lambda w: w.update({"encoder.ahead.b": torch.zeros(16, dtype=torch.int64)}),
         "encoder.ahead.b is torch.int64; torch.float32 fits"),
        (lambda w: w["encoder.back.W"].view(-1)[7:8].fill_(float("nan")),
         "encoder.back.W holds values that are not finite"),
        (lambda w: w["encoder.back.W"].view(-1)[7:8].fill_(float("inf")),
         "encoder.back.W holds values that are not finite"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(saved: Path, change: Callable[[dict[str, Tensor]], object], why: str) -> None:
    change_weights(saved, change)
    assert reason(saved) == f"bundle/weights.safetensors: {why}"


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


def test_a_pickle_in_place_of_the_weights_does_not_run(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = saved / "weights.safetensors"
    contents = [pickle.dumps(Bomb()), b"", b"\x00" * 64, (2**62).to_bytes(8, "little") + b"{}"]
    torch.save({"x": torch.zeros(2)}, file)
    for content in [file.read_bytes(), *contents]:
        file.write_bytes(content)
        reseal(saved)
        assert reason(saved).startswith("bundle/weights.safetensors: damaged: ")
    for name in ("golden.json", "metrics.json", "labels.json", "tokenizer.json", "config.yaml"):
        shutil.rmtree(saved)
        write(saved)
        (saved / name).write_bytes(pickle.dumps(Bomb()))
        reseal(saved)
        assert f"bundle/{name}: " in reason(saved)
    assert not Path("pwned").exists()


def encoder(tree: dict[str, Any], **options: Any) -> None:
    tree["model"]["encoder"]["layer"].update(options)


@pytest.mark.parametrize("size", [5, 50_000, 10**10, 10**15, 2**63, 10**40])
def test_a_huge_size_in_the_config_takes_no_memory(saved: Path, size: int) -> None:
    change_config(saved, lambda tree: encoder(tree, hidden_size=size))
    tracemalloc.start()
    why = reason(saved)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ("has shape" if size <= 50_000 else "bundle/config.yaml: ") in why
    assert peak < 50e6
    status = Path("/proc/self/status").read_text() if Path("/proc/self/status").exists() else ""
    resident = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")]
    assert all(kilobytes < 4e6 for kilobytes in resident)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda tree: encoder(tree, hidden_size=0), "takes int >= 1, not 0"),
        (lambda tree: encoder(tree, hiden_size=4), "has no option 'hiden_size'; did you mean 'hidden_size'?"),
        (lambda tree: encoder(tree, kind="lsmt"), "no recurrent layer is called 'lsmt'; did you mean 'lstm'?"),
        (lambda tree: encoder(tree, kind=["lstm"]), "no recurrent layer is called ['lstm']"),
        (lambda tree: tree["model"].update(kind="os.system"), "this task trains a model of kind 'classifier'"),
        (lambda tree: tree.pop("model"), "KeyError: 'model'"),
        (lambda tree: tree.update(model=3), "AttributeError"),
        (lambda tree: tree["model"].update(pooling="last", encoder={**tree["model"]["encoder"], "merge": "sum"}),
         "a birnn with merge: concat"),
        (lambda tree: tree["task"].update(crop=0), "takes int >= 1 or null, not 0"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit(saved: Path, change: Callable[[dict[str, Any]], object], why: str) -> None:
    change_config(saved, change)
    assert reason(saved).startswith("bundle/config.yaml: ")
    assert why in reason(saved)


@pytest.mark.parametrize("text", ["", "- 1", "word", "task: sentiment", "task: {kind: [x]}", "[" * 5000, "a: !!x y",
                                  "a: &b 1", "task: *b", "a: 1\na: 1", "\x00"])  # fmt: skip
def test_a_config_that_is_no_config(saved: Path, text: str) -> None:
    (saved / "config.yaml").write_text(text)
    reseal(saved)
    assert "config.yaml" in reason(saved)


@pytest.mark.parametrize("name", ["golden.json", "metrics.json", "labels.json", "tokenizer.json"])
@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "3", '{"a": 1}', '[{"input": {}}]', "[1, 2]", "null"])
def test_json_that_does_not_fit(saved: Path, name: str, text: str) -> None:
    if name == "metrics.json" and text in ("3", '{"a": 1}', '[{"input": {}}]', "[1, 2]", "null"):
        return  # any JSON will do: nothing is computed from it
    (saved / name).write_text(text)
    reseal(saved)
    assert f"bundle/{name}: " in reason(saved)


def test_a_bundle_with_labels_or_words_too_many(saved: Path) -> None:
    (saved / "labels.json").write_text('["negative", "neutral", "positive"]')
    reseal(saved)
    assert "head.project.weight has shape (2, 16); the config's model has (3, 16)" in reason(saved) or (
        "head.project.bias has shape (2,); the config's model has (3,)" in reason(saved)
    )


def test_golden_answers_detect_changed_weights_and_a_changed_tokenizer(saved: Path) -> None:
    load(saved).check_golden()
    change_weights(saved, lambda weights: weights["head.project.bias"].add_(torch.tensor([0.1, 0])))
    assert "the golden input text='a good film' explain=False is answered {'label':" in reason(saved)
    shutil.rmtree(saved)
    write(saved)
    tokenizer = json.loads((saved / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["good"], words["bad"] = words["bad"], words["good"]
    (saved / "tokenizer.json").write_text(json.dumps(tokenizer))
    reseal(saved)
    assert "the golden input" in reason(saved)
    shutil.rmtree(saved)
    write(saved)
    (saved / "labels.json").write_text('["positive", "negative"]')
    reseal(saved)
    assert "the golden input" in reason(saved)


def test_golden_answers_allow_for_another_machine(saved: Path) -> None:
    golden = json.loads((saved / "golden.json").read_text())
    for entry in golden:
        entry["output"]["score"] += 0.9 * bundle.GOLDEN_TOLERANCE
    (saved / "golden.json").write_text(json.dumps(golden))
    reseal(saved)
    load(saved).check_golden()
    golden[0]["output"]["score"] += bundle.GOLDEN_TOLERANCE
    (saved / "golden.json").write_text(json.dumps(golden))
    reseal(saved)
    assert "the golden input text='a good film'" in reason(saved)


@pytest.mark.parametrize("breaks", ["seqapp.bundle.save_file", "seqapp.bundle._write", "seqapp.bundle._sha256",
                                    "seqapp.bundle.os.replace"])  # fmt: skip
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failing_save_leaves_the_old_bundle_and_nothing_else(
    saved: Path, breaks: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(breaks, fail)
    with pytest.raises(type(error)):
        write(saved, name="second")
    with pytest.raises(type(error)):
        write(saved.with_name("fresh"))
    monkeypatch.undo()
    assert read_manifest(saved).name == "toy"
    load(saved).check_golden()
    assert os.listdir(saved.parent) == ["bundle"]


def test_a_save_that_fails_between_the_two_renames_puts_the_old_bundle_back(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace
    calls: list[int] = []

    def second_fails(*paths: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError("disk full")
        replace(*paths)

    monkeypatch.setattr("seqapp.bundle.os.replace", second_fails)
    with pytest.raises(OSError, match="disk full"):
        write(saved, name="second")
    assert read_manifest(saved).name == "toy"
    assert os.listdir(saved.parent) == ["bundle"]


def test_a_bundle_is_replaced_whole_and_only_by_a_bundle(saved: Path, tmp_path: Path) -> None:
    (saved / "left-over").write_text("x")
    write(saved, name="second")
    assert read_manifest(saved).name == "second"
    assert not (saved / "left-over").exists()
    assert os.listdir(tmp_path) == ["bundle"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(BundleError, match="mine: exists and is not a bundle, so it is not overwritten"):
        write(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        write(tmp_path / "mine" / "thesis.txt")


def test_figures_that_are_not_finite_are_null_and_such_answers_are_refused(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {"validation": {"accuracy": 0.5, "nll": float("nan")}, "curve": (1, float("inf"), None, "x", True)}
    loaded = load(write(tmp_path / "odd", metrics=scores))
    assert loaded.metrics == {"validation": {"accuracy": 0.5, "nll": None}, "curve": [1, None, None, "x", True]}
    task, _ = trained()
    plain = task.predict

    def predict(model: nn.Module, inputs: list[Any]) -> list[Any]:
        return [answer.model_copy(update={"score": float("nan")}) for answer in plain(model, inputs)]

    monkeypatch.setattr(task, "predict", predict)
    with pytest.raises(BundleError, match="b: a golden answer holds a number that is not finite"):
        write(tmp_path / "b")
    assert not (tmp_path / "b").exists()
    with pytest.raises(BundleError, match="golden answer"):
        write(saved)
    monkeypatch.undo()
    load(saved).check_golden()


def test_a_bundle_can_be_read_by_others(saved: Path) -> None:
    assert saved.stat().st_mode & 0o755 == 0o755
    assert isinstance(load(saved), Bundle)


NEEDS_MORE: dict[str, dict[str, Any]] = {
    "stack": {"layers": [{"kind": "elman", "hidden_size": 6}, {"kind": "narx", "hidden_size": 4}]},
    "variational": {"layer": {"kind": "gru", "hidden_size": 6}, "recurrent_dropout": 0.2},
    "weight_dropout": {"layer": {"kind": "lstm", "hidden_size": 6}, "dropout": 0.2},
    "birnn": {"layer": {"kind": "jordan", "hidden_size": 6}},
}


@pytest.mark.parametrize("kind", sorted(ENCODERS))
@pytest.mark.parametrize("embedding_size", [5, None])
def test_every_network_answers_from_its_bundle_as_before(kind: str, embedding_size: int | None, tmp_path: Path) -> None:
    task, _ = trained()
    encoder = {"kind": kind, **NEEDS_MORE.get(kind, {"hidden_size": 6})}
    resolved = {**RESOLVED, "model": {"kind": "classifier", "encoder": encoder, "embedding_size": embedding_size}}
    model = task.build_model(resolved["model"])
    loaded = load(write(tmp_path / "bundle", model=model, resolved=resolved))
    assert loaded.predict(ASKED) == task.predict(model.eval(), ASKED)
    loaded.check_golden()


def test_a_tied_table_is_stored_once_and_stays_one(tmp_path: Path) -> None:
    spec = {"kind": "language_model", "encoder": {"kind": "gru", "hidden_size": 6}, "embedding_size": 6, "tied": True}
    resolved = {"task": {"kind": "generation", "tokenizer": {"kind": "character"}}, "model": spec}
    task = TASKS.build(resolved["task"])
    task.prepare([Passage("abacus")])
    model = task.build_model(spec)
    golden = [task.Input(prompt="a", max_tokens=3, temperature=0)]
    save(tmp_path / "b", task=task, model=model, resolved=resolved, metrics={}, name="b", golden=golden)
    with safe_open(tmp_path / "b" / "weights.safetensors", framework="pt") as stored:
        names = set(stored.keys())
        assert [name for name in names if stored.get_slice(name).get_shape() == [9, 6]] == ["embedding.weight"]
    again = load(tmp_path / "b")
    again.check_golden()
    assert again.model.head.project.weight is again.model.embedding.weight
    assert torch.equal(again.model.embedding.weight, model.embedding.weight)
    assert again.parameters == sum(parameter.numel() for parameter in model.parameters())
