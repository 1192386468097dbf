"""Settings: where a value comes from, and what is said of one that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from translator.config import ENV_PREFIX, Settings, load_settings
from translator.errors import ConfigError


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


def test_flag_over_environment_over_file_over_default(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().port == 50051
    toml.write_text("port = 1001\nhost = '0.0.0.1'\nbeam_size = 3\n")
    assert load_settings(config=toml).port == 1001
    monkeypatch.setenv(ENV_PREFIX + "PORT", "1002")
    monkeypatch.setenv(ENV_PREFIX + "HOST", "0.0.0.2")
    assert load_settings(config=toml).port == 1002
    settings = load_settings({"port": 1003, "host": None}, toml)
    assert (settings.port, settings.host, settings.beam_size) == (1003, "0.0.0.2", 3)


def test_the_file_may_be_named_by_the_environment(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml.write_text("port = 1001\n")
    monkeypatch.setenv(ENV_PREFIX + "CONFIG", str(toml))
    assert load_settings().port == 1001
    other = toml.with_name("other.toml")
    other.write_text("port = 1002\n")
    assert load_settings(config=other).port == 1002


@pytest.mark.parametrize(("written", "meant"), [("false", False), ("0", False), ("no", False), ("off", False),
                                                ("true", True), ("1", True), ("yes", True)])  # fmt: skip
def test_booleans_are_read_and_not_cast(written: str, meant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_PREFIX + "GUARD", written)
    monkeypatch.setenv(ENV_PREFIX + "REFLECTION", written)
    settings = load_settings()
    assert (settings.guard, settings.reflection) == (meant, meant)


def test_every_setting_can_be_given_in_each_way(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, field in Settings.model_fields.items():
        value = field.get_default(call_default_factory=True)
        if value is None:
            value = "/some/file"
        written = str(value).lower() if isinstance(value, bool) else str(value)
        toml.write_text(f"{name} = {written}\n" if isinstance(value, bool | int | float) else f"{name} = '{written}'\n")
        expected = getattr(load_settings({name: value}), name)
        assert getattr(load_settings(config=toml), name) == expected
        with monkeypatch.context() as patch:
            patch.setenv(ENV_PREFIX + name.upper(), written)
            assert getattr(load_settings(), name) == expected


@pytest.mark.parametrize("value", ["many", "70000", "-1", "1.5", ""])
def test_a_bad_value_is_named_with_its_origin(value: str, toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--port"):
        load_settings({"port": value})
    toml.write_text(f"port = '{value}'\n")
    with pytest.raises(ConfigError, match=r"port in .*settings\.toml"):
        load_settings(config=toml)
    monkeypatch.setenv(ENV_PREFIX + "PORT", value)
    with pytest.raises(ConfigError, match="COMMENT_TRANSLATE_PORT"):
        load_settings(config=toml)


def test_all_bad_values_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        load_settings({"port": "x", "engine": "gpu", "beam_size": 0})
    for name in ("--port", "--engine", "--beam-size"):
        assert name in str(refused.value)


def test_unknown_names_are_refused(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml.write_text("prot = 1\n")
    with pytest.raises(ConfigError, match=r"prot in .*no such setting"):
        load_settings(config=toml)
    toml.write_text("[server]\nport = 1\n")
    with pytest.raises(ConfigError, match="server in"):
        load_settings(config=toml)
    monkeypatch.setenv(ENV_PREFIX + "PROT", "1")
    with pytest.raises(ConfigError, match=r"COMMENT_TRANSLATE_PROT.*no such setting"):
        load_settings()


def test_what_kubernetes_puts_into_the_environment_is_not_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a Service called comment-translate, Kubernetes sets these in every pod of the namespace."""
    for name, value in {
        "PORT": "tcp://10.0.0.1:50051",
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "50051",
        "SERVICE_PORT_GRPC": "50051",
        "PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "PORT_50051_TCP_ADDR": "10.0.0.1",
    }.items():
        monkeypatch.setenv(ENV_PREFIX + name, value)
    assert load_settings().port == 50051


@pytest.mark.parametrize("content", [b"port = ", b"\xff\xfe", b"port: 1"])
def test_a_file_that_cannot_be_read_is_named(content: bytes, toml: Path) -> None:
    toml.write_bytes(content)
    with pytest.raises(ConfigError, match=r"settings\.toml"):
        load_settings(config=toml)
    with pytest.raises(ConfigError, match="nowhere"):
        load_settings(config=toml.with_name("nowhere.toml"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keepalive_seconds", float("inf")),
        ("drain_seconds", float("nan")),
        ("cache_ttl_seconds", float("nan")),
        ("length_penalty", float("nan")),
        ("default_deadline_seconds", 0),
        ("max_contents", 2**31),
        ("max_message_bytes", 2**31),
        ("keepalive_seconds", 10**9),
        ("workers", 65),
        ("max_queue_tokens", 1),
        ("stream_in_flight", 0),
    ],
)
def test_values_that_would_break_something_later_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name.replace("_", "-")):
        load_settings({name: value})


def test_settings_are_frozen_and_keep_the_token_to_themselves() -> None:
    settings = load_settings({"auth_token": "hunter2"})
    assert "hunter2" not in repr(settings)
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]


def test_a_token_of_the_wrong_type_is_not_shown(toml: Path) -> None:
    toml.write_text("auth_token = 123456789\n")
    with pytest.raises(ConfigError, match="auth_token") as refused:
        load_settings(config=toml)
    assert "123456789" not in str(refused.value)
