"""A comparison for people: a table in the terminal, a page of HTML, a page of Markdown, and a run in MLflow."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from mlflow.exceptions import MlflowException
from rich import box
from rich.table import Table
from rich.text import Text

from pipelines import tracking
from pipelines.compare import COMPARISON, KIND, Comparison, Group, Quality, Row, listed, same_machine, shown
from seqapp.errors import SeqappError
from seqapp.references import connect, masked

log = logging.getLogger(__name__)

ABSENT = "–"
WIDTH, HEIGHT = 110, 16
"""Of the bar of an interval, in pixels."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem; padding: 0 1rem; color: #1d2330; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .2rem; }
p { max-width: 60rem; } .about, small { color: #667085; } .apart { color: #a15c07; }
.advice { background: #eef4ff; border-left: 4px solid #3563e9; padding: .6rem .9rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .45rem; text-align: right; vertical-align: top; border-bottom: 1px solid #e4e7ec; }
td { white-space: nowrap; } td.text { white-space: normal; }
th { font-weight: 600; vertical-align: bottom; } .text { text-align: left; } small { display: block; }
tr.baseline td { color: #667085; } tr.kept td { font-weight: 700; } svg { vertical-align: middle; }
small.scale { display: flex; justify-content: space-between; font-weight: 400; }
@media (prefers-color-scheme: dark) {
  body { background: #14171f; color: #e4e7ec; } th, td { border-color: #2c3240; } .advice { background: #1c2740; }
  .apart { color: #f0a955; } .about, small, tr.baseline td { color: #98a2b3; }
}
"""


@dataclass(frozen=True)
class Column:
    """One column of every form of the table.

    Args:
        head: of it.
        cells: one a row; a second line, after a line end, says more.
        text: aligned to the left.
    """

    head: str
    cells: list[str]
    text: bool = False


def columns(group: Group, *, narrow: bool = False) -> list[Column]:
    """What a table shows of a group; figures that no run has logged are an en dash.

    Args:
        group: its rows.
        narrow: an interval stands below its figure, and that of several seeds of the test data is left out.
    """
    score, direction = group.metric
    arrow = "↑" if direction == "max" else "↓"
    rows = group.rows
    found = [
        Column("run", ["\n".join(part for part in (row.name, row.differs, row.run_ids[0][:8]) if part) for row in rows],
               text=True),
        Column("network", [row.network or ABSENT for row in rows], text=True),
        Column(f"valid. {_words(score)} {arrow}",
               [_quality(row, row.quality.get("validation"), group.share, seeds=True) for row in rows]),
        Column(f"test {_words(score)} (95\u00a0%)",
               [_quality(row, row.quality.get("test"), group.share, interval=True, seeds=not narrow) for row in rows]),
    ]  # fmt: skip
    names = [row.further[0] for row in rows if row.further]
    if names:
        share = names[0].startswith("accuracy")
        cells = [ABSENT if row.further is None else _quality(row, row.further[1], share, interval=True) for row in rows]
        found.append(Column(f"test {_words(names[0])} (95\u00a0%)", cells))
    found += [
        Column("params", [_number(row.parameters) for row in rows]),
        Column("train time", [_time(row.seconds) for row in rows]),
        Column("tok/s", [_number(row.tokens_per_second) for row in rows]),
        Column("peak bytes", [_number(row.memory) for row in rows]),
        Column("ms, batch 1", [_number(row.latency) for row in rows]),
        Column("bundle bytes", [_number(row.size) for row in rows]),
        Column("seeds", [str(row.seeds) for row in rows]),
    ]
    return found


def heading(group: Group) -> str:
    """What all rows of a group share."""
    validation, test = (digest[:8] or "none" for digest in group.digests)
    return (
        f"{group.dataset or 'no data set named'} (validation data {validation}, test data {test}; {group.definition})"
    )


def apart(group: Group) -> str:
    """That a group does not compare with the first, and why; empty for that."""
    return f"Not comparable with the first table: {group.apart}." if group.apart else ""


def left_out(group: Group) -> str:
    """How many rows are not shown; empty if none."""
    if not group.left_out:
        return ""
    return f"{group.left_out} more, worse on validation or other trials of a sweep: --all shows them."


def machines(group: Group) -> str:
    """Which rows were made on which machine, where they differ; empty if they do not, or none tells."""
    known = sorted({machine for row in group.rows for machine in row.machines if machine})
    if not known or same_machine(group.rows):
        return ""
    parts = [(f"on {machine}" if machine else "unknown", [row.name for row in group.rows if machine in row.machines])
             for machine in [*known, ""]]  # fmt: skip
    told = "; ".join(f"{where}: {listed(list(dict.fromkeys(names)))}" for where, names in parts if names)
    return f"Times and memory compare only between rows of one machine, and these are of several. {told}."


def fitting(group: Group, width: int) -> tuple[list[Column], list[str]]:
    """The columns that fit a width, names broken at their hyphens if need be, and the heads of those left out.

    Args:
        group: its rows.
        width: characters of a line.
    """
    made = columns(group, narrow=True)
    widths = [max(map(len, column.head.split(" "))) for column in made]
    least = [max(head, min(_widest(column, broken=True), max(13, width // 3))) if column.text
             else max(head, _widest(column)) for head, column in zip(widths, made, strict=True)]  # fmt: skip
    order = [head for head in LEAST_FIRST if head != "seeds" or any(row.seeds > 1 for row in group.rows)]
    order = [*(["seeds"] if "seeds" not in order else []), *order]
    gone: list[str] = []
    while sum(least) + len(made) - 1 > width and order:
        head = order.pop(0)
        place = next(place for place, column in enumerate(made) if column.head == head)
        del made[place], least[place]
        gone.insert(0, head)
    spare = max(0, width - sum(least) - len(made) + 1)
    for place, column in enumerate(made):
        if column.text:
            room = min(max(_widest(column), least[place]), least[place] + spare)
            spare -= room - least[place]
            made[place] = replace(column, cells=[_broken(cell, room) for cell in column.cells])
    return made, gone


LEAST_FIRST = ("bundle bytes", "peak bytes", "tok/s", "train time", "seeds", "ms, batch 1", "params", "network")
"""Columns that a narrow terminal can do without."""


def _widest(column: Column, *, broken: bool = False) -> int:
    lines = [line for cell in column.cells for line in cell.split("\n")]
    return max(len(piece) for line in lines for piece in (_pieces(line) if broken else [line]))


def _pieces(line: str) -> list[str]:
    return re.findall(r"[^\s-]*-|[^\s-]+|\s", line) or [line]


def _broken(cell: str, width: int) -> str:
    """Lines of at most so many characters, broken after hyphens and blanks, in a word only if it is longer."""
    found = []
    for line in cell.split("\n"):
        start = ""
        for piece in [line] if len(line) <= width else _pieces(line):
            if len(start) + len(piece) > width and start:
                found.append(start.rstrip())
                start = ""
            start += piece if start else piece.lstrip()
        found.append(start)
    return "\n".join(found)


def table(group: Group, width: int) -> Table:
    """For a terminal.

    Args:
        group: its rows.
        width: characters of a line of it; 80 hold what matters.
    """
    # Text, since names and data may hold what Rich takes for markup.
    drawn = Table(title=Text(heading(group)), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
                  pad_edge=False, show_edge=False, padding=0)  # fmt: skip
    made, _ = fitting(group, width)
    for column in made:
        drawn.add_column(Text("\n".join(column.head.split(" "))), justify="left" if column.text else "right",
                         overflow="fold", min_width=min(_widest(column), width // 2))  # fmt: skip
    for place, row in enumerate(group.rows):
        drawn.add_row(*(Text(column.cells[place]) for column in made), style="dim" if row.baseline else "")
    return drawn


def lines(group: Group, width: int) -> list[str]:
    """What stands below the table of a terminal of that width."""
    _, gone = fitting(group, width)
    narrow = f"Left out for lack of width: {', '.join(gone)}; the pages have them." if gone else ""
    several = any(row.seeds > 1 for row in group.rows)
    seeds = "Below the validation figure of several seeds: their lowest and highest." if several else ""
    told = (apart(group), left_out(group), narrow, seeds, machines(group), group.advice, group.step)
    return [line for line in told if line]


def markdown(comparison: Comparison) -> str:
    """A page that GitHub and its like show as a table each."""
    parts = [f"# {comparison.task}: runs compared", ""]
    for group in comparison.groups:
        made = columns(group)
        parts += [f"## {heading(group)}", "", *([f"**{apart(group)}**", ""] if group.apart else [])]
        parts += [part for line in (group.advice, group.step) if line for part in (line, "")]
        parts += ["| " + " | ".join(_cell(column.head) for column in made) + " |"]
        parts += ["|" + "|".join("---" if column.text else "---:" for column in made) + "|"]
        parts += ["| " + " | ".join(_cell(column.cells[place]) for column in made) + " |"
                  for place in range(len(group.rows))]  # fmt: skip
        below = (left_out(group), machines(group))
        parts += ["", *(part for line in below if line for part in (line, ""))]
    return "\n".join([*parts, EXPLAINED, ""])


EXPLAINED = (
    "Intervals are bootstrap intervals of 95 % over the items of the split, not over seeds. A row of several seeds "
    "shows their mean, and below it the lowest and the highest. The advice reads validation outcomes alone."
)


def html(comparison: Comparison) -> str:
    """A page that needs no other file."""
    title = f"{escape(comparison.task)}: runs compared"
    parts = [f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
             f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>',
             f"<body><h1>{title}</h1>"]  # fmt: skip
    for group in comparison.groups:
        qualities = [row.quality.get("test") for row in group.rows]
        made, bars = columns(group), _bars(qualities)
        parts.append(f"<h2>{escape(heading(group))}</h2>")
        if group.apart:
            parts.append(f'<p class="apart">{escape(apart(group))}</p>')
        if group.advice:
            step = f"<br>{escape(group.step)}" if group.step else ""
            parts.append(f'<p class="advice">{escape(group.advice)}{step}</p>')
        heads = [f"<th{_class(column)}>{escape(column.head)}</th>" for column in made]
        ends = _ends(qualities)
        scale = f"<small class=scale>{''.join(f'<span>{shown(end, share=group.share)}</span>' for end in ends)}</small>"
        heads.insert(4, f"<th>test interval{scale if any(bars) else ''}</th>")
        parts.append(f'<div class="scroll"><table><thead><tr>{"".join(heads)}</tr></thead><tbody>')
        for place, row in enumerate(group.rows):
            cells = [f"<td{_class(column)}>{_lined(column.cells[place])}</td>" for column in made]
            cells.insert(4, f"<td>{bars[place]}</td>")
            kind = " class=baseline" if row.baseline else " class=kept" if set(row.run_ids) & set(group.kept) else ""
            parts.append(f"<tr{kind}>{''.join(cells)}</tr>")
        parts.append("</tbody></table></div>")
        parts += [f'<p class="about">{escape(line)}</p>' for line in (left_out(group), machines(group)) if line]
    return "\n".join([*parts, f'<p class="about">{EXPLAINED}</p></body></html>', ""])


def write(comparison: Comparison, *, html_file: Path | None, markdown_file: Path | None, publish: bool = True) -> None:
    """Write the pages, and log them as the artifacts of the one run "comparison" of the task.

    A server that takes no artifacts is told in the log and stops nothing.

    Args:
        comparison: of all runs, or of some.
        html_file: None for no such page.
        markdown_file: None for no such page.
        publish: it is of all runs, so it replaces what MLflow has.

    Raises:
        SeqappError: if a page cannot be written.
    """
    made = html(comparison), markdown(comparison)
    for path, text in zip((html_file, markdown_file), made, strict=True):
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise SeqappError(f"{path}: the page cannot be written there: {error.strerror or error}; --html FILE and "
                              "--markdown FILE name other places") from None  # fmt: skip
    if not publish:
        return
    try:
        _publish(comparison, made[1], made[0])
    except (MlflowException, OSError) as error:
        log.warning("the comparison is not in MLflow: %s", masked((str(error).splitlines() or ["no reason"])[0]))


def _publish(comparison: Comparison, markdown_page: str, html_page: str) -> None:
    client = connect()
    found = client.search_runs([comparison.experiment_id], f"tags.{KIND} = '{COMPARISON}'", max_results=1)
    if found:
        run_id = found[0].info.run_id
    else:
        made = client.create_run(comparison.experiment_id, run_name=COMPARISON, tags={KIND: COMPARISON})
        run_id = made.info.run_id
    client.log_text(run_id, html_page, "comparison.html")
    client.log_text(run_id, markdown_page, "comparison.md")
    client.set_tag(run_id, "mlflow.note.content", tracking.description(markdown_page, "comparison.md"))
    client.set_terminated(run_id)


# Cells


def _words(score: str) -> str:
    return score.replace("_", " ")


def _quality(row: Row, quality: Quality | None, share: bool, *, interval: bool = False, seeds: bool = False) -> str:
    if quality is None:
        return ABSENT
    text = shown(quality.value, share=share)
    if interval and quality.interval:
        text += f"\n({_range(*quality.interval, share)})"
    if seeds and row.seeds > 1 and quality.lowest < quality.highest:
        text += f"\n{_range(quality.lowest, quality.highest, share)}"
    return text


def _range(low: float, high: float, share: bool) -> str:
    ends = [f"{100 * end:.1f}" if share else f"{end:.4g}" for end in (low, high)]
    return "–".join(ends)


def _number(value: float | None) -> str:
    if value is None:
        return ABSENT
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ABSENT
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n(", " (").replace("\n", "<br>")


def _lined(text: str) -> str:
    first, line, more = text.replace("\n(", " (").partition("\n")
    return escape(first) + (f"<small>{escape(more)}</small>" if line else "")


def _class(column: Column) -> str:
    return " class=text" if column.text else ""


def _ends(qualities: Sequence[Quality | None]) -> tuple[float, ...]:
    """The lowest and the highest figure, or nothing."""
    found = [end for quality in qualities if quality for end in (quality.value, *(quality.interval or ()))]
    return (min(found), max(found)) if found else ()


def _bars(qualities: Sequence[Quality | None]) -> list[str]:
    """A line from end to end of each interval with a dot at the score, all on one scale."""
    ends = _ends(qualities)
    if not ends or ends[0] == ends[1]:
        return [""] * len(qualities)
    low, span = ends[0], ends[1] - ends[0]

    def x(value: float) -> str:
        return f"{4 + (WIDTH - 8) * (value - low) / span:.1f}"

    found = []
    for quality in qualities:
        if quality is None:
            found.append("")
            continue
        left, right = quality.interval or (quality.value, quality.value)
        said = f"{quality.value:.4g}, {left:.4g} to {right:.4g}"
        y = HEIGHT // 2
        found.append(
            f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{said}"><title>{said}</title>'
            f'<line x1="{x(left)}" x2="{x(right)}" y1="{y}" y2="{y}" stroke="#3563e9" stroke-width="3"/>'
            f'<circle cx="{x(quality.value)}" cy="{y}" r="4" fill="#3563e9"/></svg>'
        )
    return found
