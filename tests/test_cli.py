"""The command: arguments, standard input, exit statuses."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from conftest import FakeModel, fake_models

from translator import __version__, cli
from translator.config import ENV_PREFIX, Settings
from translator.errors import ModelError
from translator.service import Translator


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], FakeModel]:
    """Fakes in place of what the settings name."""
    fakes = fake_models()
    original = Translator.__init__

    def with_fakes(self: Translator, settings: Settings, *_: object, **__: object) -> None:
        original(self, settings, dict(fakes))

    monkeypatch.setattr(Translator, "__init__", with_fakes)
    return fakes


def run(*arguments: str) -> int:
    """Exit status of the command."""
    try:
        cli.main(list(arguments))
    except SystemExit as end:
        return int(end.code or 0) if not isinstance(end.code, str) else 1
    return 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("version") == 0
    assert capsys.readouterr().out.strip() == __version__


def test_serve_help_lists_every_setting(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert run("serve", "--help") == 0
    shown = capsys.readouterr().out
    for name in Settings.model_fields:
        assert "--" + name.replace("_", "-") in shown, name
        assert ENV_PREFIX + name.upper() in shown, name


@pytest.mark.parametrize("command", [(), ("text",), ("models",), ("models", "list"), ("models", "pull")])
def test_every_command_has_help(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command, "--help") == 0
    assert "Usage" in capsys.readouterr().out


def test_text_from_arguments(models: dict[tuple[str, str], FakeModel], capsys: pytest.CaptureFixture[str]) -> None:
    models["fake", "zh-en"].answers["我喜欢你家的书"] = "I like your books."
    models["fake", "en-zh"].answers["I like your song"] = "我喜欢你的歌"
    assert run("text", "我喜欢你家的书", "I like your song") == 0
    assert capsys.readouterr().out.splitlines() == ["I like your books.", "我喜欢你的歌"]


def test_text_from_standard_input(
    models: dict[tuple[str, str], FakeModel], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    models["fake", "zh-en"].answers["我喜欢你家的书"] = "I like your books."
    data = "我喜欢你家的书\n\n😂\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
    assert run("text", "--to", "en") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "I like your books."
    assert lines[-1] == "😂"


def test_text_as_json(models: dict[tuple[str, str], FakeModel], capsys: pytest.CaptureFixture[str]) -> None:
    models["fake", "zh-en"].answers["我喜欢你家的书"] = "I like your books."
    assert run("text", "--json", "--to", "en", "我喜欢你家的书", "😂") == 0
    one, two = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert one["translated_text"] == "I like your books."
    assert one["detected_language_code"] == "zh-Hans"
    assert one["model"] == "fake/zh-en"
    assert one["error"] is None
    assert (two["translated_text"], two["skip_reason"]) == ("😂", "no_linguistic_content")


def test_a_comment_that_fails_is_told_apart_from_the_output(
    models: dict[tuple[str, str], FakeModel], capsys: pytest.CaptureFixture[str]
) -> None:
    models["fake", "zh-en"].failure = lambda texts: RuntimeError("secret") if "我喜欢你家的书" in texts else None
    assert run("text", "--to", "en", "我喜欢你家的书", "你想念我家的山") == 1
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 2
    assert "comment-translate:" in shown.err
    assert "Traceback" not in shown.err


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (("text", "--no-such-flag", "x"), 2, "no-such-flag"),
        (("no-such-command",), 2, "no-such-command"),
        (("serve", "--port", "many"), 2, "port"),
        (("serve", "--port", "99999"), 2, "port"),
        (("text", "--beam-size", "0", "x"), 2, "beam-size"),
        (("text", "--to", "fr", "我喜欢你家的书"), 1, "fr"),
        (("models", "pull", "nothing"), 2, "nothing"),
    ],
)
def test_exit_statuses(
    models: dict[tuple[str, str], FakeModel],
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    status: int,
    named: str,
) -> None:
    assert models
    assert run(*arguments) == status
    shown = capsys.readouterr()
    assert named in shown.err
    assert "Traceback" not in shown.err


def test_an_error_of_a_model_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: Translator) -> None:
        raise ModelError("the weights are damaged")

    monkeypatch.setattr(Translator, "start", broken)
    assert run("text", "我喜欢你家的书") == 1
    assert capsys.readouterr().err.strip() == "comment-translate: the weights are damaged"


def test_what_the_image_leaves_out_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in cli.LEFT_OUT_OF_IMAGE:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "translator.engines.marian_torch", raising=False)
    assert run("text", "--engine", "torch", "早上好") == 1
    shown = capsys.readouterr()
    assert "torch" in shown.err
    assert "Traceback" not in shown.err


def test_models_list(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run("models", "list") == 0
    shown = capsys.readouterr().out
    for name in ("embedded/zh-en", "embedded/en-zh", "opus-mt/zh-en", "Helsinki-NLP/opus-mt-en-zh"):
        assert name in shown


def test_settings_may_come_from_a_file(
    models: dict[tuple[str, str], FakeModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("beam_size = 3\n")
    assert run("text", "--config", str(file), "--to", "en", "我喜欢你家的书") == 0
    assert models["fake", "zh-en"].options[-1].beam_size == 3
    file.write_text("beam_sise = 3\n")
    assert run("text", "--config", str(file), "x") == 2
    assert "beam_sise" in capsys.readouterr().err
