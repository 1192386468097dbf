"""Write the README's configuration table from ``Settings``. ``make docs`` runs it; a test checks that it was run."""

import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from translator.config import Settings

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- configuration: begin -->", "<!-- configuration: end -->"


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return " ".join(_type_name(part) for part in get_args(annotation) if part is not NoneType)
    return str(annotation.__name__).lower()


def configuration_table() -> str:
    """Markdown table of all settings, in their order."""
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.get_default()
        if name == "cache_dir":
            shown = "the user's cache folder"
        elif isinstance(default, bool):
            shown = f"`{str(default).lower()}`"
        else:
            shown = "" if default in (None, "") else f"`{default}`"
        rows.append(f"| `{name}` | {_type_name(field.annotation)} | {shown} | {field.description} |")
    return "\n".join(rows)


def rendered(readme: str) -> str:
    """The README with its generated parts made anew."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{configuration_table()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(rendered(README.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)
