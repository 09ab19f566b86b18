"""What a person may write for MODEL: a bundle directory, ``name@alias``, ``name/version`` or an MLflow run id.

Training and serving both need this and may not import each other, so it lives here; MLflow is imported only when the
reference is not a directory (docs/decisions/0002-one-place-resolves-a-model-reference.md).
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sqlite3
import ssl
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from seqapp.bundle import MANIFEST
from seqapp.errors import SeqappError

BUNDLE = "bundle"
"""The folder of the bundle inside a logged model."""


_ANSWERS = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED")
"""Error codes of a tracking server that did answer."""
_UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE")
"""Those for a name, a version or an alias that it does not know."""

_answering: set[str] = set()
"""Tracking servers that have answered this process once."""


class ReferenceNotFound(SeqappError):
    """A MODEL reference leads nowhere; the message says what was looked for and what there is."""


class Unreachable(ReferenceNotFound):
    """Nobody can say just now where a MODEL reference leads: the tracking server does not answer."""


@dataclass(frozen=True)
class Reference:
    """Where a MODEL reference leads."""

    path: Path
    """The bundle directory, downloaded if it was remote."""
    name: str
    """What a client calls the model."""
    version: str = ""
    alias: str = ""


@dataclass(frozen=True)
class Target:
    """What a MODEL reference of the tracking server means just now; its bundle is not downloaded yet."""

    uri: str
    """Where MLflow has it: ``models:/name/3``."""
    stamp: str
    """Tells two models apart that had the same ``uri`` at different times."""
    name: str
    version: str = ""
    alias: str = ""


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or the SQLite file of the current directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def masked(text: str) -> str:
    """``text`` with the password of every address in it replaced by ``***``, since messages end up in logs."""
    # Up to the last @ of the word: a password may hold what should have been percent-encoded. Digits before a slash are
    # a port.
    text = re.sub(r"(://[^:/@\s]*):(?!\d+/)\S*@", r"\1:***@", text)
    return re.sub(r"([?&](?:password|passwd|pwd)=)[^&\s]*", r"\1***", text, flags=re.IGNORECASE)


def connect(*, create: bool = True) -> Any:
    """An MLflow client for :func:`tracking_uri`.

    Args:
        create: MLflow makes a SQLite file that is not there; False refuses, for those who only look.

    Raises:
        ReferenceNotFound: if MLflow is not installed.
        Unreachable: if the tracking server does not answer, or there is no SQLite file to look into.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        import mlflow
    except ImportError:
        raise ReferenceNotFound("MLflow is not installed; `pip install 'seqapp[serve]'`, or name a bundle directory"
                                ) from None  # fmt: skip
    uri = tracking_uri()
    file = uri.removeprefix("sqlite:///")
    if not create and file != uri and not Path(file).exists():
        raise Unreachable(f"there is no registry: {file} does not exist; `make train` makes one")
    try:
        if uri not in _answering:
            _knock(uri)
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        client = mlflow.MlflowClient(uri, uri)
        if uri not in _answering:
            client.search_experiments(max_results=1)
    except Exception as error:  # MLflow lets those of the database and of the network through
        raise Unreachable(f"the tracking server {masked(uri)} cannot be used: {reason(error)}") from None
    _answering.add(uri)
    return client


def _knock(uri: str) -> None:
    """Find out at once whether anybody listens, where MLflow would try again for up to two minutes."""
    parts = urlsplit(uri)
    file = uri.removeprefix("sqlite:///")
    if file != uri and Path(file).exists():
        with contextlib.closing(sqlite3.connect(file)) as database:
            database.execute("PRAGMA schema_version")
    if parts.scheme in ("http", "https") and parts.hostname and not getproxies().get(parts.scheme):
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        socket.create_connection((parts.hostname, port), timeout=5).close()


def resolve(reference: str) -> Reference:
    """The bundle that ``reference`` names.

    Args:
        reference: a bundle directory, ``name@alias``, ``name/version``, ``name`` for its champion, or a run id.

    Raises:
        ReferenceNotFound: saying what was looked for and what there is.
    """
    found = local(reference)
    if found is not None:
        return found
    target = locate(reference)
    return Reference(download(target), target.name, target.version, target.alias)


def local(reference: str) -> Reference | None:
    """The bundle directory that ``reference`` names, if it names one."""
    path = Path(reference)
    if not path.is_dir():
        return None
    inner = path if (path / MANIFEST).is_file() else path / BUNDLE
    return Reference(inner if inner.is_dir() else path, path.resolve().name)


def locate(reference: str) -> Target:
    """What ``reference`` means just now, without a download.

    Args:
        reference: ``name@alias``, ``name/version``, ``name`` for its champion, or a run id.

    Raises:
        ReferenceNotFound: saying what was looked for and what there is.
        Unreachable: if the tracking server does not answer.
    """
    if "/" in reference and not re.fullmatch(r"[^/@]+/\d+", reference):
        raise ReferenceNotFound(f"{reference}: no such directory")
    client = connect(create=False)
    if re.fullmatch(r"[0-9a-f]{32}", reference):
        return _from_run(client, reference)
    name, _, alias = reference.partition("@")
    name, _, version = name.partition("/")
    return _from_registry(client, name, alias or ("" if version else "champion"), version)


