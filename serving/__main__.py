"""``python -m serving [MODEL ...]``: answer over HTTP until told to stop."""

from __future__ import annotations

import argparse
import errno
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from pydantic import ValidationError

from seqapp.errors import SeqappError
from serving.settings import Settings

if TYPE_CHECKING:
    from serving.models import LiveModel, Models


class StartError(Exception):
    """The server cannot start; the message says why and what would help.

    Args:
        message: for the person at the terminal.
        code: exit status: 1 for a failure, 2 for a wrong choice.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        0 after a stop signal, 1 if it could not start, 2 if a choice was wrong, 130 if interrupted while starting.
    """
    # The server answers a stop signal itself and then raises it again, which would end the process as killed.
    signal.signal(signal.SIGTERM, _stop)
    try:
        settings = _settings(arguments)
        with _bind(settings) as listener:
            return _serve(settings, listener)
    except StartError as error:
        print(f"serving: {error}", file=sys.stderr)
        return error.code
    except SeqappError as error:
        print(f"serving: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _settings(arguments: Sequence[str] | None) -> Settings:
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description="Answer over HTTP from trained models.",
        epilog="Other settings come from the environment: "
        + "; ".join(f"SEQAPP_{name.upper()}: {field.description}" for name, field in Settings.model_fields.items()),
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", default=argparse.SUPPRESS,
                        help="bundle directory, NAME@ALIAS, NAME/VERSION or run id; default: every champion of the "
                        "registry, the most recently registered first")  # fmt: skip
    parser.add_argument("--host", default=argparse.SUPPRESS, help="address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=argparse.SUPPRESS,
                        help="port to listen at, 0 for a free one (default: 8000)")  # fmt: skip
    parser.add_argument("--insecure-public", action="store_true", default=argparse.SUPPRESS,
                        help="listen beyond this machine although anyone may then call")  # fmt: skip
    given = vars(parser.parse_args(arguments))
    try:
        return Settings(**given)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))} ({one['input']!r}): {one['msg']}"
                          for one in error.errors())  # fmt: skip
        raise StartError(f"a setting does not fit: {wrong}", 2) from None


def _bind(settings: Settings) -> socket.socket:
    """Take the port before any model is loaded, so that a wrong choice shows at once."""
    where = f"host {settings.host!r}, port {settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise StartError(f"{where}: {error.strerror}; --host takes an address of this machine", 2) from None
    if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback and not settings.insecure_public:
        raise StartError(
            f"{where} can be reached from other machines, and this server has no authentication: anyone who reaches it "
            "could use the models. Listen at 127.0.0.1, or put it behind a proxy that authenticates; if anyone may "
            "call, say --insecure-public",
            2,
        )
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        port = error.errno in (errno.EADDRINUSE, errno.EACCES)
        fits = "choose another with --port, or 0 for a free one" if port else "--host takes an address of this machine"
        raise StartError(f"{where}: {error.strerror}; {fits}") from None
    return listener


def _serve(settings: Settings, listener: socket.socket) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("serving").setLevel(logging.INFO)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # These bring torch, which takes seconds; a wrong option or a taken port has been told by now.
    from serving.app import ANSWERED, create_app
    from serving.engine import THREAD_PREFIX
    from serving.models import go_live

    models = go_live(settings.models, settings.threads, ANSWERED)
    for refusal in models.refused:
        print(f"serving: {refusal.reference} is not live: {refusal.reason}", file=sys.stderr)
    if not len(models):
        raise StartError("no model is live, so there is nothing to serve")

    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                print(_welcome(models, url, settings), flush=True)

    config = uvicorn.Config(
        create_app(settings, models),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    try:
        Server(config).run([listener])
    except (KeyboardInterrupt, SystemExit) as stop:
        code = stop.code if isinstance(stop, SystemExit) and isinstance(stop.code, int) else 0
    else:
        code = 0
    for thread in threading.enumerate():
        if thread.name.startswith(THREAD_PREFIX):
            thread.join(0.5)
            if thread.is_alive():  # a forward pass cannot be stopped, and its caller has been cut off
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
    return code


def _welcome(models: Models, url: str, settings: Settings) -> str:
    width = max(len(model.id) for model in models)
    lines = ["seqapp answers with"]
    for model in models:
        version = f"version {model.reference.version}" if model.reference.version else ""
        alias = f"@{model.reference.alias}" if model.reference.alias else ""
        lines.append(f"  {model.id:<{width}}  {', '.join(filter(None, (model.task, version, alias, _figure(model))))}")
    lines += [f"playground  {url}/"] + ([f"documents   {url}{settings.docs_url}"] if settings.docs_url else [])
    return "\n".join([*lines, "Ctrl+C stops it."])


def _figure(model: LiveModel) -> str:
    """The score that chose the model's weights, as a person reads it."""
    task = model.bundle.task
    name = task.selection[0]
    split = next((split for split in ("test", "validation") if name in model.scores.get(split, {})), None)
    title = task.titles.get(name, name)
    if split is None:
        return f"no {title} known"
    value = model.scores[split][name]
    return f"{value:.1%} {split} {title}" if name in task.shares else f"{value:.3f} {split} {title}"


def _stop(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
