"""What `seqapp kinds` prints: every registry that a config can reach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from seqapp.config import Section
from seqapp.errors import ConfigError
from seqapp.registry import Option, Registry, options_of, reachable, suggest


def render(sections: Mapping[str, Section], names: Sequence[str]) -> Iterator[Table | Text]:
    """Tables of options, one per kind, under a heading per family.

    Args:
        sections: what a config may contain.
        names: kinds, families or sections to show; empty shows all.

    Raises:
        ConfigError: for a name that is none of these.
    """
    families: dict[str, Registry[Any]] = {}
    for section in sections.values():
        if isinstance(section, Registry):
            families.update({registry.name: registry for registry in reachable(section)})
    plain = {name: section for name, section in sections.items() if not isinstance(section, Registry)}
    known = [*families, *plain, *(kind for registry in families.values() for kind in registry)]
    for name in names:
        if name not in known:
            raise ConfigError(f"nothing is called {name!r}; {suggest(name, sorted(set(known)))}")
    for title, registry in families.items():
        chosen = [kind for kind in registry.own if not names or title in names or kind in names]
        if chosen:
            also = f" (and every {registry.includes.name})" if registry.includes else ""
            yield Text(f"\n{title}{also}", style="bold underline")
        for kind in chosen:
            yield Text.assemble("\n", (f"kind: {kind}", "bold"), f"  {registry[kind].help}")
            if registry[kind].options:
                yield _table(registry[kind].options)
    for name, builder in plain.items():
        if not names or name in names:
            yield Text(f"\nsection {name}", style="bold underline")
            yield _table(options_of(builder))


def _table(options: Mapping[str, Option]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 2), show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(style="dim", max_width=28)
    table.add_column(max_width=26)
    table.add_column()
    for option in options.values():
        default = "required" if option.required else f"= {_yaml(option.default)}"
        table.add_row(option.name, option.type_name, default, option.help)
    return table


def _yaml(value: Any) -> str:
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
