"""Names in a config -> builders. The signature of a builder is its config schema.

A builder is a class or a function. Its keywords fall in two groups: those that the program *gives* when it
builds (``input_size``, sizes that come from the data) and the rest, which are the *options* a config may set.
Types, bounds and defaults are read from the annotations, the line of help from the ``Args:`` block of the
docstring, so nothing about an option is written twice.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from seqapp.errors import ConfigError

T = TypeVar("T")
B = TypeVar("B", bound=Callable[..., Any])

Spec = Mapping[str, Any]
"""``{"kind": name, **options}``: what a config says about one component."""

Size = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]

Where = tuple[str | int, ...]
"""The place of a value inside a config: ``("model", "encoder", "layers", 0)``."""

DEEPEST = 32
"""Most components one inside the other, the outermost counted."""


class InvalidOption(ConfigError):
    """An option does not fit; ``where`` tells which. :mod:`seqapp.config` adds the file and the line."""

    def __init__(self, where: Where, problem: str) -> None:
        self.where = where
        self.problem = problem
        super().__init__(f"{dotted(where)}: {problem}" if where else problem)


def dotted(where: Where) -> str:
    """``("a", 0, "b")`` -> ``a.0.b``, as it is written in an override."""
    return ".".join(str(part) for part in where)


def suggest(name: str, known: Sequence[str]) -> str:
    """A short sentence on what would fit instead of ``name``."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    listed = ", ".join(known) or "none"
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {listed}"


@dataclass(frozen=True)
class Option:
    """One keyword of a builder that a config may set."""

    name: str
    annotation: Any
    default: Any
    help: str

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.annotation)

    @property
    def type_name(self) -> str:
        """The type as a reader of the help would say it: ``int >= 1``, ``one of a, b``, ``list of recurrent layer``."""
        return _type_name(self.annotation)

    def check(self, value: Any, where: Where) -> Any:
        return _check(self.annotation, value, where, self.adapter if _registry(self.annotation) is None else None)

    def json_schema(self) -> dict[str, Any]:
        schema = _json_schema(self.annotation)
        if not self.required:
            schema = {**schema, "default": self.default}
        return {**schema, "description": self.help} if self.help else schema


def options_of(builder: Callable[..., Any], given: Sequence[str] = ()) -> dict[str, Option]:
    """The options of ``builder``: every keyword except those the program gives."""
    function = builder.__init__ if inspect.isclass(builder) else builder
    hints = get_type_hints(function, include_extras=True)
    helps = argument_help(inspect.getdoc(builder) or "")
    options = {}
    for parameter in inspect.signature(builder).parameters.values():
        if parameter.name in given or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        default = parameter.default
        options[parameter.name] = Option(
            parameter.name, hints.get(parameter.name, Any), default, helps.get(parameter.name, "")
        )
    return options


def argument_help(docstring: str) -> dict[str, str]:
    """The ``name: text`` entries of a docstring's ``Args:`` block, continuation lines joined."""
    block = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", docstring, flags=re.MULTILINE)
    helps: dict[str, str] = {}
    name = ""
    for line in block.group(1).splitlines() if block else ():
        entry = re.match(r"\s{4}(\w+): (.*)", line)
        if entry:
            name = entry.group(1)
            helps[name] = entry.group(2).strip()
        elif name and line.strip():
            helps[name] += " " + line.strip()
    return helps


def check_options(options: Mapping[str, Option], values: Any, where: Where, what: str) -> dict[str, Any]:
    """``values`` checked against ``options``, defaults filled in.

    Raises:
        InvalidOption: for an unknown or missing name, or a value of the wrong type or out of bounds.
    """
    if not isinstance(values, Mapping):
        raise InvalidOption(where, f"{what} takes options (name: value), not {values!r}")
    for name in values:
        if name not in options:
            raise InvalidOption(
                (*where, str(name)), f"{what} has no option {name!r}; {suggest(str(name), list(options))}"
            )
    checked = {}
    for name, option in options.items():
        if name in values:
            checked[name] = option.check(values[name], (*where, name))
        elif option.required:
            raise InvalidOption(where, f"{what} needs the option {name!r} ({option.type_name})")
        else:
            checked[name] = option.check(copy.deepcopy(option.default), (*where, name))
    return checked


