"""What a server is started with: the environment (``SEQAPP_PORT=9000``), overruled by the command line."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "SEQAPP_"
"""Begins the name of every variable."""
PROGRAM = "SEQAPP_PROGRAM"
"""What the person at the terminal has typed, if another program has started the server."""
OTHERS = ("SEQAPP_ADDRESS", "SEQAPP_CACHE", "SEQAPP_DATA_MIRROR", "SEQAPP_LAUNCHED", PROGRAM, "SEQAPP_TRACKING_WAIT")
"""Variables of other parts of the project and of its container, which are no settings of a server."""

_HOST = re.compile(r"\*|(\*\.)?\w[\w.-]*|\[[0-9a-f:.]+(%[\w.-]+)?\]", re.ASCII | re.IGNORECASE)
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://([a-z0-9_][a-z0-9_.-]*|\[[0-9a-f:.]+\])(:[0-9]+)?")

Words = Annotated[list[str], NoDecode]
"""Words, separated by white space or commas."""


class Settings(BaseSettings):
    """Everything a person may choose about a server."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True)

    host: str = Field(default="127.0.0.1", description="address to listen at")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen at; 0 takes a free one")
    models: Words = Field(
        default=[], description="MODEL references, separated by white space or commas; none stands for every champion"
    )
    insecure_public: bool = Field(default=False, description="listen beyond this machine although anyone may then call")
    max_items: int = Field(default=128, ge=1, description="most inputs in one request")
    max_characters: int = Field(default=200_000, ge=1, description="longest input")
    max_completions: int = Field(default=64, ge=1, description="most completions in one request, n of each prompt")
    max_tokens: int = Field(default=4096, ge=1, description="longest completion, in tokens")
    max_beam_tokens: int = Field(
        default=32_768, ge=1, description="most work of one request's beam search: prompts x beam_size x max_tokens"
    )
    max_logprobs: int = Field(
        default=500_000, ge=1, description="most log-probabilities in one answer, rivals and echoed prompts counted"
    )
    max_beam_characters: int = Field(
        default=400_000,
        ge=1,
        description="most work of one translation: (characters + 10 x sentence ends of all texts) x beam_size",
    )
    max_attention_characters: int = Field(
        default=10_000, ge=1, description="most characters translated in one request that asks for the attention"
    )
    max_bytes: int = Field(default=8 * 1024 * 1024, ge=1, description="largest request body")
    max_values: int = Field(
        default=100_000,
        ge=100,
        description="most texts, commas and opening brackets in a body of JSON, or cells of CSV",
    )
    threads: int | None = Field(
        default=None, ge=1, description="threads of one forward pass; none shares the cores out evenly"
    )
    docs_url: str | None = Field(
        default="/docs",
        pattern="^(/[A-Za-z0-9._~-]+)+$",
        description="path of the interactive documentation, such as /help/api, or none",
    )

    deployment: Path | None = Field(
        default=None, description="YAML file of names to serve, each with its versions, their weights and a shadow"
    )
    poll_seconds: float = Field(
        default=30, ge=0, description="seconds between looks for a new version of an alias or directory; 0 never looks"
    )
    swap_seconds: float = Field(
        default=300, gt=0, description="how long a version that was replaced may finish what it was asked"
    )
    reload_seconds: float = Field(default=120, gt=0, description="how long a reload waits for the other workers")

    keys: Path | None = Field(
        default=None, description="file of the keys that may call, made by `python -m serving key new NAME`"
    )
    metrics_access: Literal["open", "user", "admin"] = Field(
        default="user", description="who may read /metrics where keys are asked for"
    )
    trusted_hosts: Words = Field(
        default=[], description="Host names that requests may ask for, such as api.example.org or *.example.org"
    )
    trusted_proxies: Words = Field(
        default=[], description="addresses or networks of proxies whose X-Forwarded-For is believed; * believes anybody"
    )
    cors_origins: Words = Field(
        default=[], description="origins whose pages may call, such as https://example.org; * allows all"
    )
    hsts_seconds: int = Field(
        default=0, ge=0, description="how long a browser shall come back by https only; for a server behind https"
    )

    rate: float | None = Field(default=None, gt=0, description="requests a second of one client, lasting")
    rate_burst: int | None = Field(
        default=None, ge=1, description="requests of one client at once; none takes those of one second"
    )
    rate_inputs: float | None = Field(default=None, gt=0, description="inputs a second of one client, lasting")
    rate_inputs_burst: int | None = Field(
        default=None, ge=1, description="inputs of one client at once; none takes those of ten seconds"
    )
    max_in_flight: int = Field(
        default=1000, ge=1, description="most POST requests of one process at once, streams counted; beyond it is 503"
    )
    max_waiting: int = Field(default=1024, ge=1, description="most inputs that wait for one model; beyond it is 503")
    max_waiting_tokens: int = Field(
        default=2_000_000, ge=1, description="most work that waits for one model, in tokens, about; beyond it is 503"
    )
    max_wait_seconds: float = Field(
        default=5, gt=0, description="longest wait for one model, as estimated; beyond it is 503"
    )
    deadline_seconds: float = Field(
        default=300, gt=0, description="longest time for an answer; a client may ask for less by X-Request-Timeout"
    )
    max_connections: int = Field(default=1000, ge=1, description="most connections of one process at once")
    max_client_connections: int | None = Field(
        default=None,
        ge=1,
        description="most of them from one address that is no trusted proxy's; none takes a quarter of max_connections",
    )
    max_url: int = Field(default=8 * 1024, ge=64, description="longest path with its query, in bytes")
    max_header_bytes: int = Field(default=64 * 1024, ge=256, description="largest head of a request")
    max_headers: int = Field(default=100, ge=8, description="most headers of a request")
    header_seconds: float = Field(default=10, gt=0, description="how long a client may take to send its headers")
    body_seconds: float = Field(
        default=20, gt=0, description="how long a client may take to send a body, besides the time of client_rate"
    )
    client_rate: int = Field(
        default=1024, ge=1, description="bytes a second that a client must send of a body, or take of an answer"
    )
    idle_seconds: float = Field(default=15, gt=0, description="how long a connection stays open between requests")
    stall_seconds: float = Field(
        default=60, gt=0, description="how long the reader of an answer may take nothing before it is cut off"
    )

    access_log: bool = Field(default=True, description="tell one line per request, for people, on stderr")
    audit_log: str | None = Field(
        default=None, description="file that has one JSON line for each request; - stands for stderr"
    )
    log_text: bool = Field(default=False, description="tell also the texts of users in the audit log")
    shutdown_seconds: int = Field(
        default=10, ge=0, description="how long running requests may finish after a stop signal"
    )
    drain_delay_seconds: float = Field(
        default=0, ge=0, description="how long the port stays open after a stop signal, while /readyz says no"
    )
    workers: int = Field(
        default=1, ge=1, le=256, description="processes that answer side by side, each with all models"
    )
    hang_seconds: float = Field(
        default=30, gt=0, description="a worker whose event loop stands still for so long is replaced"
    )
    start_seconds: float = Field(
        default=600, gt=0, description="a worker that does not answer so long after its start is killed"
    )
    state: Path | None = Field(default=None, description="folder that workers share; the server makes and removes it")
    backend: Literal["uvicorn", "ray"] = Field(
        default="uvicorn", description="what runs the workers: this machine's processes, or Ray Serve's replicas"
    )
    traces: str | None = Field(
        default=None, description="where OpenTelemetry spans go: an OTLP endpoint such as http://host:4318, or console"
    )

    def at(self, address: str) -> Settings:
        """These, as they fit a server that listens at ``address``.

        Without keys whoever reaches it may call. On this machine alone that may also be a page of the web whose name
        was made to mean this machine (DNS rebinding), so requests must ask for this machine by a name of its own.
        """
        if self.keys or self.trusted_hosts or not ip_address(address.partition("%")[0]).is_loopback:
            return self
        own = [f"[{name}]" if ":" in name else name for name in {self.host, address, "127.0.0.1", "::1"}]
        return self.model_copy(update={"trusted_hosts": [*own, "localhost", "*.localhost"]})

    @field_validator("docs_url", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return None if value == "none" else value

    @field_validator("models", "trusted_hosts", "trusted_proxies", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return value.replace(",", " ").split() if isinstance(value, str) else value

    @field_validator("trusted_hosts")
    @classmethod
    def _hosts(cls, value: list[str]) -> list[str]:
        return _fitting(value, _HOST, "no name of a host; one without scheme and port fits, such as api.example.org, "
                        "*.example.org or [::1]")  # fmt: skip

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: list[str]) -> list[str]:
        return _fitting(value, _ORIGIN, "no origin as browsers tell it; scheme and host in small letters fit, without "
                        "a slash at the end, such as https://example.org or http://localhost:3000")  # fmt: skip

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies(cls, value: list[str]) -> list[str]:
        for word in [] if value == ["*"] else value:
            try:
                ip_network(word)
            except ValueError as error:
                raise ValueError(f"{error}; addresses and networks fit, such as 10.0.0.7 or 10.1.0.0/16, or a "
                                 "single *") from None  # fmt: skip
        return value


def _fitting(words: list[str], pattern: re.Pattern[str], otherwise: str) -> list[str]:
    for word in words:
        if not pattern.fullmatch(word):
            raise ValueError(f"{word!r} is {otherwise}")
    return words
