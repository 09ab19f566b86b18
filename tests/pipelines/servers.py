"""A tracking server on this machine that tests start, kill and start again."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass
class Server:
    """``mlflow server`` with served artifacts, on a port that stays the same."""

    folder: Path
    backend: str
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> Any:
        return MlflowClient(self.uri, self.uri)

    def start(self) -> None:
        """Begin to start it; :meth:`wait` returns when it answers."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                       "OMP_NUM_THREADS": "1"}  # fmt: skip
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", self.backend, "--serve-artifacts",
            "--artifacts-destination", str(self.folder / "artifacts"), "--allowed-hosts", f"127.0.0.1:{self.port}",
        ]  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        deadline = time.monotonic() + 120
        while True:
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
            with contextlib.suppress(OSError), OPENER.open(f"{self.uri}/health", timeout=5):
                return
            time.sleep(0.05)

    def kill(self) -> None:
        if self.process is not None:
            # The server and its workers are a process group of their own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
