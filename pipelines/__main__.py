"""The ``seqapp`` command."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from pipelines.stopping import LAUNCHED, stoppable
from seqapp.errors import STOPPED, SeqappError, Stopped

if TYPE_CHECKING:
    pass

# Heavy imports stand inside the commands: `seqapp --help` must not wait for torch.

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="markdown",
                  pretty_exceptions_enable=False,
                  help="Train, compare and serve recurrent sequence models.")  # fmt: skip
data_app = typer.Typer(no_args_is_help=True, help="Public data sets: list and fetch.")
app.add_typer(data_app, name="data")

# A pipe has no width of its own; a table in a file may be wider than 80 columns.
out = Console(width=None if sys.stdout.isatty() else 140, emoji=False)
err = Console(stderr=True, emoji=False)

Model = Annotated[str, typer.Argument(help="bundle directory, run id, NAME@ALIAS, NAME/VERSION or NAME (its champion)")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bars")]


@app.command()
def train(
    arguments: Annotated[list[str], typer.Argument(metavar="CONFIG... [KEY=VALUE]...", help="configs, choices")],
    resume: Annotated[bool, typer.Option(help="go on with the last unfinished run of this config")] = False,
    register: Annotated[bool, typer.Option(help="make a new version in the model registry")] = True,
    quiet: Quiet = False,
) -> None:
    """Train what each CONFIG describes; log, register, and compare.

    Example: `seqapp train configs/sentiment/bundled-lstm.yaml model.encoder.hidden_size=64 train.epochs=5`
    """
    configs = [argument for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    if not configs:
        raise SeqappError("no config given; there are some in configs/, such as configs/sentiment/bundled-lstm.yaml")
    with stoppable():
        from pipelines.launch import launch

        if launch(configs, overrides):
            return
        from pipelines import distributed, run

        progress = not quiet and sys.stdout.isatty()
        trained = [
            run.train(config, overrides, resume=resume, register=register, progress=progress) for config in configs
        ]
        first = distributed.first()
        distributed.leave()
        if not first:
            return
        for task in _tasks(trained):
            _tell_comparison(task, ours={result.run_id for result in trained})
        for result in trained:
            told = f"{result.name}: bundle {result.bundle}, run {result.run_id}"
            out.print(told, highlight=False, soft_wrap=True, markup=False)


@app.command()
def baseline(
    arguments: Annotated[list[str], typer.Argument(metavar="CONFIG [KEY=VALUE]...", help="its task and data are used")],
) -> None:
    """Fit the simple methods for the data of CONFIG and log them beside the networks."""
    from pipelines import run
    from pipelines.figures import figure

    config, *overrides = arguments
    for result in run.baseline(config, overrides):
        scores = (
            f"{split} {name} {figure(value)}" for split, part in result.scores.items() for name, value in part.items()
        )
        out.print(
            f"{result.name}: {', '.join(scores)}, {result.seconds:.0f} s", highlight=False, soft_wrap=True, markup=False
        )


@app.command()
def evaluate(
    model: Model,
    data: Annotated[
        Path | None,
        typer.Option(
            help="labelled file: CSV, TSV, JSONL or Parquet; for a language model a text, for a translator also TMX"
        ),
    ] = None,
    source: Annotated[Path | None, typer.Option(help="translators: the sentences, one a line")] = None,
    target: Annotated[Path | None, typer.Option(help="translators: their right translations, line by line")] = None,
    text: Annotated[str | None, typer.Option(help="column of the text, if not 'text'")] = None,
    label: Annotated[str | None, typer.Option(help="column of the label, if not 'label'")] = None,
    encoding: Annotated[str | None, typer.Option(help="of the file, if not utf-8")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="another choice that files of the task have, such as targets=answers"),
    ] = None,
    dynamic: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="language models: also let it learn from what it has read, such as 1e-4"),
    ] = None,
) -> None:
    """Measure MODEL on a file with the right answers; JSON on standard output."""
    from pipelines import run
    from seqapp import bundle
    from seqapp.references import resolve

    if (data is None) == (source is None) or (source is None) != (target is None):
        raise SeqappError("what to measure on: --data FILE fits, or for a translator --source FILE --target FILE")
    path = data or source
    assert path is not None
    given = {"text": text, "label": label, "encoding": encoding, "target": target}
    columns: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for choice in column or ():
        name, equals, value = choice.partition("=")
        if not equals or not name:
            raise SeqappError(f"--column: {choice!r} is not of the form NAME=VALUE, such as targets=answers")
        columns[name] = value
    figures = run.evaluate(bundle.load(resolve(model).path), path, dynamic=dynamic, **columns)
    print(json.dumps({**figures, "model": model}, indent=1, ensure_ascii=False, allow_nan=False))


@app.command()
def predict(
    model: Model,
    file: Annotated[str, typer.Argument(help="a table, or one input a line; - for stdin")] = "-",
    output: Annotated[
        Path | None,
        typer.Argument(metavar="OUT", help=".parquet, .csv, .tsv or .jsonl; without it, JSON lines on stdout"),
    ] = None,
    text: Annotated[str | None, typer.Option(help="column of the text, if not 'text'")] = None,
    only_text: Annotated[
        bool, typer.Option("--only-text", help="pass over columns called like other fields of an input")
    ] = False,
    keep: Annotated[
        str | None, typer.Option(metavar="COLUMNS", help="such as id,text; without it all in OUT, none on stdout")
    ] = None,
    encoding: Annotated[str, typer.Option(help="of the file")] = "utf-8",
    jobs: Annotated[int, typer.Option(min=1, max=256, help="processes that answer, for OUT")] = 1,
    restart: Annotated[bool, typer.Option("--restart", help="throw away what an earlier call has finished")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace OUT")] = False,
    backend: Annotated[str, typer.Option(help="local, or ray for a cluster")] = "local",
    address: Annotated[str | None, typer.Option(help="of the Ray cluster; without it, one on this machine")] = None,
    quiet: Quiet = False,
) -> None:
    """Answer every row of FILE, in order: in OUT beside its columns, or as lines of JSON on standard output.

    A line that is not of a table is a text, or for a model that takes more than a text, a JSON object. A row of a table
    may carry any field of an input in a column of its name. FILE and OUT may be larger than memory, and after a stop,
    the same command goes on where it was.

    A row that cannot be answered has an "error", and the exit status is 1 at the end.
    """
    from pipelines.predict import Source, finite, predict_file
    from seqapp import bundle
    from seqapp.references import resolve

    if output is None and (jobs > 1 or restart or overwrite or backend != "local"):
        raise SeqappError("--jobs, --restart, --overwrite and --backend are for an OUT file; one such as answers.jsonl "
                          "fits")  # fmt: skip
    loaded = bundle.load(resolve(model).path)
    kept = None if keep is None else [name for name in (part.strip() for part in keep.split(",")) if name]
    bar = Progress(TextColumn("predicting"), BarColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn(),
                   console=err, speed_estimate_period=300,
                   disable=quiet or not sys.stderr.isatty() or (output is None and sys.stdout.isatty()))  # fmt: skip
    if output is None:
        failed = rows = 0
        with bar:
            task = bar.add_task("", total=None, said="")

            def behind(source: Source, done: int) -> None:
                bar.update(task, total=source.total, completed=done, said=f"{rows:,} rows")

            for record in predict_file(loaded, file, text=text, only_text=only_text, keep=kept or (),
                                       encoding=encoding, done=behind):  # fmt: skip
                record = finite(record)
                failed += "error" in record
                rows += 1
                print(json.dumps(record, ensure_ascii=False), flush=sys.stdout.isatty())
        if failed:
            raise SeqappError(f"{failed} row(s) could not be answered; each says why in its line")
        return
    from pipelines import predict_file as to_file

    source = Source(file, loaded, text=text, only_text=only_text, keep=kept, encoding=encoding)
    answered: Any = None
    if backend == "ray":
        try:
            from pipelines import predict_ray
        except ImportError:
            raise SeqappError("--backend ray needs Ray: pip install 'seqapp[ray]'") from None
        if file == "-":
            raise SeqappError("--backend ray: standard input is not read again; the name of a file fits")
        answered = partial(predict_ray.on_ray, loaded, source, address=address)
    elif backend != "local":
        raise SeqappError(f"--backend: no backend is called {backend!r}; local or ray would fit")
    elif jobs > 1:
        answered = to_file.in_processes(loaded, source, jobs)
    started = None
    with bar:
        task = bar.add_task("", total=source.total, said="")

        def progress(rows: int, done: int) -> None:
            nonlocal started
            now = time.monotonic()
            started = started or (now, rows)
            speed = (rows - started[1]) / (now - started[0]) if now > started[0] else 0
            total = f" of {source.total:,}" if source.total and source.unit == "rows" else ""
            bar.update(task, completed=done, said=f"{rows:,}{total} rows, {speed:,.0f} a second")

        written = to_file.predict_to(loaded, source, output, answered=answered, restart=restart, overwrite=overwrite,
                                     progress=progress)  # fmt: skip
    for name, other in written.renamed.items():
        err.print(
            f"the column {name} of the input is called {other} in {output}",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    out.print(f"{output}: {written.rows:,} rows", highlight=False, soft_wrap=True, markup=False)
    if written.failed:
        raise SeqappError(f"{written.failed} row(s) could not be answered; each says why in its column error")


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="text to go on from; - reads it from stdin")] = "",
    max_tokens: Annotated[int, typer.Option(help="most tokens to add")] = 200,
    min_tokens: Annotated[int, typer.Option(help="the text does not end before this many")] = 0,
    n: Annotated[int, typer.Option("--n", "-n", help="completions wanted")] = 1,
    seed: Annotated[int | None, typer.Option(help="equal seeds give equal texts")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="divides the logits; 0 is greedy; 0.8 unless beams search"),
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="only the k likeliest tokens")] = None,
    top_p: Annotated[float, typer.Option(help="only the likeliest tokens that make up this share")] = 1.0,
    min_p: Annotated[float, typer.Option(help="only tokens this share as likely as the likeliest")] = 0.0,
    typical_p: Annotated[float, typer.Option(help="only the most typical tokens that make up this share")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="above 1 avoids tokens used before")] = 1.0,
    no_repeat_ngram_size: Annotated[int, typer.Option(help="no n-gram of this size twice; 0 allows it")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="text before which it ends; may be given again")] = None,
    beam_size: Annotated[int | None, typer.Option(help="search with this many hypotheses, do not sample")] = None,
    length_penalty: Annotated[float, typer.Option(help="beams rank by log-probability / length ** this")] = 1.0,
    condition: Annotated[str | None, typer.Option(help="class, or numbers such as 0.1,2, the text depends on")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="any other field of a request, such as frequency_penalty=0.5"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="the whole answer as JSON: scores, notes, search tree")
    ] = False,
) -> None:
    """Go on from PROMPT with a language MODEL; the text appears as it is made.

    Example: `seqapp generate generation-bundled "The for statement" --temperature 0.5`
    """
    from pipelines import generate as completion
    from seqapp import bundle
    from seqapp.references import resolve

    warmth = temperature if temperature is not None else 0.8 if beam_size is None else 1.0
    fields: dict[str, Any] = {
        "prompt": _standard_input() if prompt == "-" else prompt, "max_tokens": max_tokens, "min_tokens": min_tokens,
        "n": n, "seed": seed, "temperature": warmth, "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "typical_p": typical_p, "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size, "stop": stop or [], "beam_size": beam_size,
        "length_penalty": length_penalty, "condition": condition,
    }  # fmt: skip
    for choice in option or ():
        name, equals, value = choice.partition("=")
        if not equals or not name:
            raise SeqappError(f"--option: {choice!r} is not of the form NAME=VALUE, such as frequency_penalty=0.5")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    completion.generate(bundle.load(resolve(model).path), fields, as_json=as_json)


@app.command()
def translate(
    model: Model,
    file: Annotated[str, typer.Argument(help="a sentence or more a line; - for stdin")] = "-",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="where to write; by default to stdout")] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="MODEL", help="answer together with this model, too; may be given again"),
    ] = None,
    beam_size: Annotated[int | None, typer.Option(help="hypotheses kept in the search; 1 is greedy")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="rank by log-probability / length ** this")] = None,
    coverage_penalty: Annotated[float, typer.Option(help="above 0 avoids leaving source words out")] = 0.0,
    max_tokens: Annotated[int | None, typer.Option(help="most tokens for a sentence")] = None,
    n_best: Annotated[
        int, typer.Option(min=1, max=64, help="this many translations a line: NUMBER ||| TEXT ||| SCORE")
    ] = 1,
    keep_unknown: Annotated[bool, typer.Option("--keep-unknown", help="do not copy words that are not known")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="a line of JSON for each line: scores, alternatives, attention, notices")
    ] = False,
    encoding: Annotated[str, typer.Option(help="of the file")] = "utf-8",
    quiet: Quiet = False,
) -> None:
    """Translate every line of FILE, in order; a blank line stays one.

    Example: `echo "The old man reads a book." | seqapp translate translation-bundled`
    """
    from pipelines import translate as translation
    from pipelines.predict import lines_of
    from seqapp import bundle
    from seqapp.references import resolve

    fields = {
        "beam_size": beam_size, "length_penalty": length_penalty, "coverage_penalty": coverage_penalty,
        "max_tokens": max_tokens, "alternatives": n_best - 1, "replace_unknown": not keep_unknown,
        "return_attention": as_json,
    }  # fmt: skip
    if beam_size is not None and n_best > beam_size:
        raise SeqappError(f"--n-best {n_best}: a search with --beam-size {beam_size} finds {beam_size} at most")
    bundles = [bundle.load(resolve(name).path) for name in (model, *(beside or ()))]
    total = None if file == "-" else sum(1 for _ in lines_of(file, encoding))
    bar = Progress(TextColumn("translating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=err,
                   disable=quiet or not sys.stderr.isatty() or (output is None and sys.stdout.isatty()))  # fmt: skip
    noticed = 0
    with bar, translation.writing(output) as write:
        progress = bar.add_task("", total=total)
        lines = (line for _, line in lines_of(file, encoding))
        answers = translation.translate(bundles, lines, fields, done=lambda more: bar.advance(progress, more))
        for number, answer in enumerate(answers, 1):
            for line in translation.shown(answer, number, n_best=n_best, as_json=as_json):
                write(line)
            for notice in answer.notices if answer and not as_json else ():
                noticed += 1
                if noticed <= translation.MOST_NOTICES:
                    err.print(f"line {number}: {notice}", highlight=False, soft_wrap=True, markup=False)
    if noticed > translation.MOST_NOTICES:
        err.print(f"and {noticed - translation.MOST_NOTICES} more notices; --json gives them all")


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")  # which `echo` adds
    except UnicodeDecodeError as error:
        raise SeqappError(f"stdin: byte {error.start} is not utf-8 text: {error.reason}") from None


@app.command()
def export(
    model: Model,
    directory: Annotated[Path, typer.Argument(help="where the bundle goes; an older bundle there is replaced")],
) -> None:
    """Write the bundle of MODEL to DIRECTORY, after checking that it still answers as when it was made."""
    from pipelines import run
    from seqapp import bundle
    from seqapp.references import resolve

    target = run.export(bundle.load(resolve(model).path), directory)
    out.print(f"{target}: " + ", ".join(sorted(file.name for file in target.iterdir())), highlight=False, markup=False)


@app.command()
def compare(
    task: Annotated[str | None, typer.Argument(help="such as sentiment; without it, every task with runs")] = None,
    runs: Annotated[
        list[str] | None, typer.Option(help="only this run: an id or its beginning; may be given again")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="each run a row, also older ones and trials of sweeps")] = False,
    html: Annotated[Path | None, typer.Option(help="the page; without it, runs/comparison-TASK.html")] = None,
    markdown: Annotated[Path | None, typer.Option(help="the same as Markdown; runs/comparison-TASK.md")] = None,
    quiet: Quiet = False,
) -> None:
    """Finished runs side by side, how certain each figure is, and which run to keep and why.

    The tables also go to --html and --markdown, and into MLflow as artifacts of the run "comparison"; those of --runs
    go to --html and --markdown alone, if these are given.
    docs/comparing.md explains each column and the rule of the advice.
    """
    wanted = [run for given in runs or () for run in given.split(",")]
    _tell_comparison(task, runs=wanted, every=every, html=html, markdown=markdown, quiet=quiet)


@app.command()
def reproduce(
    run: Annotated[str, typer.Argument(help="id of a finished run, or its beginning")],
    tolerance: Annotated[float, typer.Option(help="share of its size by which a figure may differ")] = 1e-3,
    resume: Annotated[bool, typer.Option(help="go on with a reproduction of this run that was stopped")] = False,
    quiet: Quiet = False,
) -> None:
    """Train again what RUN has logged, and say figure by figure whether it comes out the same.

    The exit status is 1 if a figure differs by more than --tolerance.
    """
    from pipelines import reproduce as reproduction

    original = reproduction.read(run)
    out.print(f"repeating run {original.run_id} ({original.name})", highlight=False, soft_wrap=True, markup=False)
    for line in reproduction.differences(original) or ["code, packages and machine are as they were"]:
        out.print(line, highlight=False, soft_wrap=True, markup=False)
    found = reproduction.reproduce(original, resume=resume, tolerance=tolerance,
                                   progress=not quiet and sys.stdout.isatty())  # fmt: skip
    out.print(reproduction.table(found))
    out.print(f"{found}; run {found.run_id}", highlight=False, soft_wrap=True, markup=False)
    if not found.matches:
        raise typer.Exit(1)


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="a registered model: its versions; without it, all models")] = None,
) -> None:
    """Registered models with their champion and challenger, or every version of one of them."""
    from pipelines import promotion

    _print(promotion.versions(name) if name else promotion.overview())


@app.command()
def promote(
    reference: Annotated[
        str, typer.Argument(metavar="MODEL", help="NAME (its challenger), NAME/VERSION, NAME@ALIAS or a run id")
    ],
    force: Annotated[bool, typer.Option("--force", help="also if it is worse, or measured on other data")] = False,
    name: Annotated[str | None, typer.Option(help="registered model for a run that is not registered yet")] = None,
) -> None:
    """Make MODEL the champion, which is what `seqapp serve NAME` answers with, and the one before the challenger.

    Refused if its bundle answers otherwise than when it was made, if it is significantly worse on the same items, or
    was measured on other data.
    """
    from pipelines import promotion

    out.print(str(promotion.promote(reference, force=force, name=name)), highlight=False, soft_wrap=True, markup=False)


@app.command()
def rollback(name: Annotated[str, typer.Argument(help="a registered model")]) -> None:
    """Make the champion before the present one champion again; once more goes back once more."""
    from pipelines import promotion

    out.print(str(promotion.rollback(name)), highlight=False, soft_wrap=True, markup=False)


@app.command()
def sweep(
    arguments: Annotated[list[str], typer.Argument(metavar="CONFIG [KEY=VALUE]...", help="a config, choices")],
    over: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=CHOICES", help="what to search, such as 'train.learning_rate=1e-4..1e-2 log'"),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="trials at once; each has its share of the cores")] = 1,
    resume: Annotated[bool, typer.Option(help="go on with the last unfinished sweep of these very choices")] = False,
    final: Annotated[bool, typer.Option(help="train the best once more, with the test split, and register it")] = False,
    backend: Annotated[str, typer.Option(help="optuna on this machine, or ray")] = "optuna",
    address: Annotated[str | None, typer.Option(help="of a Ray cluster, such as auto; else Ray starts here")] = None,
    quiet: Quiet = False,
) -> None:
    """Search over values of CONFIG's keys for the best validation score; every trial is a run in MLflow.

    What to search stands in the section `sweep` or in --over; `sweep.trials=30 sweep.sampler=random` say how.

    Example: `seqapp sweep configs/sentiment/bundled-lstm.yaml --over 'model.encoder.kind=[lstm, gru]'`
    """
    from pipelines import sweep as search

    path, *overrides = arguments
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                   console=err, transient=True, disable=quiet or not err.is_terminal)  # fmt: skip
    with bar:
        task = bar.add_task("trials", total=None)

        def tell(trial: Any, best: Any, ended: int, total: int) -> None:
            bar.update(task, completed=ended, total=total, description=search.best_so_far(best))
            if not quiet:
                out.print(search.told(trial), highlight=False, soft_wrap=True, markup=False)

        swept = search.sweep(path, overrides, over=over or (), jobs=jobs, resume=resume, final=final, backend=backend,
                             address=address, tell=tell)  # fmt: skip
    out.print(search.table(swept))
    for line in search.conclusion(swept):
        out.print(line, highlight=False, soft_wrap=True, markup=False)


@app.command()
def config(
    arguments: Annotated[list[str], typer.Argument(metavar="CONFIG [KEY=VALUE]...", help="a YAML file, then choices")],
) -> None:
    """Print the resolved config: choices applied, defaults written out, everything checked."""
    from pipelines.options import SECTIONS
    from seqapp import config as configs

    path, *overrides = arguments
    print(configs.dump(configs.load(path, overrides, sections=SECTIONS)), end="")


@app.command()
def kinds(
    names: Annotated[list[str] | None, typer.Argument(help="only these kinds or families")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="print a JSON schema for editors instead")] = False,
) -> None:
    """Everything that a config can name: options, types, defaults, and a line of help."""
    from pipelines.listing import render
    from pipelines.options import SECTIONS
    from seqapp import config as configs

    if schema:
        print(json.dumps(configs.schema(SECTIONS), indent=1))
        return
    for part in render(SECTIONS, names or ()):
        out.print(part)


@app.command()
def diagnose(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG_OR_RUN]... [KEY=VALUE]...", help="configs, runs, bundles, choices"),
    ] = None,
    networks: Annotated[str, typer.Option(help="fresh networks, such as elman,lstm,gru; without it, all")] = "",
    directory: Annotated[Path | None, typer.Option("--out", help="folder; without it, runs/diagnosis/NAME")] = None,
    steps: Annotated[int, typer.Option(min=2, help="positions of a row that are read")] = 100,
    rows: Annotated[int, typer.Option(min=1, help="rows whose median and spread are shown")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="of fresh weights and random rows")] = 1,
    quiet: Quiet = False,
) -> None:
    """Draw how far gradients reach back, what clipping does, which gates are stuck, and one tap's stability.

    Without arguments it compares fresh networks of every kind. A CONFIG gives its own networks before training, on its
    own data; a run or a bundle its trained ones beside their start, and its recurrent matrices over training.
    Pictures and JSON go to --out and into MLflow.
    """
    from pipelines import diagnose as diagnostics

    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=err, transient=True,
                   disable=quiet or not err.is_terminal)  # fmt: skip
    with bar:
        task = bar.add_task("reading", total=None)
        found = diagnostics.diagnose(
            arguments or [],
            networks=[name.strip() for name in networks.split(",") if name.strip()],
            out=directory,
            options=diagnostics.Options(steps=steps, rows=rows, seed=seed),
            progress=lambda what, done, total: bar.update(task, description=escape(what), completed=done, total=total),
        )
    for table in diagnostics.tables(found.record):
        out.print(table)
    for note in found.record["notes"]:
        out.print(note, highlight=False, soft_wrap=True, markup=False)
    for file in found.files:
        out.print(str(file), highlight=False, soft_wrap=True, markup=False)
    runs = ", ".join(found.run_ids)
    out.print(f"in MLflow: run {runs}, folder {diagnostics.FOLDER}", highlight=False, soft_wrap=True)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def serve(context: typer.Context) -> None:
    """Answer over HTTP: `seqapp serve [MODEL]... --host 127.0.0.1 --port 8000` (more: `seqapp serve --help`)."""
    # The server is a program of its own, so that neither package imports the other.
    environment = {**os.environ, "SEQAPP_PROGRAM": "seqapp serve"}
    os.execve(sys.executable, [sys.executable, "-m", "serving", *context.args], environment)


@data_app.command("list")
def data_list() -> None:
    """Public data sets that `fetch` knows."""
    from seqapp.data.public import describe_datasets

    table = Table()
    for column in ("name", "what", "examples", "size", "licence", "here"):
        table.add_column(column)
    for row in describe_datasets():
        table.add_row(row.name, row.title, row.examples, f"{row.size / 1e6:.1f} MB", row.licence,
                      "yes" if row.fetched else "no")  # fmt: skip
    out.print(table)


@data_app.command("fetch")
def data_fetch(
    names: Annotated[list[str], typer.Argument(help="as `seqapp data list` shows them")],
    mirror: Annotated[str | None, typer.Option(help="folder or URL holding NAME/FILE")] = None,
) -> None:
    """Download public data sets, resuming what was begun, and check every file."""
    from seqapp.data.public import fetch_dataset

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=err) as bar:
        tasks: dict[str, Any] = {}

        def report(file: str, done: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = bar.add_task(file, total=total)
            bar.update(tasks[file], completed=done, total=total)

        for name in names:
            out.print(
                f"{name}: {fetch_dataset(name, mirror=mirror, progress=report)}",
                highlight=False,
                soft_wrap=True,
                markup=False,
            )


def _tell_comparison(
    task: str | None,
    *,
    runs: Sequence[str] = (),
    every: bool = False,
    ours: Set[str] = frozenset(),
    html: Path | None = None,
    markdown: Path | None = None,
    quiet: bool = False,
) -> None:
    """Print the tables, of ``ours`` those that hold one of these runs alone, and write all of them as pages."""
    from pipelines import compare_pages as pages
    from pipelines.compare import compare
    from pipelines.run import RUNS

    bar = Progress(TextColumn("reading runs"), BarColumn(), MofNCompleteColumn(), console=err, transient=True,
                   disable=quiet or not err.is_terminal)  # fmt: skip
    with bar:
        progress = bar.add_task("", total=None)
        told = compare(task, runs=runs, every=every,
                       told=lambda done, total: bar.update(progress, completed=done, total=total))  # fmt: skip
    if len(told) > 1 and (html or markdown):
        raise SeqappError(f"--html and --markdown are for one task: {', '.join(found.task for found in told)}")
    for found in told:
        for group in found.groups:
            if ours and not ours & group.run_ids:
                continue
            width = _width()
            _print(pages.table(group, width))
            for line in pages.lines(group, width):
                _print(Text(line))
            out.print()
        name = quote(found.task, safe=" ")  # an experiment may be called by what is a path
        if runs:  # a part replaces no comparison of all
            files = html, markdown
        else:
            files = html or RUNS / f"comparison-{name}.html", markdown or RUNS / f"comparison-{name}.md"
        pages.write(found, html_file=files[0], markdown_file=files[1], publish=not runs)
        if any(files):
            out.print(f"pages: {', '.join(str(file) for file in files if file)}", highlight=False, soft_wrap=True,
                      markup=False)  # fmt: skip


def _width() -> int:
    """Of a line of the output; a pipe has none of its own."""
    columns = os.environ.get("COLUMNS", "")
    return out.width if out.is_terminal else int(columns) if columns.isdecimal() and int(columns) else 120


def _print(shown: Table | Text) -> None:
    """Print, without blanks at the ends of lines where they are not seen."""
    if out.is_terminal:
        out.print(shown)
        return
    plain = Console(file=io.StringIO(), width=_width(), emoji=False)
    with plain.capture() as captured:
        plain.print(shown)
    for line in captured.get().splitlines():
        out.print(line.rstrip(), highlight=False, soft_wrap=True, markup=False)


def _tasks(trained: list[Any]) -> list[str]:
    return list(dict.fromkeys(result.task for result in trained))


@contextmanager
def _errors_told() -> Iterator[None]:
    try:
        yield
    except SeqappError as error:
        _tell(str(error), error)
        sys.exit(STOPPED if isinstance(error, Stopped) else 1)
    except Exception as error:
        distributed = sys.modules.get("pipelines.distributed")
        if distributed is not None and distributed.is_loss(error):
            _tell(str(lost := distributed.Lost()), lost)
            sys.exit(1)
        if _is_out_of_memory(error):
            _tell("memory does not suffice for the sizes that model says; smaller ones fit, and so may a smaller "
                  "train.batch_tokens", error)  # fmt: skip
            sys.exit(1)
        mlflow = sys.modules.get("mlflow.exceptions")
        if mlflow is None or not isinstance(error, mlflow.MlflowException):
            raise
        from seqapp.references import masked, tracking_uri

        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        _tell(masked(f"the tracking server {tracking_uri()} says: {first}"), error)
        sys.exit(1)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    # Of processors torch tells only by the text; the latter two are sizes that no machine has.
    texts = ("can't allocate memory", "out of memory", "Storage size calculation overflowed", "Overflow when unpacking")
    return isinstance(error, RuntimeError | TypeError) and any(text in str(error) for text in texts)


def _tell(error: str, cause: Exception) -> None:
    distributed = sys.modules.get("pipelines.distributed")
    if distributed is not None and not distributed.tells(cause):
        return
    if isinstance(cause, Stopped) and LAUNCHED in os.environ:
        return  # the process that has launched this one tells
    err.print(f"[bold red]error:[/] {escape(error)}", highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line; an error a user can mend is one sentence on standard error and exit status 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows fewer characters is no error
    terminal = RichHandler(console=err, show_path=False, omit_repeated_times=False, log_time_format="%H:%M:%S")
    if err.is_terminal:
        logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[terminal])
    else:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("torch").setLevel(logging.WARNING)  # at its exit it tells of caches
    try:
        with _errors_told():
            app()
    except SystemExit as end:
        if LAUNCHED in os.environ and isinstance(end.code, int) and end.code:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)  # threads of torch would say that the interpreter has ended under them
        raise


if __name__ == "__main__":
    main()
