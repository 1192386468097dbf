"""Every error that the library raises on purpose.

::

    TranslateError
    ├── InvalidRequest            a field is missing, malformed or over its limit; names the field
    │   └── UnsupportedLanguage   a code or pair that no model serves
    ├── Overloaded                the queue is full: try again after ``retry_after`` seconds
    ├── DeadlineExceeded          the caller's deadline passed before the answer was there
    ├── Unavailable               loading, draining or stopped
    ├── ModelError                a model could not be found, fetched, checked or loaded
    ├── InferenceError            the engine failed on a batch (its detail is in the log)
    ├── UnfitOutput               the model's output was not fit to show, even after a second try
    └── ConfigError               a setting is wrong; names the setting

The server maps each class to one gRPC status (``server/errors.py``); a test proves that none is left out.
"""

from __future__ import annotations


class TranslateError(Exception):
    """Base class. ``reason`` is a stable UPPER_SNAKE word that clients may branch on."""

    reason = "TRANSLATE_ERROR"


class InvalidRequest(TranslateError):
    """A request that can never succeed as it is.

    Args:
        field: the field as the caller knows it, e.g. ``contents[3]``.
        message: what is wrong and what the limit is.
        reason: overrides the class's word.
    """

    reason = "INVALID_REQUEST"

    def __init__(self, field: str, message: str, reason: str | None = None) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message
        if reason:
            self.reason = reason


class UnsupportedLanguage(InvalidRequest):
    """A language code, or a pair of them, that this service does not translate."""

    reason = "UNSUPPORTED_LANGUAGE"

    def __init__(self, code: str, field: str = "language_code") -> None:
        shown = code if len(code) <= 40 else code[:39] + "…"
        super().__init__(field, f"language {shown!r} is not supported; use zh, zh-Hant or en")
        self.code = code


class Overloaded(TranslateError):
    """The bounded queue has no room.

    Args:
        retry_after: seconds after which a retry has a fair chance.
    """

    reason = "QUEUE_FULL"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(TranslateError):
    """The caller's deadline passed; the work was dropped."""

    reason = "DEADLINE_EXCEEDED"


class Unavailable(TranslateError):
    """Not serving now: models are loading, or the process is draining."""

    reason = "UNAVAILABLE"


class ModelError(TranslateError):
    """A model is missing, does not match its recorded hash, or cannot be loaded."""

    reason = "MODEL_ERROR"


class InferenceError(TranslateError):
    """The engine failed. The message is safe to show; the cause is chained and logged."""

    reason = "INFERENCE_FAILED"


class UnfitOutput(TranslateError):
    """The guard refused both outputs of the model; the source text is returned in their place.

    Args:
        problem: what the guard found, e.g. ``repetition``.
    """

    reason = "TRANSLATION_UNFIT"

    def __init__(self, problem: str) -> None:
        super().__init__(f"the model's output was not fit to show ({problem}); the source text is returned")
        self.problem = problem


class ConfigError(TranslateError):
    """A setting has a value that cannot be used."""

    reason = "CONFIG_ERROR"
