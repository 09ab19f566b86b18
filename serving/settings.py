"""What a server is started with: the environment (``SEQAPP_PORT=9000``), overruled by the command line."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    """Everything a person may choose about a server."""

    model_config = SettingsConfigDict(env_prefix="SEQAPP_", env_ignore_empty=True)

    host: str = Field(default="127.0.0.1", description="address to listen at")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen at; 0 takes a free one")
    models: Annotated[list[str], NoDecode] = Field(
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
    threads: int | None = Field(
        default=None, ge=1, description="threads of one forward pass; none shares the cores out evenly"
    )
    docs_url: str | None = Field(default="/docs", description="path of the interactive documentation")
    access_log: bool = Field(default=True, description="log one line per request")
    stall_seconds: float = Field(
        default=60, gt=0, description="how long the reader of a stream may take nothing before it is cut off"
    )
    shutdown_seconds: int = Field(
        default=10, ge=0, description="how long running requests may finish after a stop signal"
    )

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return value.replace(",", " ").split() if isinstance(value, str) else value
