"""The ``seqapp`` command."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from seqapp.errors import SeqappError

if TYPE_CHECKING:
    pass

# Heavy imports stand inside the commands: `seqapp --help` must not wait for torch.

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="markdown",
                  pretty_exceptions_enable=False,
                  help="Train, compare and serve recurrent sequence models.")  # fmt: skip
data_app = typer.Typer(no_args_is_help=True, help="Public data sets: list and fetch.")
app.add_typer(data_app, name="data")

# A pipe has no width of its own; a table in a file may be wider than 80 columns.
out = Console(width=None if sys.stdout.isatty() else 140)
err = Console(stderr=True)

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
    from pipelines import compare as comparison
    from pipelines import run

    progress = not quiet and sys.stdout.isatty()
    trained = [run.train(config, overrides, resume=resume, register=register, progress=progress) for config in configs]
    ours = {result.run_id for result in trained}
    rows = [row for task in _tasks(trained) for row in comparison.collect(task)]
    data = {row.digest for row in rows if row.run_id in ours}
    for table in comparison.tables([row for row in rows if row.digest in data]):
        out.print(table)
    for result in trained:
        out.print(f"{result.name}: bundle {result.bundle}, run {result.run_id}", highlight=False, soft_wrap=True)


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
        out.print(f"{result.name}: {', '.join(scores)}, {result.seconds:.0f} s", highlight=False, soft_wrap=True)


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
    text: Annotated[str | None, typer.Option(help="column of the text, if not 'text'")] = None,
    encoding: Annotated[str, typer.Option(help="of the file")] = "utf-8",
    quiet: Quiet = False,
) -> None:
    """Answer every row of FILE, one line of JSON each, in order, on standard output.

    A line that is not of a table is a text, or for a model that takes more than a text, a JSON object.

    A row that cannot be answered becomes a line with "error", and the exit status is 1 at the end.
    """
    from pipelines.predict import predict_file
    from seqapp import bundle
    from seqapp.references import resolve

    loaded = bundle.load(resolve(model).path)
    failed = 0
    bar = Progress(TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), console=err,
                   disable=quiet or not sys.stderr.isatty() or sys.stdout.isatty())  # fmt: skip
    with bar:
        task = bar.add_task("", total=None)
        for record in predict_file(loaded, file, text=text, encoding=encoding):
            try:
                line = json.dumps(record, ensure_ascii=False, allow_nan=False)
            except ValueError:
                record = {"line": record["line"], "error": "the answer holds a number that is not finite"}
                line = json.dumps(record)
            failed += "error" in record
            print(line, flush=sys.stdout.isatty())
            bar.advance(task)
    if failed:
        raise SeqappError(f"{failed} row(s) could not be answered; each says why in its line")


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
    out.print(f"{target}: " + ", ".join(sorted(file.name for file in target.iterdir())), highlight=False)


@app.command()
def compare(
    task: Annotated[str, typer.Argument(help="such as sentiment")] = "sentiment",
    runs: Annotated[list[str] | None, typer.Option(help="only these run ids")] = None,
    every: Annotated[bool, typer.Option("--all", help="also older runs of the same config and network")] = False,
) -> None:
    """Finished runs side by side, one table per data set."""
    from pipelines import compare as comparison

    for table in comparison.tables(comparison.collect(task, runs=runs or (), every=every)):
        out.print(table)


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
            progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    for table in diagnostics.tables(found.record):
        out.print(table)
    for note in found.record["notes"]:
        out.print(note, highlight=False, soft_wrap=True)
    for file in found.files:
        out.print(str(file), highlight=False, soft_wrap=True)
    runs = ", ".join(found.run_ids)
    out.print(f"in MLflow: run {runs}, folder {diagnostics.FOLDER}", highlight=False, soft_wrap=True)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def serve(context: typer.Context) -> None:
    """Answer over HTTP: `seqapp serve [MODEL]... --host 127.0.0.1 --port 8000` (more: `seqapp serve --help`)."""
    # The server is a program of its own, so that neither package imports the other.
    os.execv(sys.executable, [sys.executable, "-m", "serving", *context.args])


@data_app.command("list")
def data_list() -> None:
    """Public data sets that `fetch` knows."""
    from rich.table import Table

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
            out.print(f"{name}: {fetch_dataset(name, mirror=mirror, progress=report)}", highlight=False, soft_wrap=True)


def _tasks(trained: list[Any]) -> list[str]:
    return list(dict.fromkeys(result.task for result in trained))


@contextmanager
def _errors_told() -> Iterator[None]:
    try:
        yield
    except SeqappError as error:
        _tell(str(error))
        sys.exit(1)
    except Exception as error:
        if _is_out_of_memory(error):
            _tell("memory does not suffice for the sizes that model says; smaller ones fit, and so may a smaller "
                  "train.batch_tokens")  # fmt: skip
            sys.exit(1)
        mlflow = sys.modules.get("mlflow.exceptions")
        if mlflow is None or not isinstance(error, mlflow.MlflowException):
            raise
        from seqapp.references import masked, tracking_uri

        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        _tell(masked(f"the tracking server {tracking_uri()} says: {first}"))
        sys.exit(1)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    # Of processors torch tells only by the text; the latter two are sizes that no machine has.
    texts = ("can't allocate memory", "out of memory", "Storage size calculation overflowed", "Overflow when unpacking")
    return isinstance(error, RuntimeError | TypeError) and any(text in str(error) for text in texts)


def _tell(error: str) -> None:
    from rich.markup import escape

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
    with _errors_told():
        app()


if __name__ == "__main__":
    main()