def champions() -> list[str]:
    """``name@champion`` of every registered model that has one, the most recently registered first.

    Raises:
        ReferenceNotFound: if there is none.
    """
    client = connect(create=False)
    found = []
    for model in _ask(client.search_registered_models, "the model registry"):
        if "champion" in (model.aliases or {}):
            found.append((model.last_updated_timestamp or 0, model.name))
    if not found:
        raise ReferenceNotFound(f"the registry at {masked(tracking_uri())} holds no champion; `make train` trains one, "
                                "or name a bundle directory")  # fmt: skip
    return [f"{name}@champion" for _, name in sorted(found, reverse=True)]


def _from_registry(client: Any, name: str, alias: str, version: str) -> Target:
    from mlflow.exceptions import MlflowException

    what = f"{name}@{alias}" if alias else f"{name}/{version}"
    try:
        found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version)
    except MlflowException as error:
        known = _ask(client.search_registered_models, what)
        listed = [f"{model.name}@{other}" for model in known for other in (model.aliases or {})]
        close = get_close_matches(what, listed, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        why = "" if error.error_code in _UNKNOWN else f" ({reason(error)})"
        raise ReferenceNotFound(f"{what}: not in the registry at {masked(tracking_uri())}{why}; {meant}"
                                f"registered: {', '.join(listed) or 'none'}") from None  # fmt: skip
    # A registry that was made anew counts its versions from 1 again.
    stamp = f"{found.run_id} {found.creation_timestamp}"
    return Target(f"models:/{name}/{found.version}", stamp, name, str(found.version), alias)


def _from_run(client: Any, run_id: str) -> Target:
    run = _ask(lambda: client.get_run(run_id), f"run {run_id}")
    models = run.outputs.model_outputs if run.outputs else []
    if not models:
        raise ReferenceNotFound(f"run {run_id} ({run.info.status.lower()}) has logged no model")
    return Target(f"models:/{models[-1].model_id}", run_id, run.info.run_name or run_id)


def download(target: Target, folder: Path | None = None) -> Path:
    """The bundle directory of ``target``.

    Args:
        target: what :func:`locate` found.
        folder: an empty one to download to; by default MLflow chooses, and may lend what lies on this machine.

    Raises:
        ReferenceNotFound: if it holds no bundle.
        Unreachable: if it cannot be had just now.
    """
    connect(create=False)
    import mlflow

    to = None if folder is None else str(folder)
    what = f"{target.name}/{target.version}" if target.version else target.name
    directory = Path(_ask(lambda: mlflow.artifacts.download_artifacts(target.uri, dst_path=to), what))
    for path in (directory / "artifacts" / BUNDLE, directory / BUNDLE):
        if (path / MANIFEST).is_file():
            return path
    raise ReferenceNotFound(f"{what}: the model at {target.uri} was not logged by seqapp: it holds no bundle")


def _ask(question: Any, what: str) -> Any:
    """``question()``, its failures told in one sentence."""
    from mlflow.exceptions import MlflowException

    try:
        return question()
    except (MlflowException, OSError) as error:
        knows = isinstance(error, MlflowException) and error.error_code in _ANSWERS
        kind = ReferenceNotFound if knows else Unreachable
        raise kind(f"{what}: the tracking server {masked(tracking_uri())} says: {reason(error)}") from None


def causes(error: BaseException) -> list[BaseException]:
    """``error`` and what it was raised for, the first cause last; MLflow does not always say so by ``from``."""
    found = [error]
    while cause := found[-1].__cause__ or found[-1].__context__:
        found.append(cause)
    return found


def reason(error: Exception) -> str:
    """What an error of MLflow, the network or a database comes down to, in one line and without passwords."""
    from mlflow.exceptions import MlflowException

    for cause in reversed(causes(error)):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (f"its certificate is not trusted ({cause.verify_message}); MLFLOW_TRACKING_SERVER_CERT_PATH names "
                    "a file of certificates to trust")  # fmt: skip
        if isinstance(cause, ssl.SSLError):
            return f"it does not speak TLS as https:// wants it ({cause.reason})"
        if isinstance(cause, OSError) and cause.strerror:
            return masked(cause.strerror)
    text = str(error)
    if code := re.search(r"too many (\d+) error responses", text):
        return f"it answers with the HTTP code {code[1]}"
    if "Caused by " in text:
        # As in: Caused by ProtocolError('Connection aborted.', ConnectionResetError(104, 'Connection reset by peer'))
        quoted = re.findall(r"['\"]([^'\"]+)['\"]", text.rpartition("Caused by ")[2])
        return masked(quoted[-1] if quoted else text.rpartition("Caused by ")[2])
    body = text.partition("Response body: ")[2].strip("' \n")
    # A code that is not of the API, or a page instead of JSON: somebody else's answer, such as a proxy's.
    if isinstance(error, MlflowException) and "Response body: " in text:
        status = re.search(r"failed with error code (\d+)", text)
        if status and status[1] == "401":
            return ("it does not know the user or the password (HTTP code 401); MLFLOW_TRACKING_USERNAME and "
                    "MLFLOW_TRACKING_PASSWORD give them")  # fmt: skip
        if not status or status[1] == "404" or body.startswith("<"):
            told = f"HTTP code {status[1]}" if status else "an answer that is not JSON"
            return f"there is no MLflow server at this address ({told}); its first part or its path may be wrong"
        return masked(f"HTTP code {status[1]}: {' '.join(body.split())[:200]}")
    first = (text.strip().splitlines() or [type(error).__name__])[0]
    return masked(
        re.sub(r"^\(\w+\.\w+\) ", "", first)
    )  # SQLAlchemy begins with the kind, as (sqlite3.OperationalError)
