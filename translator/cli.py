"""The ``comment-translate`` command: commands only, the work is done elsewhere."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from translator import __version__
from translator.cli_file import translate_file, translate_ray
from translator.config import ENV_PREFIX, Settings, load_settings
from translator.errors import ConfigError, TranslateError

app = typer.Typer(
    name="comment-translate",
    help="Translate social-media comments between Chinese and English.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(no_args_is_help=True, help="List, fetch, convert and fine-tune models.")
app.add_typer(models_app, name="models")

# `text`, `file` and the like translate in process; of the settings they take those that bear on it.
TRANSLATION_SETTINGS = (
    "model",
    "engine",
    "device",
    "compute_type",
    "workers",
    "intra_threads",
    "beam_size",
    "slang",
    "shortlist",
    "cache_dir",
)
FILE_SETTINGS = (*TRANSLATION_SETTINGS, "cache_bytes", "max_batch_tokens")
# deploy/Dockerfile leaves these out; serving converted models needs neither.
LEFT_OUT_OF_IMAGE = ("torch", "transformers")


def settings_options(
    names: Sequence[str] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: give a command one flag per setting, and call it with ``settings`` in their place.

    Args:
        names: the settings; by default all.
    """
    chosen = names or tuple(Settings.model_fields)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = [
            parameter
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.name != "settings"
        ]
        for name in chosen:
            field = Settings.model_fields[name]
            default = field.get_default(call_default_factory=True)
            shown = f"[default: {default}] " if default not in (None, "") else ""
            flag = "--" + name.replace("_", "-")
            declarations = [f"{flag}/--no-{flag[2:]}"] if field.annotation is bool else [flag]
            option = typer.Option(
                *declarations,
                help=f"{field.description} {shown}".strip() + f" [env: {ENV_PREFIX}{name.upper()}]",
                show_default=False,
                rich_help_panel="Settings",
            )
            kind = _optional(field.annotation)
            parameters.append(
                inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
                )
            )
        config_option = typer.Option(
            "--config",
            help=f"TOML file with settings, one a line. [env: {ENV_PREFIX}CONFIG]",
            show_default=False,
        )
        parameters.append(
            inspect.Parameter(
                "config",
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[Path | None, config_option],
            )
        )

        def wrapper(**arguments: Any) -> None:
            flags = {name: arguments.pop(name) for name in chosen}
            settings = load_settings(flags, arguments.pop("config"))
            command(**arguments, settings=settings)

        wrapper.__name__ = command.__name__
        wrapper.__doc__ = command.__doc__
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapper

    return decorate


def _optional(annotation: Any) -> Any:
    """``T`` as ``T | None``: a flag that is not given must not hide the environment or the file."""
    if get_origin(annotation) in (Union, UnionType) and NoneType in get_args(annotation):
        return annotation
    return annotation | None if get_origin(annotation) is not Literal else Union[annotation, None]  # noqa: UP007


@app.command()
@settings_options()
def serve(*, settings: Settings) -> None:
    """Start the gRPC server.

    Examples:

        comment-translate serve --host 0.0.0.0 --port 50051

        comment-translate serve --model opus-mt --device cuda

        COMMENT_TRANSLATE_CACHE_BYTES=1000000000 comment-translate serve
    """
    from server.serve import run

    raise typer.Exit(run(settings))


@app.command()
@settings_options(("host", "port", "tls_certificate", "tls_private_key"))
def health(
    *,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an answer.")] = 3.0,
    settings: Settings,
) -> None:
    """Ask the server on this machine whether it is serving: exit status 0 or 1, for a container's probe.

    Example:

        comment-translate health --port 50051
    """
    from server.health import status

    answer = status(settings, timeout)
    print(answer)
    raise typer.Exit(answer != "SERVING")


@app.command(name="text")
@settings_options(TRANSLATION_SETTINGS)
def translate_text(
    texts: Annotated[list[str] | None, typer.Argument(help="Comments; without any, one a line from stdin.")] = None,
    *,
    to: Annotated[
        str, typer.Option("--to", "-t", help="Target language: zh, zh-Hant or en. Default: the other one.")
    ] = "",
    source: Annotated[str, typer.Option("--from", "-f", help="Source language; by default detected.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with language and status.")] = False,
    settings: Settings,
) -> None:
    """Translate comments given as arguments or on standard input.

    Examples:

        comment-translate text "这家店的奶茶绝了"

        echo "see you tomorrow" | comment-translate text --to zh-Hant
    """
    lines = texts or [line.rstrip("\n") for line in sys.stdin]
    failed = asyncio.run(_translate_lines(lines, to, source, as_json, settings))
    raise typer.Exit(1 if failed else 0)


async def _translate_lines(lines: list[str], to: str, source: str, as_json: bool, settings: Settings) -> int:
    from translator import language
    from translator.service import Translator

    translator = Translator(settings)
    await translator.start()
    failed = 0
    try:
        for line in lines:
            target = to or ("en" if language.detect(line).language.startswith("zh") else "zh")
            translation = (await translator.translate([line], target=target, source=source)).translations[0]
            if translation.error:
                failed += 1
                print(f"comment-translate: {translation.error}", file=sys.stderr)
            if as_json:
                answer = {
                    "translated_text": translation.text,
                    "detected_language_code": translation.detected_language,
                    "confidence": translation.confidence,
                    "model": translation.model,
                    "skip_reason": translation.skip,
                    "error": str(translation.error) if translation.error else None,
                }
                print(json.dumps(answer, ensure_ascii=False), flush=True)
            else:
                print(translation.text, flush=True)
    finally:
        await translator.close()
    return failed


