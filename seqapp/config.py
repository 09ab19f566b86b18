"""Strict YAML configs with ``key=value`` overrides; every error names the file, the line and the field.

A config has one section per name in ``sections`` (``task``, ``model``, ``data``, ``train``). A section is either a
registry, and then written ``{kind: NAME, ...}``, or a function whose keywords are the options. A function with a true
attribute ``aside`` is a section that says what one command does with the others: it is checked where it stands, and is
no part of what :func:`load` returns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from seqapp.errors import ConfigError
from seqapp.registry import (
    InvalidOption,
    Registry,
    Where,
    check_options,
    definitions,
    dotted,
    object_schema,
    options_of,
    suggest,
)

Section = Registry[Any] | Callable[..., Any]


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: ``1e-3`` is a number, ``no`` and ``on`` are words, a date stays text. No aliases, no tags."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        # An alias lets a few lines expand without bound, and a bundle's YAML comes from outside.
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not allowed", problem_mark=mark)
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(problem=f"tags ({event.tag}) are not allowed", problem_mark=mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:null|~|)$"), ["n", "~", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    value = float(loader.construct_scalar(node))
    if not math.isfinite(value):
        raise yaml.MarkedYAMLError(problem=f"{node.value} is too large", problem_mark=node.start_mark)
    return value


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    try:
        return int(loader.construct_scalar(node))
    except ValueError:  # Python reads 4300 digits at most
        raise yaml.MarkedYAMLError(problem="a number has too many digits", problem_mark=node.start_mark) from None


_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


class _Dumper(yaml.SafeDumper):
    """Quotes a text that YAML 1.1 or the rules above would read as something else; writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _first, _rules in _Loader.yaml_implicit_resolvers.items():
    for _tag, _pattern in _rules:
        _Dumper.add_implicit_resolver(_tag, _pattern, [_first])


def load(path: str | Path, overrides: Sequence[str] = (), *, sections: Mapping[str, Section]) -> dict[str, Any]:
    """The config in ``path`` with ``overrides`` applied, checked, and every default written out.

    Args:
        path: a YAML file.
        overrides: ``key=value`` with a dotted key, such as ``model.encoder.hidden_size=64``; the value is YAML.
        sections: what a config may contain.

    Raises:
        ConfigError: naming file, line and field, and what would fit.
    """
    tree, origins = read(path, overrides, sections=sections)
    return check(tree, sections=sections, origins=origins, source=str(path))


def read(
    path: str | Path, overrides: Sequence[str] = (), *, sections: Mapping[str, Section]
) -> tuple[dict[str, Any], dict[Where, str]]:
    """The config in ``path`` with ``overrides`` applied, as it is written, and where each of its values comes from.

    Args:
        path: a YAML file.
        overrides: ``key=value``.
        sections: what a config may contain.

    Raises:
        ConfigError: if the file cannot be read, or is no mapping.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(str(other) for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such file" + (f"; there are {', '.join(near)}" if near else "")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    origins: dict[Where, str] = {}
    tree = _parse(text, str(path), origins)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a config is a mapping of {', '.join(sections)}")
    for override in overrides:
        _apply(tree, override, origins)
    return tree, origins


def check(
    tree: Mapping[str, Any],
    *,
    sections: Mapping[str, Section],
    origins: Mapping[Where, str] | None = None,
    source: str = "config",
) -> dict[str, Any]:
    """``tree`` checked against ``sections``, defaults written out.

    Raises:
        ConfigError: naming the place and what would fit.
    """
    try:
        for name in tree:
            if name not in sections:
                raise InvalidOption(
                    (str(name),), f"no section is called {name!r}; {suggest(str(name), list(sections))}"
                )
        checked = {name: _check_section(name, section, tree) for name, section in sections.items()}
        return {name: values for name, values in checked.items() if not getattr(sections[name], "aside", False)}
    except InvalidOption as error:
        raise ConfigError(f"{origin(error.where, origins or {}, source)}: {error}") from None


def check_aside(
    name: str, section: Section, tree: Mapping[str, Any], *, origins: Mapping[Where, str], source: str
) -> dict[str, Any]:
    """The options of a section that :func:`check` leaves out, defaults written out.

    Raises:
        ConfigError: naming the place and what would fit.
    """
    try:
        return _check_section(name, section, tree)
    except InvalidOption as error:
        raise ConfigError(f"{origin(error.where, origins, source)}: {error}") from None


def schema(sections: Mapping[str, Section]) -> dict[str, Any]:
    """JSON Schema of a config, for editors that complete YAML."""
    properties: dict[str, Any] = {}
    found: dict[str, Any] = {}
    required = []
    for name, section in sections.items():
        if isinstance(section, Registry):
            found.update(definitions(section))
            properties[name] = section.json_schema()
            required.append(name)
        else:
            options = options_of(section)
            properties[name] = object_schema(options)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
        "$defs": found,
    }


def dump(config: Mapping[str, Any]) -> str:
    """The config as YAML, in the order of its sections."""
    text: str = yaml.dump(dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def inline(value: Any) -> str:
    """``value`` as YAML on one line, as it stands in an override."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True,
                          width=math.inf)  # fmt: skip
    return text.removesuffix("\n").removesuffix("\n...")


