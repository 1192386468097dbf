"""Every error of the library has a status, exactly one ErrorInfo, and nothing in it that a client should not see."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from server import errors as wire
from server.interceptors import grpc_code
from translator.errors import (
    ConfigError,
    DeadlineExceeded,
    InferenceError,
    InvalidRequest,
    ModelError,
    Overloaded,
    TranslateError,
    Unavailable,
    UnfitOutput,
    UnsupportedLanguage,
)


def tree(root: type[TranslateError]) -> Iterator[type[TranslateError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


# One of each class; a class without an example fails the tests below.
EXAMPLES: dict[type[TranslateError], tuple[TranslateError, int]] = {
    InvalidRequest: (InvalidRequest("contents[3]", "is too long", "CONTENT_TOO_LONG"), code_pb2.INVALID_ARGUMENT),
    UnsupportedLanguage: (UnsupportedLanguage("fr", "target_language_code"), code_pb2.INVALID_ARGUMENT),
    Overloaded: (Overloaded("full", 2.5), code_pb2.RESOURCE_EXHAUSTED),
    DeadlineExceeded: (DeadlineExceeded("late"), code_pb2.DEADLINE_EXCEEDED),
    Unavailable: (Unavailable("draining"), code_pb2.UNAVAILABLE),
    ModelError: (ModelError("missing"), code_pb2.UNAVAILABLE),
    InferenceError: (InferenceError("failed"), code_pb2.INTERNAL),
    UnfitOutput: (UnfitOutput("repetition"), code_pb2.DATA_LOSS),
    ConfigError: (ConfigError("port: no"), code_pb2.INTERNAL),
    wire.Unauthenticated: (wire.Unauthenticated("no token"), code_pb2.UNAUTHENTICATED),
}
ALL = [kind for kind in tree(TranslateError) if kind.__module__ in ("translator.errors", "server.errors")][1:]


def details(status: status_pb2.Status, kind: type) -> list:  # type: ignore[type-arg]
    found = []
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            found.append(message)
    return found


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_has_a_code_of_its_own_or_its_parents(kind: type[TranslateError]) -> None:
    assert any(parent in wire.CODES for parent in kind.__mro__), f"{kind.__name__} would become INTERNAL unnoticed"
    error, code = EXAMPLES[kind]
    assert type(error) is kind
    assert wire.code_of(error) == code
    assert grpc_code(wire.status_of(error)) in grpc.StatusCode


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_status_has_exactly_one_error_info(kind: type[TranslateError]) -> None:
    error, code = EXAMPLES[kind]
    status = wire.status_of(error)
    (info,) = details(status, error_details_pb2.ErrorInfo)
    assert info.domain == "comment-translate"
    assert info.reason == error.reason
    assert info.reason == info.reason.upper()
    assert info.reason.replace("_", "").isalnum()
    assert len(details(status, error_details_pb2.BadRequest)) == (code == code_pb2.INVALID_ARGUMENT)
    retried = code in (code_pb2.RESOURCE_EXHAUSTED, code_pb2.UNAVAILABLE)
    assert len(details(status, error_details_pb2.RetryInfo)) == retried


def test_reasons_tell_the_classes_apart() -> None:
    reasons = [error.reason for error, _ in EXAMPLES.values()]
    assert len(set(reasons)) == len(reasons)


def test_bad_request_names_the_field_and_the_limit() -> None:
    status = wire.status_of(InvalidRequest("contents[3]", "has 6 code points; the limit is 5", "CONTENT_TOO_LONG"))
    (bad,) = details(status, error_details_pb2.BadRequest)
    (violation,) = bad.field_violations
    assert (violation.field, violation.description) == ("contents[3]", "has 6 code points; the limit is 5")
    assert "contents[3]" in status.message


def test_retry_info_carries_the_wait() -> None:
    (retry,) = details(wire.status_of(Overloaded("full", 2.5)), error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 2500


@pytest.mark.parametrize("seconds", [0.1, 1.2347, 29.9999])
def test_grpc_is_told_the_same_wait_as_the_client(seconds: float) -> None:
    error = Overloaded("full", seconds)
    (retry,) = details(wire.status_of(error), error_details_pb2.RetryInfo)
    assert wire.pushback_milliseconds(error) == retry.retry_delay.ToMilliseconds()


def test_a_bug_tells_nothing() -> None:
    status = wire.bug()
    assert status.code == code_pb2.INTERNAL
    assert [info.reason for info in details(status, error_details_pb2.ErrorInfo)] == ["INTERNAL"]


@pytest.mark.parametrize("code", ["x" * 100_000, "一" * 100_000, "\x00\n\r" * 1000])
def test_a_status_fits_into_http2_headers_whatever_it_quotes(code: str) -> None:
    for error in (UnsupportedLanguage(code), InvalidRequest("model", f"{code!r} is not loaded"), Unavailable(code)):
        status = wire.status_of(error)
        assert len(status.SerializeToString()) < 4000
        assert status.message.isprintable()


def test_the_tree_is_drawn_whole_in_the_docstring() -> None:
    import translator.errors

    for kind in tree(TranslateError):
        if kind.__module__ == "translator.errors":
            assert kind.__name__ in (translator.errors.__doc__ or "")
