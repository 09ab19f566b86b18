"""``python -m tests.serving.stub [refused | loading]``: the server's processes around an answer that needs no model.

A worker starts in a fraction of the time, since neither torch nor mlflow is imported. It tells at once who answers, and
the rest when the body has come whole: how long a request takes is up to the client.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import uvicorn

from serving import workers
from serving.settings import Settings

workers.BEAT = 0.1  # workers import this file, too


class Stub:
    """An ASGI application."""

    def __init__(self) -> None:
        self.state = SimpleNamespace(stopping=False)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        status = 503 if self.state.stopping and scope["path"] == "/readyz" else 200
        headers = [(b"x-pid", b"%d" % os.getpid()), (b"content-length", b"4")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"do", "more_body": True})
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            pass
        await send({"type": "http.response.body", "body": b"ne"})


def serve(
    settings: Settings,
    listener: socket.socket,
    *,
    complain: Callable[[str], None],
    started: Callable[[str], None],
    begins: Callable[[workers.Server], None] = lambda server: None,
    **more: Any,
) -> int:
    """What :func:`serving.workers.serve` is."""
    if settings.models == ["loading"]:
        threading.Event().wait()
    if settings.models == ["refused"]:
        complain("refused is not live")
        raise workers.StartError("no model is live, so there is nothing to serve")
    app: Any = Stub()
    config = uvicorn.Config(
        app, lifespan="off", ws="none", log_config=None, timeout_graceful_shutdown=settings.shutdown_seconds
    )
    welcome = f"playground  http://127.0.0.1:{listener.getsockname()[1]}/\nCtrl+C stops it."
    server = workers.Server(
        config, app, drain_delay=settings.drain_delay_seconds, started=lambda: started(welcome), **more
    )
    begins(server)
    server.run([listener])
    return 128 + server.forced if server.forced else 0


workers.serve = serve

if __name__ == "__main__":
    from serving.__main__ import main

    sys.exit(main())