def parse(text: str, source: str) -> Any:
    """YAML text -> plain values, by the same rules as a config.

    Raises:
        ConfigError: if it is not YAML, or a key stands twice.
    """
    return _parse(text, source, {})


def _check_section(name: str, section: Section, tree: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(section, Registry):
        if name not in tree:
            raise InvalidOption((), f"the section {name!r} is missing: {{kind: NAME}} with one of {', '.join(section)}")
        return section.check(tree[name], (name,))
    values = tree.get(name)
    return check_options(options_of(section), {} if values is None else values, (name,), f"section {name!r}")


def origin(where: Where, origins: Mapping[Where, str], source: str) -> str:
    """The file and line of the value at ``where``, as :func:`read` told them, or of the nearest one around it."""
    while where:
        if where in origins:
            return origins[where]
        where = where[:-1]
    return source


def _parse(text: str, source: str, origins: dict[Where, str]) -> Any:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _mark(node, (), source, origins)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{source}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply") from None


def _mark(node: yaml.Node, where: Where, source: str, origins: dict[Where, str]) -> None:
    origins[where] = f"{source}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _mark(child, (*where, index), source, origins)
    elif isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            place = (*where, str(key.value))
            if place in origins:
                raise ConfigError(f"{source}:{key.start_mark.line + 1}: {dotted(place)} stands twice")
            _mark(child, place, source, origins)
            origins[place] = f"{source}:{key.start_mark.line + 1}"


def _apply(tree: dict[str, Any], override: str, origins: dict[Where, str]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"command line: {override!r} is not of the form key=value, such as train.epochs=3")
    source = f"command line ({override})"
    value = _parse(text, source, {})
    try:
        place(tree, key.strip(), value, origins, source)
    except ConfigError as error:
        raise ConfigError(f"command line: {override}: {error}") from None


def place(tree: dict[str, Any], key: str, value: Any, origins: dict[Where, str], source: str) -> None:
    """Put ``value`` where the dotted ``key`` says, in ``tree`` itself.

    Args:
        tree: a config as it is written.
        key: such as ``model.encoder.hidden_size``; what is missing on the way is made.
        value: plain YAML values.
        origins: of the values of the tree; changed, too.
        source: where ``value`` comes from.

    Raises:
        ConfigError: if something on the way has nothing inside.
    """
    parts = key.split(".")
    parent: Any = tree
    where: Where = ()
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        if isinstance(parent, list):
            if not part.isdecimal() or int(part) >= len(parent):
                raise ConfigError(f"{dotted(where)} is a list of {len(parent)}, indexed from 0, not {part!r}")
            step: str | int = int(part)
        elif isinstance(parent, dict):
            step = part
        else:
            raise ConfigError(f"{dotted(where)} holds {parent!r} and has nothing inside")
        where = (*where, step)
        if last:
            parent[step] = value
            for place in [place for place in origins if place[: len(where)] == where]:
                del origins[place]
            origins[where] = source
            return
        inner = parent.get(step) if isinstance(parent, dict) else parent[step]
        if isinstance(inner, str):
            parent[step] = {"kind": inner}
        elif inner is None:
            parent[step] = {}
            origins.setdefault(where, source)
        parent = parent[step]
