"""A builder's signature is its schema; every misfit is told with its place and what would fit."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from pipelines.options import SECTIONS
from seqapp.registry import (
    DEEPEST,
    Count,
    InvalidOption,
    NonNegative,
    Positive,
    Probability,
    Registry,
    Share,
    Size,
    Spec,
    argument_help,
    definitions,
    dotted,
    options_of,
    reachable,
    suggest,
)

INNER: Registry[Any] = Registry("inner part", given=("size",))
MIDDLE: Registry[Any] = Registry("middle part", includes=INNER)
OUTER: Registry[Any] = Registry("outer part", given=("size",))


@INNER.register("plain")
class Plain:
    """Holds a number.

    Args:
        size: given by the program.
        rate: how fast, told
            over two lines.
    """

    def __init__(self, size: int, *, rate: Positive = 0.5) -> None:
        self.size, self.rate = size, rate


@MIDDLE.register("plain")
def own_plain(*, word: Literal["a", "b"] = "a") -> str:
    """Goes before the included kind of this name."""
    return word


@MIDDLE.register("twin")
def twin(*, left: Annotated[Spec, MIDDLE] | None = None) -> Any:
    """Leads back to its own registry."""
    return left


@OUTER.register("whole")
def whole(
    size: int,
    *,
    needed: Size,
    part: Annotated[Spec, INNER] = {"kind": "plain"},  # noqa: B006
    parts: list[Annotated[Spec, INNER]] | None = None,
    share: Share = 1.0,
    chance: Probability = 0.0,
    count: Count = 0,
    decay: NonNegative = 0.0,
    name: str | None = None,
    choice: Literal["up", "down"] = "up",
    flag: bool = False,
    numbers: list[int] | None = None,
    bounded: Annotated[int, Field(ge=1, le=9)] = 3,
) -> dict[str, Any]:
    """Everything an option can be.

    Second paragraph, not part of the summary.

    Args:
        needed: has no default.
        part: one inner part.
    """
    return {"size": size, "needed": needed, "part": INNER.build(part, size=size), "parts": parts}


def problem(spec: Any, registry: Registry[Any] = OUTER) -> tuple[str, str]:
    """(place, message) of the misfit in ``spec``."""
    with pytest.raises(InvalidOption) as caught:
        registry.check(spec, ("top",))
    assert str(caught.value) == f"{dotted(caught.value.where)}: {caught.value.problem}"
    return dotted(caught.value.where), caught.value.problem


def test_options_are_the_keywords_that_the_program_does_not_give() -> None:
    options = OUTER["whole"].options
    assert list(options)[:3] == ["needed", "part", "parts"]
    assert "size" not in options
    assert options["needed"].required
    assert not options["share"].required
    assert options["share"].default == 1.0
    assert options["needed"].help == "has no default."
    assert INNER["plain"].options["rate"].help == "how fast, told over two lines."
    assert OUTER["whole"].help == "Everything an option can be."


def test_type_names_are_those_a_reader_would_say() -> None:
    names = {name: option.type_name for name, option in OUTER["whole"].options.items()}
    assert names == {
        "needed": "int >= 1",
        "part": "inner part spec",
        "parts": "list of inner part specs or null",
        "share": "float > 0 and <= 1",
        "chance": "float >= 0 and < 1",
        "count": "int >= 0",
        "decay": "float >= 0",
        "name": "text or null",
        "choice": "one of up, down",
        "flag": "true or false",
        "numbers": "list of int or null",
        "bounded": "int >= 1 and <= 9",
    }


def test_check_writes_every_default_out() -> None:
    checked = OUTER.check({"kind": "whole", "needed": 2})
    assert list(checked) == ["kind", *OUTER["whole"].options]
    assert checked["part"] == {"kind": "plain", "rate": 0.5}
    assert OUTER.check(checked) == checked


def test_check_never_hands_out_the_default_itself() -> None:
    first = OUTER.check({"kind": "whole", "needed": 2})
    first["part"]["rate"] = 99.0
    assert OUTER.check({"kind": "whole", "needed": 2})["part"]["rate"] == 0.5


def test_a_name_stands_for_a_kind_without_options() -> None:
    assert OUTER.check({"kind": "whole", "needed": 1, "part": "plain", "parts": ["plain"]})["parts"] == [
        {"kind": "plain", "rate": 0.5}
    ]


def test_an_int_fits_where_a_float_is_asked_for() -> None:
    assert INNER.check({"kind": "plain", "rate": 2})["rate"] == 2.0


@pytest.mark.parametrize(
    ("options", "where", "message"),
    [
        ({}, "top", "outer part 'whole' needs the option 'needed' (int >= 1)"),
        ({"needed": 0}, "top.needed", "takes int >= 1, not 0"),
        ({"needed": "2"}, "top.needed", "takes int >= 1, not '2'"),
        ({"needed": 2.0}, "top.needed", "takes int >= 1, not 2.0"),
        ({"needed": True}, "top.needed", "takes int >= 1, not True"),
        ({"needed": None}, "top.needed", "takes int >= 1, not None"),
        ({"needed": 1, "chance": 1}, "top.chance", "takes float >= 0 and < 1, not 1"),
        ({"needed": 1, "chance": True}, "top.chance", "takes float >= 0 and < 1, not True"),
        ({"needed": 1, "share": 0}, "top.share", "takes float > 0 and <= 1, not 0"),
        ({"needed": 1, "count": -1}, "top.count", "takes int >= 0, not -1"),
        ({"needed": 1, "decay": -0.5}, "top.decay", "takes float >= 0, not -0.5"),
        ({"needed": 1, "choice": "upp"}, "top.choice", "takes one of up, down, not 'upp'"),
        ({"needed": 1, "flag": 1}, "top.flag", "takes true or false, not 1"),
        ({"needed": 1, "name": 3}, "top.name", "takes text or null, not 3"),
        ({"needed": 1, "numbers": [1, "x"]}, "top.numbers.1", "takes list of int or null, not [1, 'x']"),
        ({"needed": 1, "bounded": 10}, "top.bounded", "takes int >= 1 and <= 9, not 10"),
        ({"needed": 1, "parts": "plain"}, "top.parts", "takes a list of inner part specs, not 'plain'"),
        ({"needed": 1, "parts": ["plain", {"kind": "plain", "rate": 0}]}, "top.parts.1.rate", "takes float > 0, not 0"),
        ({"needed": 1, "part": None}, "top.part", "the inner part is written as {kind: NAME, ...}, not None"),
        ({"needed": 1, "part": {"rate": 1}}, "top.part", "the inner part needs a kind; known: plain"),
        ({"needed": 1, "part": "plane"}, "top.part.kind",
         "no inner part is called 'plane'; did you mean 'plain'? known: plain"),
        ({"needed": 1, "part": {"kind": ["plain"]}}, "top.part.kind",
         "no inner part is called ['plain']; did you mean 'plain'? known: plain"),
        ({"needed": 1, "part": {"kind": "plain", "size": 3}}, "top.part.size",
         "inner part 'plain' has no option 'size'; known: rate"),
        ({"neded": 1}, "top.neded", "outer part 'whole' has no option 'neded'; did you mean 'needed'? known: needed, "
         "part, parts, share, chance, count, decay, name, choice, flag, numbers, bounded"),
        ({3: 1}, "top.3", "outer part 'whole' has no option 3; known: needed, part, parts, share, chance, count, "
         "decay, name, choice, flag, numbers, bounded"),
    ],
)  # fmt: skip
def test_misfits_are_told_with_place_and_what_fits(options: dict[Any, Any], where: str, message: str) -> None:
    message = (
        message.replace("a inner", "an inner") if "an inner" in problem({"kind": "whole", **options})[1] else message
    )
    assert problem({"kind": "whole", **options}) == (where, message)


@pytest.mark.parametrize("spec", [3, None, ["whole"], 2.5, True])
def test_a_spec_is_a_name_or_a_mapping(spec: Any) -> None:
    where, message = problem(spec)
    assert where == "top"
    assert message == f"the outer part is written as {{kind: NAME, ...}}, not {spec!r}"


def test_build_gives_what_the_builder_asks_for_and_leaves_out_the_rest() -> None:
    built = OUTER.build({"kind": "whole", "needed": 1}, size=7, classes=3)
    assert built["part"].size == 7
    assert MIDDLE.build("twin", size=7) is None


def test_own_kinds_go_before_included_ones() -> None:
    assert set(MIDDLE) == {"plain", "twin"}
    assert MIDDLE.build("plain") == "a"
    assert INNER.build("plain", size=1).rate == 0.5
    later: Registry[Any] = Registry("later", includes=MIDDLE)
    assert "twin" in later
    assert "twin" not in INNER


def test_a_kind_is_registered_once() -> None:
    registry: Registry[Any] = Registry("thing")
    registry.register("one")(lambda: 1)
    with pytest.raises(ValueError, match="thing 'one' is registered twice"):
        registry.register("one")(lambda: 2)


def test_suggest_and_dotted() -> None:
    assert suggest("lsmt", ["lstm", "gru"]) == "did you mean 'lstm'? known: lstm, gru"
    assert suggest("x", []) == "known: none"
    assert dotted(("a", 0, "b")) == "a.0.b"


def test_argument_help_reads_the_args_block_only() -> None:
    text = inspect.cleandoc("""Summary: not an argument.

    Args:
        first: one
            and two.

        second: three: four.

    Raises:
        third: no.
    """)
    assert argument_help(text) == {"first": "one and two.", "second": "three: four."}
    assert argument_help("No block.") == {}


def test_json_schema_of_everything_an_option_can_be() -> None:
    found = definitions(OUTER)
    assert set(found) == {"outer_part", "inner_part"}
    form = found["outer_part"]["oneOf"][0]
    assert form["required"] == ["kind", "needed"]
    assert form["additionalProperties"] is False
    properties = form["properties"]
    assert properties["kind"] == {"const": "whole"}
    assert properties["needed"] == {"type": "integer", "minimum": 1, "description": "has no default."}
    assert properties["part"] == {
        "$ref": "#/$defs/inner_part", "default": {"kind": "plain"}, "description": "one inner part.",
    }  # fmt: skip
    assert properties["parts"]["anyOf"] == [
        {"type": "array", "items": {"$ref": "#/$defs/inner_part"}}, {"type": "null"},
    ]  # fmt: skip
    assert properties["chance"] == {"type": "number", "minimum": 0, "exclusiveMaximum": 1, "default": 0.0}
    assert found["inner_part"]["oneOf"][1] == {"enum": ["plain"]}


def test_a_registry_that_leads_to_itself_is_found_once() -> None:
    assert reachable(MIDDLE) == [MIDDLE, INNER]


def families() -> list[Registry[Any]]:
    seen: list[Registry[Any]] = []
    for section in SECTIONS.values():
        if isinstance(section, Registry):
            seen = reachable(section, seen)
    return seen


def test_no_two_reachable_registries_share_a_name() -> None:
    names = [registry.name for registry in families()]
    assert len(names) == len(set(names)) >= 7


@pytest.mark.parametrize("registry", families(), ids=lambda registry: registry.name)
def test_every_option_of_every_kind_has_a_line_of_help_and_a_type(registry: Registry[Any]) -> None:
    for kind in registry.kinds.values():
        assert kind.help, f"{registry.name} {kind.name} has no docstring"
        for name in registry.given:
            assert name not in kind.options
        for option in kind.options.values():
            assert option.help, f"{registry.name} {kind.name}: {option.name} has no line in the Args block"
            assert option.type_name not in ("", "anything"), f"{registry.name} {kind.name}: {option.name} has no type"
            if not option.required:
                option.check(option.default, (option.name,))


def test_every_option_of_every_plain_section_has_a_line_of_help() -> None:
    for name, section in SECTIONS.items():
        if not isinstance(section, Registry):
            for option in options_of(section).values():
                assert option.help, f"{name}.{option.name}"
                option.check(option.default, (name, option.name))


@pytest.mark.parametrize("levels", [DEEPEST + 1, 300, 5000])
def test_components_nested_without_bound_are_told_where(levels: int) -> None:
    def nested(levels: int) -> dict[str, Any]:
        spec: dict[str, Any] = {"kind": "twin"}
        for _ in range(levels - 1):
            spec = {"kind": "twin", "left": spec}
        return spec

    assert MIDDLE.check(nested(DEEPEST), ("model",))["kind"] == "twin"
    with pytest.raises(InvalidOption, match=f"components stand more than {DEEPEST} deep inside one another") as caught:
        MIDDLE.check(nested(levels), ("model",))
    assert caught.value.where == ("model", *["left"] * DEEPEST)
