"""``python -m serving``: how it starts, refuses to start, and stops."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from serving.__main__ import GROUPS, main
from serving.settings import OTHERS, Settings
from serving.workers import url_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    assert out == ""
    assert all(line.startswith("serving: ") for line in err.splitlines())
    return code, err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1"])
def test_a_public_address_is_refused(capsys: pytest.CaptureFixture[str], host: str) -> None:
    if host == "::" and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    code, said = refused(capsys, "x", "--host", host)
    assert code == 2
    assert "no authentication" in said
    assert "--insecure-public" in said


def test_a_public_address_is_taken_when_insisted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, said = refused(capsys, str(tmp_path), "--host", "0.0.0.0", "--port", "0", "--insecure-public")
    assert code == 1
    assert "not a bundle" in said


def test_a_taken_port_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = refused(capsys, "x", "--port", str(port))
    assert code == 1
    assert said == (
        f"serving: host '127.0.0.1', port {port}: Address already in use; "
        "choose another with --port, or 0 for a free one\n"
    )


def test_no_model_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, said = refused(capsys, str(tmp_path), str(tmp_path / "nowhere"), "--port", "0")
    assert code == 1
    assert said.splitlines() == [
        f"serving: {tmp_path} is not live: not a bundle: it has no bundle.yaml",
        f"serving: {tmp_path / 'nowhere'} is not live: no such directory",
        "serving: no model is live, so there is nothing to serve",
    ]


def test_a_wrong_setting_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = refused(capsys, "x", "--port", "70000")
    assert (code, "port (70000)" in said) == (2, True)
    monkeypatch.setenv("SEQAPP_MAX_ITEMS", "many")
    code, said = refused(capsys, "x")
    assert (code, "max_items ('many')" in said) == (2, True)


@pytest.mark.parametrize(
    ("name", "value", "fits"),
    [
        ("trusted_proxies", "foo", "10.1.0.0/16"),
        ("trusted_proxies", "10.1.2.3/16", "10.1.0.0/16"),
        ("trusted_proxies", "10.0.0.7 *", "a single *"),
        ("trusted_hosts", "http://foo", "api.example.org"),
        ("trusted_hosts", "foo:8000", "api.example.org"),
        ("cors_origins", "example.org", "https://example.org"),
        ("cors_origins", "https://example.org/", "https://example.org"),
        ("cors_origins", "https://Example.org", "https://example.org"),
    ],
)
def test_what_can_never_match_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str, fits: str
) -> None:
    monkeypatch.setenv(f"SEQAPP_{name.upper()}", value)
    code, said = refused(capsys, "x")
    assert code == 2
    assert name in said
    assert fits in said


def test_what_can_match_is_taken() -> None:
    settings = Settings(
        trusted_proxies="10.0.0.7 fd00::/8",
        trusted_hosts="* *.example.org a_b localhost [::1]",
        cors_origins="* null https://example.org http://localhost:3000 http://[::1]:80 chrome-extension://abc",
    )
    assert Settings(**settings.model_dump()) == settings
    assert Settings(trusted_proxies="*").trusted_proxies == ["*"]


def test_a_typo_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SEQAPP_PROT", "SEQAPP_CACHE", "SEQAPP_PORT"):
        monkeypatch.setenv(name, "0")
    _, said = refused(capsys, str(tmp_path))
    assert said.splitlines()[0] == "serving: no setting is called SEQAPP_PROT, so it does nothing; did you mean " \
        "SEQAPP_PORT?"  # fmt: skip
    assert "SEQAPP_CACHE" not in said


def test_every_variable_of_the_project_is_known() -> None:
    sources = [file.read_text(encoding="utf-8") for part in ("seqapp", "pipelines", "deploy", "docs")
               for file in (ROOT / part).rglob("*") if file.suffix in (".py", ".md", ".yaml")]  # fmt: skip
    named = {name for text in sources for name in re.findall(r"SEQAPP_[A-Z_]*[A-Z]", text)}
    assert "SEQAPP_TRACKING_WAIT" in named
    assert named <= {f"SEQAPP_{name.upper()}" for name in Settings.model_fields} | set(OTHERS)


@pytest.mark.parametrize(
    ("given", "hint"),
    [("--prot", "did you mean --port?"), ("--max-items=3", "the variable SEQAPP_MAX_ITEMS sets that"), ("--x", "--x")],
)
def test_an_unknown_option_is_told(capsys: pytest.CaptureFixture[str], given: str, hint: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["x", given])
    assert capsys.readouterr().err.endswith(f"{hint}\n")


def test_the_help_has_a_line_for_each_setting_and_the_name_that_was_typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQAPP_PROGRAM", "seqapp serve")
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    said = capsys.readouterr().out
    assert said.startswith("usage: seqapp serve ")
    told = re.findall(r"^  SEQAPP_(\w+)=(\S*)  ", said, re.MULTILINE)
    assert [name.lower() for name, _ in told] == [name for name in Settings.model_fields if name != "state"]
    assert {("PORT", "8000"), ("MODELS", ""), ("ACCESS_LOG", "true"), ("KEYS", "")} <= set(told)
    assert GROUPS.keys() <= Settings.model_fields.keys()


def test_an_address_is_one_that_a_browser_finds() -> None:
    assert url_of("127.0.0.1", 80) == "http://127.0.0.1:80"
    assert url_of("::1", 80) == "http://[::1]:80"
    assert url_of("0.0.0.0", 80) == url_of("::", 80) == f"http://{socket.gethostname()}:80"


def test_models_come_from_the_environment_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SEQAPP_MODELS", f"{tmp_path / 'a'}, {tmp_path / 'b'}")
    code, said = refused(capsys, "--port", "0")
    assert code == 1
    assert f"{tmp_path / 'a'} is not live" in said
    assert f"{tmp_path / 'b'} is not live" in said


def test_a_task_without_a_route_is_told_at_start(
    capsys: pytest.CaptureFixture[str], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.app.ANSWERED", frozenset({"translation"}))
    code, said = refused(capsys, str(tiny), "--port", "0")
    assert code == 1
    assert said.splitlines()[0] == (
        f"serving: {tiny} is not live: no HTTP route answers the task 'sentiment', only translation; "
        "`seqapp predict` does"
    )


def test_it_starts_answers_and_stops(tiny: Path, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SEQAPP_")}
    command = [sys.executable, "-W", "error", "-m", "serving", str(tiny), str(tmp_path / "nowhere"), "--port", "0"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        said = [process.stdout.readline().rstrip("\n") for _ in range(5)]
        assert said[:2] == ["seqapp answers with", "  tiny  sentiment, 74.0% test accuracy"], process.communicate(
            timeout=9
        )
        url = said[2].removeprefix("playground").strip()
        assert said[3:] == [f"documents   {url}docs", "Ctrl+C stops it."]
        request = urllib.request.Request(
            f"{url}v1/sentiment", json.dumps({"inputs": "good"}).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert len(json.load(answer)) == 2
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    first, *requests = err.splitlines()
    assert first.endswith("nowhere is not live: no such directory")
    assert len(requests) == 1
    assert "POST '/v1/sentiment' 200" in requests[0]
