"""LitServe with batches of up to 32: `FOLDER=... python serve_litserve.py PORT WORKERS`."""

from __future__ import annotations

import os
import sys
from typing import Any

import litserve
from model import Predictor


class Api(litserve.LitAPI):  # type: ignore[misc]
    """One text a request, a batch a forward pass."""

    def setup(self, device: str) -> None:
        self.predictor = Predictor(os.environ["FOLDER"])

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe reads hints
        return request["inputs"]

    def batch(self, inputs: list[str]) -> list[str]:
        return inputs

    def predict(self, x: list[str]) -> list[dict[str, Any]]:
        return self.predictor(x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    port, workers = map(int, sys.argv[1:])
    server = litserve.LitServer(
        Api(max_batch_size=32, batch_timeout=0.001), accelerator="cpu", devices=1, workers_per_device=workers
    )
    server.run(
        host="127.0.0.1", port=port, num_api_servers=workers, generate_client_file=False, log_level="warning",
        access_log=False,
    )  # fmt: skip