@dataclass(frozen=True)
class Kind(Generic[T]):
    """One registered builder."""

    name: str
    builder: Callable[..., T]
    given: tuple[str, ...]

    @cached_property
    def options(self) -> dict[str, Option]:
        return options_of(self.builder, self.given)

    @property
    def help(self) -> str:
        return (inspect.getdoc(self.builder) or "").partition("\n\n")[0].replace("\n", " ")


class Registry(Generic[T]):
    """A family of components that a config chooses from by ``kind``.

    Args:
        name: what one member is called in messages, such as "pooling".
        given: keywords that the program supplies; a config cannot set them.
        includes: another registry whose kinds are offered here too.
    """

    def __init__(self, name: str, *, given: Sequence[str] = (), includes: Registry[Any] | None = None) -> None:
        self.name = name
        self.given = tuple(given)
        self.own: dict[str, Kind[T]] = {}
        self.includes = includes

    def register(self, kind: str) -> Callable[[B], B]:
        """Decorator: make ``kind`` stand for the decorated class or function."""

        def add(builder: B) -> B:
            if kind in self.own:
                raise ValueError(f"{self.name} {kind!r} is registered twice")
            self.own[kind] = Kind(kind, builder, self.given)
            return builder

        return add

    @property
    def kinds(self) -> dict[str, Kind[Any]]:
        """Every kind by name, included ones too; an own kind goes before an included one of the same name."""
        return {**(self.includes.kinds if self.includes else {}), **self.own}

    def __iter__(self) -> Iterator[str]:
        return iter(self.kinds)

    def __contains__(self, kind: object) -> bool:
        return kind in self.kinds

    def __getitem__(self, kind: str) -> Kind[Any]:
        return self.kinds[kind]

    def check(self, spec: Any, where: Where = ()) -> dict[str, Any]:
        """``spec`` with every option checked and every default written out.

        Raises:
            InvalidOption: naming the place and what would fit.
        """
        if sum(isinstance(part, str) for part in where) > DEEPEST:
            raise InvalidOption(where, f"components stand more than {DEEPEST} deep inside one another; {DEEPEST} fit")
        if isinstance(spec, str):
            spec = {"kind": spec}
        if not isinstance(spec, Mapping):
            raise InvalidOption(where, f"the {self.name} is written as {{kind: NAME, ...}}, not {spec!r}")
        if "kind" not in spec:
            raise InvalidOption(where, f"the {self.name} needs a kind; known: {', '.join(self)}")
        kind = spec["kind"]
        if not isinstance(kind, str) or kind not in self:
            raise InvalidOption(
                (*where, "kind"), f"no {self.name} is called {kind!r}; {suggest(str(kind), list(self))}"
            )
        options = {name: value for name, value in spec.items() if name != "kind"}
        return {"kind": kind, **check_options(self[kind].options, options, where, f"{self.name} {kind!r}")}

    def build(self, spec: Any, **given: Any) -> T:
        """The component that ``spec`` describes.

        Raises:
            InvalidOption: if ``spec`` does not fit.
        """
        checked = self.check(spec)
        kind = self[checked.pop("kind")]
        wanted = inspect.signature(kind.builder).parameters
        built: T = kind.builder(**checked, **{name: value for name, value in given.items() if name in wanted})
        return built

    def json_schema(self) -> dict[str, Any]:
        """``$ref`` to the definition that :func:`definitions` writes for this registry."""
        return {"$ref": f"#/$defs/{_definition_name(self)}"}


def definitions(registry: Registry[Any]) -> dict[str, Any]:
    """JSON Schema ``$defs`` for ``registry`` and every registry its options lead to."""
    return {_definition_name(family): _family_schema(family) for family in reachable(registry)}


def _family_schema(registry: Registry[Any]) -> dict[str, Any]:
    kinds = registry.kinds.values()
    forms = [object_schema(kind.options, kind=kind.name, description=kind.help) for kind in kinds]
    bare = [kind.name for kind in kinds if not any(option.required for option in kind.options.values())]
    return {"oneOf": [*forms, {"enum": bare}] if bare else forms}


