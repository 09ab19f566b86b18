"""Keys: who is let in, to what, and until when."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from seqapp.errors import SeqappError
from serving.__main__ import main
from serving.app import create_app
from serving.keys import Keys, _replace, create, remove
from serving.models import Models, go_live
from serving.settings import Settings

OPEN = ["/", "/livez", "/readyz", "/docs", "/openapi.json", "/static/app.js", "/static/swagger-ui/swagger-ui.css"]
CLOSED = ["/v1/models", "/languages", "/metrics", "/nowhere", "/static", "/v1/models/tiny/card", "/v1/models/reload",
          "/livez/", "/%6civez/../v1/models"]  # fmt: skip


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let so many seconds pass, for those who ask how old what they know is."""
    passed = [0.0]
    monkeypatch.setattr("serving.keys.monotonic", lambda: passed[0])
    return lambda seconds: passed.__setitem__(0, passed[0] + seconds)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[tuple[TestClient, str, str]]:
    """A client of a server with keys, the key of a user and that of an admin."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    user, admin = create(file, "anna"), create(file, "root", admin=True)
    with TestClient(create_app(Settings(keys=file), go_live([str(tiny)], threads=1))) as client:
        yield client, user, admin


def test_a_key_is_256_random_bits_of_which_the_file_keeps_the_hash(file: Path) -> None:
    first, second = create(file, "anna"), create(file, "boris", admin=True, expires=date(2030, 1, 2))
    assert re.fullmatch(r"seqapp_[A-Za-z0-9_-]{43}", first)
    assert file.stat().st_mode & 0o777 == 0o600
    text = file.read_text()
    assert text == (f"anna {sha256(first.encode()).hexdigest()} user never\n"
                    f"boris {sha256(second.encode()).hexdigest()} admin 2030-01-02\n")  # fmt: skip
    assert first not in text


@pytest.mark.parametrize("path", OPEN)
def test_probes_and_pages_need_no_key(guarded: tuple[TestClient, str, str], path: str) -> None:
    assert guarded[0].get(path).status_code == 200


@pytest.mark.parametrize("path", CLOSED)
def test_everything_else_does(guarded: tuple[TestClient, str, str], path: str) -> None:
    answer = guarded[0].get(path)
    assert answer.status_code == 401
    assert answer.json()["type"] == "urn:problem-type:seqapp:unauthorized"
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="seqapp"'


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "PUT", "TRACE", "ODD"])
def test_no_method_passes(guarded: tuple[TestClient, str, str], method: str) -> None:
    assert guarded[0].request(method, "/v1/models").status_code == 401


def test_no_path_opens_another(guarded: tuple[TestClient, str, str]) -> None:
    for path in (
        "/static/../v1/models",
        "/static%2f..%2fv1/models",
        "/static/%2e%2e/v1/models",
        "/./livez/../v1/models",
    ):
        answer = guarded[0].get(path)
        assert answer.status_code in (401, 404), path
        assert "tiny" not in answer.text


def test_a_key_is_taken_in_either_header(guarded: tuple[TestClient, str, str]) -> None:
    client, user, _ = guarded
    for headers in ({"Authorization": f"Bearer {user}"}, {"authorization": f"bEARER  {user} "}, {"X-API-Key": user}):
        assert client.get("/v1/models", headers=headers).status_code == 200
        assert client.post("/v1/sentiment", json={"inputs": "good"}, headers=headers).status_code == 200


WRONG = ["", "x", "Bearer", "Bearer ", "Basic {key}", "{key}", "Bearer {key}x", "Bearer {key} {key}", "Bearer {digest}",
         "Bearer anna", "Bearer " + "x" * 60_000]  # fmt: skip


@pytest.mark.parametrize("given", WRONG)
def test_anything_else_is_not(guarded: tuple[TestClient, str, str], given: str) -> None:
    client, user, _ = guarded
    sent = given.format(key=user, digest=sha256(user.encode()).hexdigest())
    answer = client.get("/v1/models", headers={"Authorization": sent})
    assert answer.status_code == 401
    assert user not in answer.text
    for odd in (b"Bearer \xff\xfe", b"Bearer \xe9"):
        assert client.get("/v1/models", headers={b"Authorization": odd}).status_code == 401


@pytest.mark.parametrize("path", ["/docs/", "/", "docs", "/a//b", "/{any:path}"])
def test_the_documents_open_no_path_but_theirs(path: str) -> None:
    with pytest.raises(ValueError, match="docs_url"):
        Settings(docs_url=path)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/sentiment", "/v1/models/tiny/card", "/metrics", "/static/x"])
def test_the_documents_take_no_path_of_another(path: str) -> None:
    with pytest.raises(SeqappError, match=f"something else answers at {path}"):
        create_app(Settings(docs_url=path), Models([]))


def test_errors_keep_the_shape_of_their_route(guarded: tuple[TestClient, str, str]) -> None:
    answer = guarded[0].post("/v1/completions", json={"prompt": ""})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["X-Request-Id"]


def test_only_an_admin_reloads(guarded: tuple[TestClient, str, str]) -> None:
    client, user, admin = guarded
    answer = client.post("/v1/models/reload", headers={"X-API-Key": user})
    assert answer.status_code == 403
    assert "'anna'" in answer.json()["detail"]
    assert client.post("/v1/models/reload", headers={"X-API-Key": admin}).status_code not in (401, 403)


@pytest.mark.parametrize(("access", "nobody", "user", "admin"), [
    ("open", False, False, False), ("user", True, False, False), ("admin", True, True, False)
])  # fmt: skip
def test_who_reads_the_metrics_is_a_setting(file: Path, access: str, nobody: bool, user: bool, admin: bool) -> None:
    keys = {"user": create(file, "u"), "admin": create(file, "a", admin=True)}
    with TestClient(create_app(Settings(keys=file, metrics_access=access), Models([]))) as client:  # type: ignore[arg-type]
        assert (client.get("/metrics").status_code == 401) is nobody
        for role, refused in (("user", user), ("admin", admin)):
            assert (client.get("/metrics", headers={"X-API-Key": keys[role]}).status_code == 403) is refused


def test_a_key_works_until_the_end_of_its_last_day(file: Path) -> None:
    today = datetime.now(UTC).date()
    last, gone = create(file, "last", expires=today), create(file, "gone")
    file.write_text(file.read_text().replace("never", str(today - timedelta(days=1))))
    keys = Keys(file)
    assert keys.find(last) or datetime.now(UTC).date() != today
    assert keys.find(gone) is None


def test_a_change_of_the_file_is_noticed(file: Path, now: Callable[[float], None]) -> None:
    anna, boris = create(file, "anna"), create(file, "boris")
    keys = Keys(file)
    remove(file, "anna")
    clara = create(file, "clara")
    assert keys.find(anna)  # known for a second more
    now(1.1)
    assert keys.find(anna) is None
    assert keys.find(boris)
    assert keys.find(clara)
    file.unlink()
    now(1.1)
    assert keys.find(boris) is None
    boris = create(file, "boris")
    now(1.1)
    assert keys.find(boris)
    file.chmod(0o666)
    now(1.1)
    assert keys.find(boris) is None


def test_a_line_that_does_not_fit_opens_nothing_and_closes_nothing_else(
    file: Path, now: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    anna, boris = create(file, "anna"), create(file, "boris")
    keys = Keys(file)
    file.write_text(file.read_text().replace("anna", "anna oops"))
    now(2)
    assert keys.find(anna) is None
    assert keys.find(boris)
    assert f"{file}, line 1: 5 words" in caplog.text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no key"),
        ("# none\n\n", "holds no key"),
        ("anna", "line 1: 1 words"),
        ("\nanna 12 user never", "line 2: the second word is no SHA-256"),
        (f"an/na {'a' * 64} user never", "'an/na' is no name"),
        (f"anna {'a' * 64} amdin never", "did you mean 'admin'?"),
        (f"anna {'a' * 64} user soon", "line 1"),
        (f"anna {'a' * 64} user never\nanna {'b' * 64} user never", "line 2: anna stands there twice"),
    ],
)
def test_a_file_that_does_not_fit_is_told(file: Path, text: str, says: str) -> None:
    file.write_text(text)
    with pytest.raises(SeqappError, match=re.escape(says)):
        Keys(file)


def test_a_file_that_others_may_write_is_refused(file: Path) -> None:
    create(file, "anna")
    file.chmod(0o620)
    with pytest.raises(SeqappError, match="chmod 600"):
        Keys(file)


def test_a_revocation_keeps_owner_and_mode(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server may be another user, who reads the file by its group."""
    create(file, "anna")
    boris = create(file, "boris")
    file.chmod(0o640)
    owners: list[tuple[int, int]] = []
    chown = os.fchown
    monkeypatch.setattr(os, "fchown", lambda fd, user, group: (owners.append((user, group)), chown(fd, user, group)))
    link = tmp_path / "link"
    link.symlink_to(file)
    remove(link, "anna")
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o640
    assert owners == [(file.stat().st_uid, file.stat().st_gid)]
    assert Keys(file).find(boris)

    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "fchown", refuse)
    with pytest.raises(SeqappError, match="belongs to another user"):
        remove(file, "boris")
    assert Keys(file).find(boris)
    assert {path.name for path in tmp_path.iterdir()} == {"keys", "link"}


