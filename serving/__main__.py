"""``python -m serving [MODEL ...]``: answer over HTTP until told to stop."""

from __future__ import annotations

import argparse
import errno
import ipaddress
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType

from pydantic import ValidationError

from seqapp.errors import SeqappError
from serving import keys
from serving.settings import Settings
from serving.workers import StartError, serve, supervise


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
    if arguments[:1] == ["key"]:
        return keys.main(arguments[1:])
    try:
        settings = _settings(arguments)
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


def _settings(arguments: Sequence[str] | None) -> Settings:
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description="Answer over HTTP from trained models. `python -m serving key --help` is about keys.",
        epilog="Other settings come from the environment: "
        + "; ".join(f"SEQAPP_{name.upper()}: {field.description}" for name, field in Settings.model_fields.items()),
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