app.command("file")(settings_options(FILE_SETTINGS)(translate_file))
app.command("ray")(settings_options(FILE_SETTINGS)(translate_ray))


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


@models_app.command("list")
def models_list() -> None:
    """List the known models, and which of them are on this machine."""
    from rich.console import Console
    from rich.table import Table

    from translator import registry

    table = Table("model", "where", "licence", "on this machine", box=None)
    for family, pairs in registry.read_manifest().items():
        for pair, source in pairs.items():
            found = registry.on_disk(source)
            table.add_row(
                f"{family}/{pair}",
                source.hub or "in this installation",
                source.license,
                "yes" if found else "no",
            )
    Console().print(table)


@models_app.command("pull")
def models_pull(
    model: Annotated[str, typer.Argument(help="Family such as opus-mt, or PAIR=HUB_ID[@REVISION].")],
    cache_dir: Annotated[Path | None, typer.Option(help="Folder for converted and downloaded models.")] = None,
) -> None:
    """Fetch a model from the Hugging Face Hub, with a progress bar.

    Examples:

        comment-translate models pull opus-mt

        comment-translate models pull zh-en=Helsinki-NLP/opus-mt-zh-en
    """
    from translator import registry

    settings = load_settings({"cache_dir": cache_dir})
    for source in registry.sources(model):
        path = registry.pull(source, settings.cache_dir)
        print(f"{source.name}/{source.pair}: {path}")


@models_app.command("convert")
@settings_options(("model", "compute_type", "device", "cache_dir"))
def models_convert(*, settings: Settings) -> None:
    """Convert models for CTranslate2 now, instead of at the first start.

    Example:

        comment-translate models convert --model opus-mt --compute-type int8
    """
    from translator import registry
    from translator.engines.marian_ct2 import choose_compute_type, convert, stored_type

    for source in registry.sources(settings.model):
        folder = registry.locate(source, settings.cache_dir)
        device = "cuda" if settings.device == "cuda" else "cpu"
        print(f"{source.name}/{source.pair}: converting {folder.path} ...", flush=True)
        kind = stored_type(choose_compute_type(settings.compute_type, device))
        print(f"{source.name}/{source.pair}: {convert(folder, kind, settings.cache_dir)}")


@models_app.command("hash")
def models_hash(
    family: Annotated[str, typer.Argument(help="Family whose weights lie in models/.")] = "embedded",
) -> None:
    """Record the hashes of a family's files in models/manifest.toml, after its weights were replaced."""
    from translator import registry

    print(registry.write_hashes(family))


@models_app.command("finetune", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def models_finetune(
    context: typer.Context,
    pairs: Annotated[Path, typer.Argument(help="TSV file: Chinese, tab, English; one pair a line.")],
    pair: Annotated[str, typer.Option(help="Direction: zh-en or en-zh.")],
    out: Annotated[Path, typer.Option(help="Folder for the adapted model.")],
    base: Annotated[str, typer.Option(help="Family to start from, or a MarianMT folder.")] = "embedded",
) -> None:
    """Adapt a model to your own comments. Further options go to models/train.py finetune.

    Example:

        comment-translate models finetune pairs.tsv --pair zh-en --out my-zh-en

        comment-translate serve --model zh-en=my-zh-en,en-zh=my-en-zh
    """
    from translator import registry

    if not pairs.is_file():
        raise ConfigError(f"pairs: {pairs} does not exist")
    if Path(base).is_dir():
        folder = Path(base)
    else:
        manifest = registry.read_manifest()
        if base not in manifest or pair not in manifest[base]:
            raise ConfigError(f"base: {base!r} is neither a folder nor a family with the pair {pair!r}")
        folder = registry.locate(manifest[base][pair], load_settings().cache_dir).path
    if not find_spec("torch"):
        raise ModuleNotFoundError(name="torch")
    script = registry.models_dir() / "train.py"
    command = [
        sys.executable,
        str(script),
        "finetune",
        "--base",
        str(folder),
        "--pair",
        pair,
        "--out",
        str(out),
    ]
    raise typer.Exit(subprocess.call([*command, str(pairs), *context.args]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Errors of the library become one line and exit status 1; usage errors exit 2."""
    # Until the server configures its own log: warnings of all, and what the library itself has to say.
    logging.basicConfig(level="WARNING", format="comment-translate: %(message)s")
    logging.getLogger("translator").setLevel("INFO")
    try:
        app(args=list(arguments) if arguments is not None else None)
    except ConfigError as error:
        print(f"comment-translate: {error}", file=sys.stderr)
        sys.exit(2)
    except TranslateError as error:
        print(f"comment-translate: {error}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name not in LEFT_OUT_OF_IMAGE:
            raise
        print(f"comment-translate: this needs {error.name}, which is not installed here", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