def test_a_revocation_loses_no_key_that_is_added_meanwhile(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create(file, "anna")
    made: dict[str, str] = {}
    adding = threading.Thread(target=lambda: made.update(boris=create(file, "boris")))

    def slow(*given: Any) -> None:
        adding.start()
        adding.join(0.1)  # it waits, so this takes its time
        assert not made
        _replace(*given)

    monkeypatch.setattr("serving.keys._replace", slow)
    remove(file, "anna")
    adding.join()
    assert Keys(file).find(made["boris"])


def test_many_may_add_keys_at_once(file: Path) -> None:
    made: dict[str, str] = {}
    threads = [threading.Thread(target=lambda n=n: made.__setitem__(f"k{n}", create(file, f"k{n}"))) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys = Keys(file)
    for name, presented in made.items():
        found = keys.find(presented)
        assert found is not None
        assert found.name == name


def test_the_command(file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.__main__.signal.signal", lambda *_: None)
    monkeypatch.setenv("SEQAPP_KEYS", str(file))
    assert main(["key", "new", "anna", "--admin", "--expires", "2099-12-31"]) == 0
    presented = capsys.readouterr().out.strip()
    found = Keys(file).find(presented)
    assert found is not None
    assert (found.name, found.role, found.expires) == ("anna", "admin", date(2099, 12, 31))
    assert main(["key", "list"]) == 0
    assert capsys.readouterr().out == "anna\tadmin\t2099-12-31\n"
    assert main(["key", "new", "anna"]) == 1
    assert "already" in capsys.readouterr().err
    assert main(["key", "new", "a b"]) == 1
    assert "no name" in capsys.readouterr().err
    assert main(["key", "revoke", "ana"]) == 1
    assert "did you mean 'anna'?" in capsys.readouterr().err
    assert main(["key", "revoke", "anna"]) == 0
    assert file.read_text() == ""
    assert main(["key", "new", "old", "--expires", "2020-01-01"]) == 1
    assert "or a later day fits" in capsys.readouterr().err
    file.write_text(f"old {'0' * 64} user 2020-01-01\n")
    assert main(["key", "list"]) == 0
    assert capsys.readouterr().out == "old\tuser\t2020-01-01\texpired\n"
    assert main(["key", "revoke", "old"]) == 0
    assert os.stat(file).st_mode & 0o777 == 0o600


def test_a_public_address_is_taken_with_keys(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("serving.__main__.signal.signal", lambda *_: None)
    monkeypatch.setenv("SEQAPP_KEYS", str(file))
    arguments = [str(tmp_path), "--host", "0.0.0.0", "--port", "0"]
    assert main(arguments) == 1
    assert "cannot be read" in capsys.readouterr().err
    create(file, "anna")
    assert main(arguments) == 1
    assert "not a bundle" in capsys.readouterr().err
