"""A comparison for people: a table in the terminal, a page of HTML, a page of Markdown, and a run in MLflow."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from mlflow.exceptions import MlflowException
from rich import box
from rich.table import Table

from pipelines.compare import COMPARISON, KIND, Comparison, Group, Quality, Row, shown
from seqapp.references import connect, masked

log = logging.getLogger(__name__)

ABSENT = "–"
WIDTH, HEIGHT = 150, 16
"""Of the bar of an interval, in pixels."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem; padding: 0 1rem; color: #1d2330; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .2rem; }
p { max-width: 60rem; } .about, small { color: #667085; } .apart { color: #a15c07; }
.advice { background: #eef4ff; border-left: 4px solid #3563e9; padding: .6rem .9rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid #e4e7ec; }
td { white-space: nowrap; } td.text { white-space: normal; }
th { font-weight: 600; vertical-align: bottom; } .text { text-align: left; } small { display: block; }
tr.baseline td { color: #667085; } svg { vertical-align: middle; }
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
        Column("run", ["\n".join(part for part in (row.name, row.differs) if part) for row in rows], text=True),
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


def table(group: Group) -> Table:
    """For a terminal of 100 columns or more."""
    drawn = Table(title=heading(group), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
                  show_edge=False, padding=0)  # fmt: skip
    made = columns(group, narrow=True)
    for column in made:
        drawn.add_column("\n".join(column.head.split(" ")), justify="left" if column.text else "right",
                         overflow="fold", no_wrap=not column.text,
                         min_width=min(13, max(map(len, column.cells))) if column.head == "run" else None)  # fmt: skip
    for place, row in enumerate(group.rows):
        drawn.add_row(*(column.cells[place] for column in made), style="dim" if row.baseline else "")
    return drawn


def lines(group: Group) -> list[str]:
    """What stands below the table."""
    several = any(row.seeds > 1 for row in group.rows)
    seeds = "Below the validation figure of several seeds: their lowest and highest." if several else ""
    return [line for line in (apart(group), left_out(group), seeds, group.advice) if line]


def markdown(comparison: Comparison) -> str:
    """A page that GitHub and its like show as a table each."""
    parts = [f"# {comparison.task}: runs compared", ""]
    for group in comparison.groups:
        made = columns(group)
        parts += [f"## {heading(group)}", "", *([f"**{apart(group)}**", ""] if group.apart else [])]
        parts += ["| " + " | ".join(_cell(column.head) for column in made) + " |"]
        parts += ["|" + "|".join("---" if column.text else "---:" for column in made) + "|"]
        parts += ["| " + " | ".join(_cell(column.cells[place]) for column in made) + " |"
                  for place in range(len(group.rows))]  # fmt: skip
        parts += ["", *([left_out(group), ""] if group.left_out else []), group.advice, ""]
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
        made, bars = columns(group), _bars([row.quality.get("test") for row in group.rows])
        parts.append(f"<h2>{escape(heading(group))}</h2>")
        if group.apart:
            parts.append(f'<p class="apart">{escape(apart(group))}</p>')
        if group.advice:
            parts.append(f'<p class="advice">{escape(group.advice)}</p>')
        heads = [f"<th{_class(column)}>{escape(column.head)}</th>" for column in made]
        heads.insert(4, "<th>test interval</th>")
        parts.append(f'<div class="scroll"><table><thead><tr>{"".join(heads)}</tr></thead><tbody>')
        for place, row in enumerate(group.rows):
            cells = [f"<td{_class(column)}>{_lined(column.cells[place])}</td>" for column in made]
            cells.insert(4, f"<td>{bars[place]}</td>")
            parts.append(f"<tr{' class=baseline' if row.baseline else ''}>{''.join(cells)}</tr>")
        parts.append("</tbody></table></div>")
        if group.left_out:
            parts.append(f'<p class="about">{escape(left_out(group))}</p>')
    return "\n".join([*parts, f'<p class="about">{EXPLAINED}</p></body></html>', ""])


def write(comparison: Comparison, *, html_file: Path, markdown_file: Path) -> None:
    """Write both pages, and log them as the artifacts of the one run "comparison" of the task.

    A server that takes no artifacts is told in the log and stops nothing.
    """
    pages = {html_file: html(comparison), markdown_file: markdown(comparison)}
    for path, text in pages.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    try:
        _publish(comparison, pages[markdown_file], pages[html_file])
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
    client.set_tag(run_id, "mlflow.note.content", markdown_page)
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


def _bars(qualities: Sequence[Quality | None]) -> list[str]:
    """A line from end to end of each interval with a dot at the score, all on one scale."""
    ends = [end for quality in qualities if quality for end in (quality.value, *(quality.interval or ()))]
    if not ends or min(ends) == max(ends):
        return [""] * len(qualities)
    low, span = min(ends), max(ends) - min(ends)

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