def reachable(registry: Registry[Any], found: list[Registry[Any]] | None = None) -> list[Registry[Any]]:
    """``registry`` and every registry that an option of its kinds leads to, each once."""
    found = [] if found is None else found
    if registry not in found:
        found.append(registry)
        if registry.includes is not None:
            reachable(registry.includes, found)
        for kind in registry.kinds.values():
            for option in kind.options.values():
                inner = _registry(option.annotation)
                if inner is not None:
                    reachable(inner, found)
    return found


def object_schema(options: Mapping[str, Option], *, kind: str | None = None, description: str = "") -> dict[str, Any]:
    """JSON Schema of one builder's options."""
    properties = {name: option.json_schema() for name, option in options.items()}
    required = [name for name, option in options.items() if option.required]
    if kind is not None:
        properties = {"kind": {"const": kind}, **properties}
        required = ["kind", *required]
    schema: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    return {**schema, "description": description} if description else schema


def _definition_name(registry: Registry[Any]) -> str:
    return registry.name.replace(" ", "_")


def _inner(annotation: Any) -> tuple[Any, bool, bool]:
    """(annotation, optional, listed): ``X | None`` and ``list[X]`` peeled off."""
    optional = listed = False
    arguments = get_args(annotation)
    if type(None) in arguments and len(arguments) == 2:
        optional = True
        annotation = next(argument for argument in arguments if argument is not type(None))
    if get_origin(annotation) is list:
        listed = True
        annotation = get_args(annotation)[0]
    return annotation, optional, listed


def _registry(annotation: Any) -> Registry[Any] | None:
    """The registry an annotation such as ``list[Annotated[Spec, POOLING]]`` points to, if any."""
    annotation, _, _ = _inner(annotation)
    if get_origin(annotation) is Annotated:
        for extra in get_args(annotation)[1:]:
            if isinstance(extra, Registry):
                return extra
    return None


def _check(annotation: Any, value: Any, where: Where, adapter: TypeAdapter[Any] | None) -> Any:
    registry = _registry(annotation)
    if registry is not None:
        _, optional, listed = _inner(annotation)
        if optional and value is None:
            return None
        if not listed:
            return registry.check(value, where)
        if not isinstance(value, list):
            raise InvalidOption(where, f"takes a list of {registry.name} specs, not {value!r}")
        return [registry.check(item, (*where, index)) for index, item in enumerate(value)]
    assert adapter is not None
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        inner = tuple(part for part in first["loc"] if isinstance(part, int))
        raise InvalidOption((*where, *inner), f"takes {_type_name(annotation)}, not {value!r}") from None


def _json_schema(annotation: Any) -> dict[str, Any]:
    registry = _registry(annotation)
    if registry is None:
        schema = TypeAdapter(annotation).json_schema()
        schema.pop("title", None)
        return schema
    _, optional, listed = _inner(annotation)
    schema = registry.json_schema()
    if listed:
        schema = {"type": "array", "items": schema}
    return {"anyOf": [schema, {"type": "null"}]} if optional else schema


def _type_name(annotation: Any) -> str:
    registry = _registry(annotation)
    inner, optional, listed = _inner(annotation)
    suffix = " or null" if optional else ""
    if registry is not None:
        return (f"list of {registry.name} specs" if listed else f"{registry.name} spec") + suffix
    if listed:
        return f"list of {_type_name(inner)}{suffix}"
    if optional:
        return _type_name(inner) + suffix
    schema = TypeAdapter(annotation).json_schema()
    return _schema_name(schema)


def _schema_name(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_schema_name(part) for part in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(str(value) for value in schema["enum"])
    if "const" in schema:
        return repr(schema["const"])
    names = {"integer": "int", "number": "float", "string": "text", "boolean": "true or false", "object": "mapping"}
    name = names.get(str(schema.get("type")), str(schema.get("type", "anything")))
    if schema.get("type") == "array":
        name = f"list of {_schema_name(schema.get('items', {}))}"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = " and ".join(f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema)
    return f"{name} {bounds}" if bounds else name
