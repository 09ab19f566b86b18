"""YAML without surprises: what is read, what is refused, and that every refusal says where and what would fit."""

from __future__ import annotations

import datetime
import json
import math
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.options import SECTIONS
from seqapp import config
from seqapp.config import Section
from seqapp.errors import ConfigError
from seqapp.registry import Positive, Registry, Size, Spec

CONFIGS = sorted(
    path for path in (Path(__file__).parents[1] / "configs").rglob("*.yaml") if path.parent.name != "serving"
)

CELLS: Registry[Any] = Registry("cell")


@CELLS.register("small")
def small(*, size: Size = 4, rate: Positive = 1.0) -> None:
    """A cell."""


@CELLS.register("pile")
def pile(*, layers: list[Annotated[Spec, CELLS]], top: Annotated[Spec, CELLS] | None = None) -> None:
    """Cells on top of each other."""


def options(*, steps: Size = 10, rate: Positive = 0.1, name: str | None = None) -> None:
    """A section of plain options."""


TOY: dict[str, Section] = {"model": CELLS, "train": options}

TEXT = """\
# a comment
model:
  kind: pile
  layers:
    - kind: small
      size: 3
    - small
train:
  steps: 5
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def load(file: Path, *overrides: str) -> dict[str, Any]:
    return config.load(file, overrides, sections=TOY)


def refusal(file: Path, *overrides: str, text: str | None = None) -> str:
    """The message, with the folder cut off."""
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(file, *overrides)
    return str(caught.value).replace(f"{file.parent}/", "")


def test_defaults_are_written_out_in_the_order_of_the_sections(file: Path) -> None:
    assert load(file) == {
        "model": {
            "kind": "pile",
            "layers": [{"kind": "small", "size": 3, "rate": 1.0}, {"kind": "small", "size": 4, "rate": 1.0}],
            "top": None,
        },
        "train": {"steps": 5, "rate": 0.1, "name": None},
    }
    assert list(load(file)) == ["model", "train"]


@pytest.mark.parametrize("text", ["model: small\ntrain:\n", "model: small\n", "model: {kind: small}\ntrain: {}\n"])
def test_a_plain_section_may_be_empty_or_absent(file: Path, text: str) -> None:
    file.write_text(text)
    assert load(file)["train"] == {"steps": 10, "rate": 0.1, "name": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: smal\n", "toy.yaml:1: model.kind: no cell is called 'smal'; did you mean 'small'? known: small, pile"),
        ("model: {kind: small}\ntrian: {}\n",
         "toy.yaml:2: trian: no section is called 'trian'; did you mean 'train'? known: model, train"),
        ("train:\n  steps: 3\n", "toy.yaml: the section 'model' is missing: {kind: NAME} with one of small, pile"),
        ("model: small\ntrain:\n  rate: 1\n  stepz: 3\n",
         "toy.yaml:4: train.stepz: section 'train' has no option 'stepz'; did you mean 'steps'? "
         "known: steps, rate, name"),
        ("model: small\ntrain:\n  steps: 0\n", "toy.yaml:3: train.steps: takes int >= 1, not 0"),
        ("model: small\ntrain: 0\n", "toy.yaml:2: train: section 'train' takes options (name: value), not 0"),
        ("model: small\ntrain: false\n", "toy.yaml:2: train: section 'train' takes options (name: value), not False"),
        ("model: small\ntrain: []\n", "toy.yaml:2: train: section 'train' takes options (name: value), not []"),
        ("model:\n", "toy.yaml:1: model: the cell is written as {kind: NAME, ...}, not None"),
        ("model:\n  kind: pile\n", "toy.yaml:1: model: cell 'pile' needs the option 'layers' (list of cell specs)"),
        ("model:\n  kind: pile\n  layers:\n  - small\n  - kind: small\n    size: x\n",
         "toy.yaml:6: model.layers.1.size: takes int >= 1, not 'x'"),
        ("model:\n  kind: pile\n  layers:\n  - small\n  - gru\n",
         "toy.yaml:5: model.layers.1.kind: no cell is called 'gru'; known: small, pile"),
        ("model: {kind: [small]}\n", "toy.yaml:1: model.kind: no cell is called ['small']; did you mean 'small'? "
         "known: small, pile"),
        ("", "toy.yaml: a config is a mapping of model, train"),
        ("- model\n", "toy.yaml: a config is a mapping of model, train"),
        ("model: small\n1: 2\n", "toy.yaml:2: 1: no section is called 1; known: model, train"),
        ("model: small\ntrain: {steps: 1}\nmodel: pile\n", "toy.yaml:3: model stands twice"),
        ("model:\n  kind: small\n  size: 1\n  size: 2\n", "toy.yaml:4: model.size stands twice"),
        ("model: small\ntrain: {steps: 1, steps: 1}\n", "toy.yaml:2: train.steps stands twice"),
        ("a: &x 1\nmodel: *x\n", "toy.yaml:2: not valid YAML: aliases (*name) are not allowed"),
        ("model: [1\ntrain: 2\n", "toy.yaml:2: not valid YAML: expected ',' or ']', but got ':'"),
        ("model: small\n\tx: 1\n", "toy.yaml:2: not valid YAML: found character '\\t' that cannot start any token"),
        ("model: small\n---\nmodel: small\n", "toy.yaml:2: not valid YAML: but found another document"),
        ("model: {[1]: 2}\n", "toy.yaml:1: not valid YAML: found unhashable key"),
        ("model: small\ntrain: {rate: 1e999}\n", "toy.yaml:2: not valid YAML: 1e999 is too large"),
        ("model: small\ntrain: {steps: " + "9" * 5000 + "}\n", "toy.yaml:2: not valid YAML: a number has too many "
         "digits"),
        ("model: " + "[" * 5000 + "\n", "toy.yaml: nested too deeply"),
    ],
)  # fmt: skip
def test_every_refusal_names_file_line_and_field(file: Path, text: str, message: str) -> None:
    assert refusal(file, text=text) == message


@pytest.mark.parametrize(
    "tagged",
    ["!!python/object/apply:os.system [ls]", "!!python/name:os.system", "!!bool maybe", "!!int x", "!!timestamp x",
     "!!timestamp 2020-01-01", "!!binary x", "!!set {a}", "!!float x", "!own 1", "!!str 5", "! 5",
     "!!omap [a: 1]", "!!merge x"],
)  # fmt: skip
def test_tags_are_refused(file: Path, tagged: str) -> None:
    message = refusal(file, text=f"model: small\ntrain:\n  name: {tagged}\n")
    assert message.startswith("toy.yaml:3: not valid YAML: tags (")
    assert message.endswith(") are not allowed")


def test_a_merge_key_is_a_plain_key(file: Path) -> None:
    assert "has no option '<<'" in refusal(file, text="model: small\ntrain:\n  <<: {steps: 3}\n")


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-3", 0.001), ("1E3", 1000.0), ("3e+2", 300.0), ("1.", 1.0), (".5", 0.5), ("-.5e1", -5.0), ("+1.5", 1.5),
        ("08", 8), ("-0", 0), ("+7", 7), ("1_000", "1_000"), ("0x10", "0x10"), ("0o7", "0o7"), ("12:30:00", "12:30:00"),
        ("no", "no"), ("on", "on"), ("yes", "yes"), ("off", "off"), ("y", "y"), ("True", "True"), ("NULL", "NULL"),
        ("true", True), ("false", False), ("null", None), ("~", None), ("", None),
        ("2020-01-01", "2020-01-01"), (".inf", ".inf"), (".nan", ".nan"), ("=", "="), ("1e", "1e"), ("e3", "e3"),
        ("'1e-3'", "1e-3"), ('"true"', "true"), ("[1e2, no]", [100.0, "no"]), ("1.2.3", "1.2.3"),
    ],
)  # fmt: skip
def test_scalars_are_read_as_they_look(written: str, value: Any) -> None:
    got = config.parse(f"key: {written}", "x.yaml")["key"]
    assert got == value
    assert type(got) is type(value)


WORDS = (
    """1e3 1e-3 08 +1 .5e3 1.5e3 null ~ no on true << = - 2020-01-01 1:30 *x &x !x %x @x `x 0x1f 1_0 .inf ' " : ? |"""
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=("Cs", "Cc"))),
    st.sampled_from([*WORDS.split(), "", "- a", "# x", "a: b", "a #b", "a\nb", " a", "a ", "\t"]),
)
NAMES = st.text("xyz~", min_size=1)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(NAMES, TREES, max_size=4))
def test_what_dump_writes_parse_reads_back(tree: dict[str, Any]) -> None:
    assert config.parse(config.dump(tree), "x.yaml") == (tree or {})


def test_dump_writes_no_alias_for_a_shared_value() -> None:
    shared = {"kind": "small"}
    assert config.parse(config.dump({"a": shared, "b": [shared, shared]}), "x.yaml") == {
        "a": shared, "b": [shared, shared],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.steps=7", ("train", "steps"), 7),
        ("train.rate=1e-2", ("train", "rate"), 0.01),
        ("train.name=no", ("train", "name"), "no"),
        ("train.name=a=b", ("train", "name"), "a=b"),
        ("train.name='7'", ("train", "name"), "7"),
        ("train.name=", ("train", "name"), None),
        ("train.name=null", ("train", "name"), None),
        ("model.layers.0.size=9", ("model", "layers", 0, "size"), 9),
        ("model.layers.1.size=9", ("model", "layers", 1, "size"), 9),  # written as a bare name
        ("model.top=small", ("model", "top"), {"kind": "small", "size": 4, "rate": 1.0}),
        ("model.top.kind=small", ("model", "top", "kind"), "small"),  # the section comes into being
        ("model.layers=[small]", ("model", "layers"), [{"kind": "small", "size": 4, "rate": 1.0}]),
        ("model.layers.0={kind: small, rate: 2}", ("model", "layers", 0), {"kind": "small", "size": 4, "rate": 2.0}),
        ("model.layers.0.kind=small", ("model", "layers", 0, "size"), 3),
        ("train={steps: 2}", ("train", "rate"), 0.1),
        ("train=", ("train", "steps"), 10),
    ],
)
def test_overrides(file: Path, override: str, path: tuple[Any, ...], value: Any) -> None:
    got: Any = load(file, override)
    for step in path:
        got = got[step]
    assert got == value
    assert type(got) is type(value)


def test_the_last_override_wins_and_the_file_is_left_alone(file: Path) -> None:
    assert load(file, "train.steps=7", "train.steps=8")["train"]["steps"] == 8
    assert load(file, "train.rate=3", "train={steps: 2}")["train"] == {"steps": 2, "rate": 0.1, "name": None}
    assert file.read_text(encoding="utf-8") == TEXT


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "command line: 'train.steps' is not of the form key=value, such as train.epochs=3"),
        ("=3", "command line: '=3' is not of the form key=value, such as train.epochs=3"),
        ("train.stepz=3", "command line (train.stepz=3): train.stepz: section 'train' has no option 'stepz'; "
         "did you mean 'steps'? known: steps, rate, name"),
        ("tran.steps=3", "command line (tran.steps=3): tran: no section is called 'tran'; did you mean 'train'? "
         "known: model, train"),
        ("train.steps=x", "command line (train.steps=x): train.steps: takes int >= 1, not 'x'"),
        ("train.steps=[", "command line (train.steps=[):1: not valid YAML: "),
        ("train.steps=!!int 3", "command line (train.steps=!!int 3):1: not valid YAML: tags ("),
        ("train.steps.x=3", "command line: train.steps.x=3: train.steps holds 5 and has nothing inside"),
        ("model.layers.2.size=3", "command line: model.layers.2.size=3: model.layers is a list of 2, indexed from 0, "
         "not '2'"),
        ("model.layers.-1.size=3", "command line: model.layers.-1.size=3: model.layers is a list of 2, indexed from 0, "
         "not '-1'"),
        ("model.layers.first.size=3", "command line: model.layers.first.size=3: model.layers is a list of 2, indexed "
         "from 0, not 'first'"),
        ("model.layers.²=3", "command line: model.layers.²=3: model.layers is a list of 2, indexed from 0, not '²'"),
        ("model.layers.1.size=0", "command line (model.layers.1.size=0): model.layers.1.size: takes int >= 1, not 0"),
        ("model=3", "command line (model=3): model: the cell is written as {kind: NAME, ...}, not 3"),
        ("model.kind=small", "toy.yaml:4: model.layers: cell 'small' has no option 'layers'; known: size, rate"),
        ("model.kind.x=3", "toy.yaml:3: model.kind: no cell is called {'kind': 'pile', 'x': 3}; known: small, pile"),
    ],
)  # fmt: skip
def test_a_refused_override_is_named(file: Path, override: str, message: str) -> None:
    assert refusal(file, override).startswith(message)


def test_an_override_hides_the_lines_below_it(file: Path) -> None:
    """A problem inside a replaced value must not be blamed on the file's old line."""
    assert refusal(file, "model.layers=[{kind: small, size: 0}]").startswith("command line (model.layers=")


def test_files_that_cannot_be_read(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file; there are .*toy\.yaml$"):
        load(file.with_name("none.yaml"))
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file$"):
        load(file.parent / "nowhere" / "none.yaml")
    file.write_bytes(b"model: \xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read as UTF-8 text"):
        load(file)
    with pytest.raises(ConfigError, match="cannot be read as UTF-8 text"):
        load(file.parent)


def test_check_without_a_file() -> None:
    with pytest.raises(ConfigError, match=r"^config: train\.steps: takes int >= 1, not 0$"):
        config.check({"model": "small", "train": {"steps": 0}}, sections=TOY)


@given(
    st.recursive(
        st.one_of(st.just("small"), st.fixed_dictionaries({"kind": st.just("small")}, optional={
            "size": st.integers(1, 10**12), "rate": st.floats(0, exclude_min=True, allow_infinity=False),
        })),
        lambda inner: st.fixed_dictionaries({"kind": st.just("pile"), "layers": st.lists(inner, max_size=3)},
                                            optional={"top": inner}),
        max_leaves=6,
    ),
    st.text(max_size=12).filter(str.isprintable) | st.none(),
)  # fmt: skip
def test_a_resolved_config_is_a_fixed_point(model: Any, name: str | None) -> None:
    resolved = config.check({"model": model, "train": {"name": name}}, sections=TOY)
    assert config.check(resolved, sections=TOY) == resolved
    reread = config.check(config.parse(config.dump(resolved), "x.yaml"), sections=TOY)
    assert reread == resolved
    assert config.dump(reread) == config.dump(resolved)
    assert accepts(config.schema(TOY), {"model": model, "train": {"name": name}})
    assert accepts(config.schema(TOY), resolved)


def accepts(schema: dict[str, Any], value: Any, root: dict[str, Any] | None = None) -> bool:
    """Whether a JSON Schema accepts ``value``: the keywords that :func:`config.schema` writes, and no others."""
    root = schema if root is None else root
    known = {"$schema", "$defs", "$ref", "type", "properties", "required", "additionalProperties", "items", "oneOf",
             "anyOf", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "default",
             "description"}  # fmt: skip
    assert schema.keys() <= known, f"this test does not know {schema.keys() - known}"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    types = {
        "object": isinstance(value, dict), "array": isinstance(value, list), "string": isinstance(value, str),
        "integer": number and value == int(value), "number": number, "boolean": isinstance(value, bool),
        "null": value is None,
    }  # fmt: skip
    if "$ref" in schema and not accepts(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, root):
        return False
    if "type" in schema and not types[schema["type"]]:
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "anyOf" in schema and not any(accepts(part, value, root) for part in schema["anyOf"]):
        return False
    if "oneOf" in schema and sum(accepts(part, value, root) for part in schema["oneOf"]) != 1:
        return False
    if isinstance(value, list) and "items" in schema and not all(accepts(schema["items"], x, root) for x in value):
        return False
    if isinstance(value, dict) and "properties" in schema:
        properties = schema["properties"]
        if not set(schema.get("required", ())) <= set(value):
            return False
        if schema.get("additionalProperties") is False and not set(value) <= set(properties):
            return False
        if not all(accepts(properties[name], inner, root) for name, inner in value.items() if name in properties):
            return False
    return not number or (
        schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
        and schema.get("exclusiveMinimum", -math.inf) < value < schema.get("exclusiveMaximum", math.inf)
    )


def test_the_schema_check_of_these_tests_can_refuse() -> None:
    schema = config.schema(TOY)
    assert accepts(schema, {"model": {"kind": "pile", "layers": ["small"], "top": None}, "train": {"steps": 1}})
    for wrong in [
        {},
        {"model": "pile"},
        {"model": {"kind": "small", "size": 0}},
        {"model": {"kind": "small", "layers": []}},
        {"model": {"kind": "pile", "layers": "small"}},
        {"model": "small", "train": {"name": 3}},
        {"model": "small", "trian": {}},
    ]:
        assert not accepts(schema, wrong)
        with pytest.raises(ConfigError):
            config.check(wrong, sections=TOY)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_json_schema_accepts_every_config_and_its_resolved_form(path: Path) -> None:
    schema = config.schema(SECTIONS)
    json.dumps(schema)
    written = config.parse(path.read_text(encoding="utf-8"), str(path))
    resolved = config.load(path, sections=SECTIONS)
    assert accepts(schema, written)
    assert accepts(schema, resolved)
    assert not accepts(schema, {**resolved, "surplus": 1})
    assert config.check(config.parse(config.dump(resolved), "x.yaml"), sections=SECTIONS) == resolved


def test_dates_in_a_bundle_stay_text() -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    assert config.parse(config.dump({"created": now}), "x.yaml") == {"created": now}
