"""Every block of the README is run, or, where it would train for minutes, checked for what it names.

So are the commands of docs/translation.md.
"""

import contextlib
import io
import itertools
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from benchmarks import report
from pipelines.__main__ import app
from pipelines.options import SECTIONS
from seqapp import config
from serving import __main__ as serving

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [README, (ROOT / "docs" / "translation.md").read_text(encoding="utf-8")]


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("default")  # MLflow and SQLAlchemy warn of their own ways when first used
def test_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    (block,) = blocks("python")
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("happy ")


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.name
)
def test_every_page_is_finished_and_its_python_can_be_read(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    assert not re.findall(r"@@|TODO|FIXME|XXX", page)
    for block in blocks("python", page):
        compile(block, str(path), "exec")
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_yaml_block_is_a_config(tmp_path: Path) -> None:
    (block,) = blocks("yaml")
    (tmp_path / "my.yaml").write_text(block, encoding="utf-8")
    resolved = config.load(tmp_path / "my.yaml", sections=SECTIONS)
    assert resolved["model"]["encoder"]["layer"]["hidden_size"] == 64


def commands() -> list[list[str]]:
    """The words of each command, those joined by a pipe apart."""
    sections = [block for page in PAGES for block in blocks("sh", page)]
    lines = [line for block in sections for line in block.replace("\\\n", " ").splitlines()]
    rows = [shlex.split(line, comments=True) for line in lines if line.strip()]
    return [list(part) for row in rows for pipe, part in itertools.groupby(row, "|".__eq__) if not pipe]


def served(*words: str) -> set[str]:
    """The options of ``seqapp serve``, or of ``seqapp serve key COMMAND``."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        serving.main([*(words if words[:1] == ("key",) else ()), "--help"])
    return set(re.findall(r"--[a-z-]+", shown.getvalue()))


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_name_what_exists(words: list[str]) -> None:
    words = list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words))
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert words[1] in targets
    elif words[0] == "seqapp":
        command = get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words[1]]
            words = words[1:]
        options = {name for parameter in command.params for name in parameter.opts}
        if command.name == "serve":  # it passes its options on
            options = served(*words[1:3])
        for word in words[1:]:
            if word.startswith("--"):
                assert word in options
            if word.endswith(".yaml"):
                assert (ROOT / word).is_file()
    else:
        assert words[0] in ("curl", "echo")


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_benchmark_page_is_generated_from_the_results() -> None:
    assert report.render(report.load()) == report.TARGET.read_text(encoding="utf-8")
