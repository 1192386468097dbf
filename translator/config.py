"""All settings, each declared once.

A value comes from, strongest first: a command-line flag, an environment variable (``COMMENT_TRANSLATE_`` and the
name in capitals), a TOML file (``--config`` or ``COMMENT_TRANSLATE_CONFIG``), the default below. The flags of
``comment-translate serve`` and the table in the README are generated from this class.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import platformdirs
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from translator.errors import ConfigError

ENV_PREFIX = "COMMENT_TRANSLATE_"
# For a Service named comment-translate Kubernetes puts its address into every pod under names like ours.
_SERVICE_LINK = re.compile(r"SERVICE_HOST|SERVICE_PORT(_.*)?|PORT_\d+_.*")
_INT32 = 2**31 - 1

Engine = Literal["auto", "ct2", "torch"]
Device = Literal["auto", "cpu", "cuda"]


def _default_cache_dir() -> Path:
    return Path(platformdirs.user_cache_dir("comment-translate", appauthor=False))


class Settings(BaseSettings):
    """Frozen settings of the library and the server. Sizes are bytes, times are seconds.

    Made directly it knows arguments and defaults only; ``load_settings`` reads environment and file too.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Network
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all interfaces.")
    port: int = Field(50051, ge=0, le=65535, description="gRPC port; 0 takes a free one.")
    metrics_host: str = Field("127.0.0.1", description="Address of the metrics endpoint.")
    metrics_port: int = Field(
        9464, ge=-1, le=65535, description="HTTP port of /metrics; 0 takes a free one, -1 turns it off."
    )
    tls_certificate: Path | None = Field(None, description="PEM certificate chain; turns TLS on.")
    tls_private_key: Path | None = Field(None, description="PEM private key of the certificate.")
    tls_client_ca: Path | None = Field(
        None, description="PEM bundle; clients must then present a certificate signed by it."
    )
    auth_token: str = Field(
        "", description="When set, calls need the metadata 'authorization: Bearer TOKEN'.", repr=False
    )
    reflection: bool = Field(True, description="Serve gRPC reflection (grpcurl and ghz use it).")
    keepalive_seconds: float = Field(
        60, gt=0, le=86_400, description="Ping an idle connection after this time, so that dead peers are noticed."
    )
    drain_seconds: float = Field(
        30, ge=0, description="At SIGTERM or SIGINT, time that calls in flight have to finish."
    )
    default_deadline_seconds: float = Field(
        60, gt=0, description="Deadline of a TranslateText call that brings none of its own."
    )
    stream_in_flight: int = Field(
        512, ge=1, description="Comments of one stream in work at a time; then the server stops reading."
    )

    # Models
    model: str = Field(
        "embedded",
        description="Model family of models/manifest.toml, or a MarianMT folder or Hub id written PAIR=WHERE "
        "(comma-separated for several pairs).",
    )
    engine: Engine = Field("auto", description="auto: ct2 on CPU and CUDA; torch where asked for.")
    device: Device = Field("auto", description="auto: cuda when a usable GPU is there, else cpu.")
    compute_type: str = Field(
        "auto",
        description="Precision. ct2: int8, float32, float16, int8_float16 ...; torch: float32, bfloat16, float16.",
    )
    workers: int = Field(
        0,
        ge=0,
        le=64,
        description="Batches in the model at a time; 0: one per core with ct2 on CPU, else one.",
    )
    intra_threads: int = Field(0, ge=0, description="Threads of one batch; 0: the cores divided among the workers.")
    cache_dir: Path = Field(
        default_factory=_default_cache_dir, description="Folder for converted and downloaded models."
    )

    # Decoding
    beam_size: int = Field(2, ge=1, le=16, description="Beams of the search; 1 is greedy: fastest, reads worse.")
    length_penalty: float = Field(1.0, description="Above 1 favours longer translations (beam search only).")
    shortlist: bool = Field(
        True, description="Compute only likely output pieces, where the model brings a shortlist (ct2)."
    )
    guard: bool = Field(
        True, description="Check each output (loops, empty, wrong script ...) and try once more when unfit."
    )
    slang: bool = Field(True, description="Use the lexicon of internet slang.")

    # Batching
    max_batch_tokens: int = Field(2048, ge=16, description="Padded source tokens of one batch (longest x count).")
    max_queue_tokens: int = Field(
        65_536, ge=16, description="Source tokens that may wait; past it calls get RESOURCE_EXHAUSTED."
    )
    max_queue_seconds: float = Field(
        1.0,
        gt=0,
        description="Interactive calls that would wait longer get RESOURCE_EXHAUSTED at once; this bounds latency "
        "on any machine, where a number of tokens must be tuned.",
    )
    batch_lane_max_wait_seconds: float = Field(
        2.0, ge=0, description="After this wait sentences of the batch lane get their turn before interactive ones."
    )

    # Cache
    cache_bytes: int = Field(64 * 2**20, ge=0, description="Memory for cached sentences; 0 turns it off.")
    cache_ttl_seconds: float = Field(0, ge=0, description="Age at which a cached sentence expires; 0: never.")
    cache_file: Path | None = Field(
        None,
        description="File that keeps the cached sentences over a restart of the server; one for each replica.",
    )

    # Limits
    max_contents: int = Field(1024, ge=1, le=_INT32, description="Comments in one request.")
    max_request_codepoints: int = Field(30_720, ge=1, le=_INT32, description="Code points in one request.")
    max_content_codepoints: int = Field(5_000, ge=1, le=_INT32, description="Code points in one comment.")
    max_glossary_terms: int = Field(100, ge=0, le=_INT32, description="Glossary terms in one request.")
    max_message_bytes: int = Field(4 * 2**20, ge=1024, le=_INT32, description="Bytes in one gRPC message.")

    # Log
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: console on a terminal, JSON lines elsewhere."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def load_settings(flags: Mapping[str, Any] | None = None, config: Path | None = None) -> Settings:
    """Merge flags, environment and TOML file into one ``Settings``.

    Args:
        flags: values from the command line; ``None`` values count as not given.
        config: TOML file; by default the one named by ``COMMENT_TRANSLATE_CONFIG``, if any.

    Raises:
        ConfigError: a value or a name is wrong; the message names the setting and where it was set.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    if config is None and (named := os.environ.get(ENV_PREFIX + "CONFIG")):
        config = Path(named)
    from_file: dict[str, Any] = {}
    if config is not None:
        try:
            from_file = tomllib.loads(config.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"cannot read the configuration file {config}: {error}") from error
    from_environment = _environment()
    merged = from_file | from_environment | given
    try:
        return Settings(**merged)
    except ValidationError as error:
        problems = []
        for detail in error.errors(include_url=False):
            name = ".".join(str(part) for part in detail["loc"])
            if name in given:
                origin = "--" + name.replace("_", "-")
            elif name in from_environment:
                origin = ENV_PREFIX + name.upper()
            else:
                origin = f"{name} in {config}"
            text = "no such setting" if detail["type"] == "extra_forbidden" else detail["msg"]
            got = "" if name == "auth_token" else f" (got {detail['input']!r})"
            problems.append(f"{origin}: {text}{got}")
        raise ConfigError("; ".join(problems)) from None


def _environment() -> dict[str, str]:
    """Settings given by environment variables, misspelt ones included so that they are refused."""
    found = {}
    for variable, value in os.environ.items():
        name = variable.removeprefix(ENV_PREFIX)
        if name == variable or name == "CONFIG" or _SERVICE_LINK.fullmatch(name):
            continue
        if name == "PORT" and value.startswith(("tcp://", "udp://")):
            continue
        found[name.lower()] = value
    return found
