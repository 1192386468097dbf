"""The README says what is so."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import typer.main

from translator.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_configuration_table_is_up_to_date() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    assert generate["rendered"](README) == README, "run: make docs"


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z-]+)", README))
    assert named
    assert named <= targets


def test_every_command_that_is_named_exists() -> None:
    root = typer.main.get_command(app)
    for line in re.findall(r"^\$ comment-translate (.+)$", README, re.MULTILINE):
        command = root
        for word in line.split():
            if not hasattr(command, "commands"):
                break
            assert word in command.commands, line
            command = command.commands[word]


@pytest.mark.parametrize("document", [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md"], ids=lambda p: p.name)
def test_links_to_files_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_runtime_dependency_has_a_reason() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[(.*?)^\]", project, re.DOTALL | re.MULTILINE)
    assert block
    section = README.partition("## Dependencies")[2].partition("## Licence")[0]
    for name in re.findall(r'"([a-z0-9-]+)', block[1]):
        short = name.removeprefix("grpcio")
        assert name in section or (short and f"{short}," in section) or f"{short} " in section, name
