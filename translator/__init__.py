"""Translation of social-media comments between Chinese and English; the library behind the gRPC service.

>>> import asyncio
>>> from translator import Settings, Translator
>>> async def main() -> str:
...     translator = Translator(Settings())
...     await translator.start()
...     result = await translator.translate(["今天天气真好"], target="en")
...     await translator.close()
...     return result.translations[0].text
>>> asyncio.run(main())  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Settings", "Translation", "Translator", "__version__"]

if TYPE_CHECKING:
    from translator.config import Settings
    from translator.service import Translation, Translator


def __getattr__(name: str) -> Any:
    """Load the public names when they are used: the generated stubs live in this package too and need none."""
    if name == "Settings":
        from translator.config import Settings

        return Settings
    if name in ("Translator", "Translation"):
        from translator import service

        return getattr(service, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
