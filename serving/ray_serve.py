"""The same application as a deployment of Ray Serve, which starts and ends replicas as the load asks for them.

``serve run serving.ray_serve:app models=sentiment-bundled@champion max_replicas=4``, or ``seqapp serve --backend ray``.
"""

# Ray reads the annotation of ``app``; as a text, which a __future__ import would make of it, it could not.
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from starlette.datastructures import State

from serving.settings import Settings
from serving.workers import url_of

NAME = "seqapp"


class Options(BaseModel):
    """What a person may choose about the deployment; the server's own settings stand in ``settings``."""

    model_config = ConfigDict(extra="forbid")

    models: str | list[str] = Field(default=[], description="MODEL references; none stands for every champion")
    min_replicas: int = Field(default=1, ge=1, description="replicas without load")
    max_replicas: int = Field(default=4, ge=1, description="replicas under load")
    target_ongoing_requests: float = Field(
        default=16, gt=0, description="requests in hand of a replica, on average, beyond which another one starts"
    )
    cpus: float = Field(default=1, gt=0, description="processor cores of a replica")
    settings: dict[str, Any] = Field(default={}, description="settings of the server by name, as in docs/serving.md")


class Replica:
    """One process with all models; Ray calls its application."""

    def __init__(self, given: dict[str, Any]) -> None:
        from serving.app import TASKS, create_app
        from serving.metrics import Metrics
        from serving.workers import StartError, load

        logging.getLogger("serving").setLevel(logging.INFO)
        settings = Settings(**given)
        metrics = Metrics(TASKS)
        models = load(settings, metrics)
        for refusal in models.refused:
            logging.getLogger(__name__).warning("%s", refusal)
        if not len(models):
            raise StartError("no model is live, so there is nothing to serve")
        self._built = create_app(settings, models, metrics)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._built

    def check_health(self) -> None:
        """What ``/readyz`` says; Ray replaces a replica for which this raises."""
        from serving.routes.health import readiness

        state: State = self._built.state
        readiness(state)


def app(options: Options) -> Application:
    """The application for ``serve run``, ``serve deploy`` and :func:`run`."""
    settings = Settings(**{**options.settings, "models": options.models})
    paths = [name for name in ("deployment", "keys") if getattr(settings, name) is not None]
    paths += ["audit_log"] if settings.audit_log not in (None, "-") else []
    given = settings.model_dump(mode="json", exclude_defaults=True) | {
        # A replica has another working directory.
        **{name: str(Path(getattr(settings, name)).absolute()) for name in paths},
        "models": [str(Path(one).absolute()) if Path(one).exists() else one for one in settings.models],
        "workers": 1,
    }
    deployment = serve.deployment(
        name=NAME,
        ray_actor_options={"num_cpus": options.cpus},
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": options.target_ongoing_requests,
        },
        # The application itself refuses what is too much, in its own words, before Ray would let it wait.
        max_ongoing_requests=settings.max_in_flight + 100,
        max_queued_requests=settings.max_in_flight,
        health_check_period_s=10,
        health_check_timeout_s=settings.hang_seconds,
        graceful_shutdown_timeout_s=settings.shutdown_seconds,
        max_constructor_retry_count=3,
    )(serve.ingress()(Replica))
    bound: Application = deployment.bind(given)
    return bound


def run(settings: Settings, host: str, port: int) -> None:
    """Answer by Ray Serve until interrupted: on the cluster that ``RAY_ADDRESS`` names, else on this machine alone.

    Args:
        settings: of the server; ``workers`` is the largest number of replicas.
        host: to listen at.
        port: to listen at.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    given = settings.at(host).model_dump(
        mode="json", exclude_defaults=True, exclude={"models", "backend", "host", "port"}
    )
    options = Options(models=settings.models, max_replicas=settings.workers, settings=given)
    address = os.environ.get("RAY_ADDRESS")
    alone: dict[str, Any] = {} if address else {"include_dashboard": False, "object_store_memory": 80 << 20}
    ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=True, **alone)
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # Ray had put a handler of its own there
        signal.signal(number, lambda *_: over.set())
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(app(options), name=NAME)
        print(f"seqapp answers at {url_of(host, port)}/ by Ray Serve\nCtrl+C stops it.", flush=True)
        over.wait()
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()
