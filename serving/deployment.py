"""What a server is asked to serve: names, and for each the versions that answer to it.

A file of deployments is YAML, read as strictly as a config (:mod:`seqapp.config`):

    sentiment:                                  # what a client says in ``model``
      versions:
        - {model: sentiment-bundled@champion, weight: 9}
        - {model: sentiment-bundled@challenger, weight: 1}
      shadow: runs/new/bundle                   # is asked, too, and answers nobody
    writer:
      versions: [generation-bundled@champion]
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from seqapp import config
from seqapp.errors import ConfigError
from seqapp.registry import InvalidOption, Where, check_options, options_of

NAME = re.compile(r"[^\s/@]{1,100}")
"""A name that is served; ``/`` and ``@`` lead from it to one version."""

Model = Annotated[str, Field(min_length=1)]
Weight = Annotated[float, Field(ge=0, le=1e6)]


@dataclass(frozen=True)
class Wanted:
    """One version, as it was asked for.

    Args:
        reference: MODEL, as :func:`seqapp.references.resolve` takes it.
        weight: its share of the requests that name no version, beside the other weights; 0 takes none.
    """

    reference: str
    weight: float = 1.0


@dataclass(frozen=True)
class Deployment:
    """A name that is served.

    Args:
        name: what a client says; None takes the name of what the only version leads to.
        versions: one or more.
        shadow: a MODEL that is asked what the others are asked.
    """

    name: str | None
    versions: tuple[Wanted, ...]
    shadow: str | None = None


def plain(references: Sequence[str]) -> list[Deployment]:
    """Each of ``references`` by itself, under its own name."""
    return [Deployment(None, (Wanted(reference),)) for reference in references]


def read(path: str | Path) -> list[Deployment]:
    """The deployments of a file.

    Raises:
        ConfigError: naming file, line and field, and what would fit.
    """
    tree, origins = config.read(path, sections={"NAME: {versions: [MODEL, ...]}": dict})
    try:
        if not tree:
            raise InvalidOption((), "it names nothing to serve; NAME: {versions: [MODEL, ...]} fits")
        return [_deployment(str(name), values) for name, values in tree.items()]
    except InvalidOption as error:
        raise ConfigError(f"{config.origin(error.where, origins, str(path))}: {error}") from None


def _versioned(versions: list[Any], shadow: Model | None = None) -> None:
    """The options of a name."""


def _version(model: Model, weight: Weight = 1.0) -> None:
    """The options of a version."""


def _deployment(name: str, values: Any) -> Deployment:
    where: Where = (name,)
    if not NAME.fullmatch(name):
        raise InvalidOption(where, "a served name has 1 to 100 characters, none of them white space, / or @")
    checked = check_options(options_of(_versioned), values, where, f"the served name {name!r}")
    where = (name, "versions")
    versions = [_wanted(version, (*where, index)) for index, version in enumerate(checked["versions"])]
    if not versions:
        raise InvalidOption(where, "the list is empty; one version or more fits")
    if not sum(version.weight for version in versions):
        raise InvalidOption(where, "every weight is 0; one above 0 fits")
    known: set[str] = set()
    for index, version in enumerate(versions):
        if version.reference in known:
            raise InvalidOption((*where, index), f"{version.reference} stands twice")
        known.add(version.reference)
    return Deployment(name, tuple(versions), checked["shadow"])


def _wanted(version: Any, where: Where) -> Wanted:
    given: Mapping[str, Any] = {"model": version} if isinstance(version, str) else version
    checked = check_options(options_of(_version), given, where, "a version")
    return Wanted(checked["model"], checked["weight"])
