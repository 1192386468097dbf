"""What is installed away from the checkout: the wheel holds all that the code reads, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parent.parent
MODELS = "translator/_models"


@pytest.fixture(scope="module")
def contents() -> dict[str, Path]:
    """Path in the wheel -> file, as hatchling would pack them; nothing is packed."""
    return {file.distribution_path: Path(file.path) for file in WheelBuilder(str(ROOT)).recurse_included_files()}


def files_in(folder: str, pattern: str = "**/*") -> set[str]:
    root = ROOT / folder
    found = (path for path in root.glob(pattern) if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root).as_posix() for path in found}


def test_it_holds_the_code_and_what_the_models_need(contents: dict[str, Path]) -> None:
    expected = {f"{package}/{name}" for package in ("translator", "server") for name in files_in(package)}
    # The card holds the weights' attributions, which go where the weights go.
    models = files_in("models", "*.py") | files_in("models", "embedded/**/*") | {"manifest.toml", "MODEL_CARD.md"}
    expected |= {f"{MODELS}/{name}" for name in models}
    assert {f"{MODELS}/train.py", f"{MODELS}/embedded/zh-en/model.safetensors", "translator/data/slang.tsv"} <= expected
    assert set(contents) == expected


def test_it_runs_away_from_the_checkout(contents: dict[str, Path], tmp_path: Path) -> None:
    for name, file in contents.items():
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # Code is copied: a module that looks around itself must not find the checkout.
        if file.suffix in (".safetensors", ".spm"):
            target.symlink_to(file)
        else:
            target.write_bytes(file.read_bytes())
    program = """
import server.serve
from pathlib import Path
from translator import language, registry
for source in registry.sources("embedded"):
    folder = registry.locate(source, Path("cache")).path
    print(folder.relative_to(Path.cwd()).as_posix())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [f"{MODELS}/embedded/zh-en", f"{MODELS}/embedded/en-zh"], done.stderr
