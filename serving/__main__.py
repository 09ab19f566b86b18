"""``python -m serving [MODEL ...]``: answer over HTTP until told to stop."""

from __future__ import annotations

import argparse
import errno
import ipaddress
import os
import re
import shutil
import signal
import socket
import sys
import textwrap
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from types import FrameType

from pydantic import ValidationError

from seqapp.errors import SeqappError
from serving import keys
from serving.settings import OTHERS, PREFIX, PROGRAM, Settings
from serving.workers import StartError, serve, supervise

GROUPS = {
    "host": "Address and models",
    "max_items": "Sizes of a request",
    "threads": "Threads and documents",
    "deployment": "Versions of models",
    "keys": "Who may call",
    "rate": "Rates, queues, time",
    "max_connections": "Connections",
    "access_log": "Logs",
    "shutdown_seconds": "Processes and traces",
}
"""Of the settings in their order: the first of each group, and what the group is called."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        0 after a stop signal, 1 if it could not start, 2 if a choice was wrong, 130 if interrupted while starting.
    """
    # While the server answers it heeds signals itself; before that, one ends the process, and not as killed.
    signal.signal(signal.SIGTERM, _stop)
    arguments = sys.argv[1:] if arguments is None else arguments
    program = os.environ.get(PROGRAM) or "python -m serving"
    if arguments[:1] == ["key"]:
        return keys.main(arguments[1:], program)
    try:
        settings = _settings(arguments, program)
        for unknown in _unknown():
            _complain(unknown)
        if settings.keys:
            keys.Keys(settings.keys)  # a file that does not fit shows before any model is loaded
        with _bind(settings) as listener:
            if settings.backend == "ray":
                return _by_ray(settings, listener)
            if settings.workers > 1:
                return supervise(settings, listener, complain=_complain, started=_say)
            return serve(settings, listener, complain=_complain, started=_say)
    except StartError as error:
        _complain(str(error))
        return error.code
    except SeqappError as error:
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        return 130


def _settings(arguments: Sequence[str], program: str) -> Settings:
    parser = argparse.ArgumentParser(
        prog=program,
        description=f"Answer over HTTP from trained models. `{program} key --help` is about keys.",
        epilog="\n".join(_listed()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", default=argparse.SUPPRESS,
                        help="bundle directory, NAME@ALIAS, NAME/VERSION or run id; default: every champion of the "
                        "registry, the most recently registered first")  # fmt: skip
    parser.add_argument("--deployment", metavar="FILE", default=argparse.SUPPRESS,
                        help="YAML file of names to serve, each with its versions, their weights and a "
                        "shadow")  # fmt: skip
    parser.add_argument("--host", default=argparse.SUPPRESS, help="address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=argparse.SUPPRESS,
                        help="port to listen at, 0 for a free one (default: 8000)")  # fmt: skip
    parser.add_argument("--workers", type=int, default=argparse.SUPPRESS,
                        help="processes that answer side by side (default: 1)")  # fmt: skip
    parser.add_argument("--backend", choices=("uvicorn", "ray"), default=argparse.SUPPRESS,
                        help="what runs the workers: uvicorn on this machine, or Ray Serve, which has up to so many "
                        "replicas as the load asks for (default: uvicorn)")  # fmt: skip
    parser.add_argument("--insecure-public", action="store_true", default=argparse.SUPPRESS,
                        help="listen beyond this machine although anyone may then call")  # fmt: skip
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        hints = filter(None, (_hint(one, parser.format_usage()) for one in unknown))
        parser.error("; ".join([f"unrecognized arguments: {' '.join(unknown)}", *hints]))
    try:
        return Settings(**vars(known))
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, one['loc']))} ({one['input']!r}): {one['msg'].removeprefix('Value error, ')}"
            for one in error.errors()
        )
        raise StartError(f"a setting does not fit: {wrong}", 2) from None


def _listed() -> Iterator[str]:
    """All settings, as the help has them."""
    width = max(40, shutil.get_terminal_size().columns - 2)
    yield "Each setting may come from the environment; here with its default:"
    for name, field in Settings.model_fields.items():
        if name in GROUPS:
            yield f"\n{GROUPS[name]}:"
        if name != "state":  # not for people
            default = str(field.default).lower() if isinstance(field.default, bool) else field.default
            line = f"{PREFIX}{name.upper()}={'' if default in (None, []) else default}  {field.description}"
            yield textwrap.fill(line, width, initial_indent="  ", subsequent_indent=" " * 6)


def _hint(option: str, usage: str) -> str:
    """What may have been meant by an option that is none; "" if nobody can say."""
    option = option.partition("=")[0]
    name = option.lstrip("-").replace("-", "_")
    if close := get_close_matches(option, re.findall(r"--[a-z-]+", usage), n=1):
        return f"did you mean {close[0]}?"
    if name in Settings.model_fields:
        return f"the variable {PREFIX}{name.upper()} sets that"
    return ""


def _unknown() -> Iterator[str]:
    """A line for each variable that looks like a setting and is none."""
    known = [*(f"{PREFIX}{name.upper()}" for name in Settings.model_fields), *OTHERS]
    for name in sorted(os.environ):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            close = get_close_matches(name.upper(), known, n=1)
            yield f"no setting is called {name}, so it does nothing" + (f"; did you mean {close[0]}?" if close else "")


def _bind(settings: Settings) -> socket.socket:
    """Take the port before any model is loaded, so that a wrong choice shows at once."""
    where = f"host {settings.host!r}, port {settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise StartError(f"{where}: {error.strerror}; --host takes an address of this machine", 2) from None
    if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback and not (
        settings.keys or settings.insecure_public
    ):
        raise StartError(
            f"{where} can be reached from other machines, and this server has no authentication: anyone who reaches it "
            "could use the models. Make keys with `python -m serving key new NAME --keys FILE` and set "
            "SEQAPP_KEYS=FILE, or listen at 127.0.0.1; if anyone may call, say --insecure-public",
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


def _by_ray(settings: Settings, listener: socket.socket) -> int:
    try:
        from serving import ray_serve
    except ImportError:
        raise StartError("--backend ray takes the extra of that name: pip install 'seqapp[serve,ray]'", 2) from None
    host, port = listener.getsockname()[:2]
    listener.close()  # Ray opens the port itself
    try:
        ray_serve.run(settings, host, port)
    except (KeyboardInterrupt, SystemExit):
        return 0
    except RuntimeError as error:  # what Ray raises if a deployment does not become healthy
        raise StartError(str(error)) from None
    return 0


def _say(welcome: str) -> None:
    print(welcome, flush=True)


def _complain(line: str) -> None:
    print(f"serving: {line}", file=sys.stderr, flush=True)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
