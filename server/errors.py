"""How each error of the library looks on the wire.

Every failed call carries exactly one ErrorInfo; INVALID_ARGUMENT adds BadRequest, statuses worth a retry add RetryInfo
(https://google.aip.dev/193).
"""

from __future__ import annotations

from datetime import timedelta

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

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
)

DOMAIN = "comment-translate"

# A status travels in HTTP/2 headers, of which clients take 8 KiB in all; a message may quote what the caller sent.
MAX_MESSAGE = 300

# Subclasses take their parent's code.
CODES: dict[type[TranslateError], int] = {
    InvalidRequest: code_pb2.INVALID_ARGUMENT,
    Overloaded: code_pb2.RESOURCE_EXHAUSTED,
    DeadlineExceeded: code_pb2.DEADLINE_EXCEEDED,
    Unavailable: code_pb2.UNAVAILABLE,
    ModelError: code_pb2.UNAVAILABLE,
    InferenceError: code_pb2.INTERNAL,
    UnfitOutput: code_pb2.DATA_LOSS,
    ConfigError: code_pb2.INTERNAL,
}

# Seconds; a restarting server is back within this time.
UNAVAILABLE_RETRY_AFTER = 1.0


class Unauthenticated(TranslateError):
    """The call does not carry the configured token."""

    reason = "UNAUTHENTICATED"


CODES[Unauthenticated] = code_pb2.UNAUTHENTICATED


def code_of(error: TranslateError) -> int:
    """google.rpc.Code of an error."""
    for kind in type(error).__mro__:
        if kind in CODES:
            return CODES[kind]
    return int(code_pb2.INTERNAL)


def status_of(error: TranslateError) -> status_pb2.Status:
    """google.rpc.Status of an error, with its details."""
    code = code_of(error)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    details: list[Message] = [info]
    if isinstance(error, InvalidRequest):
        info.metadata["field"] = error.field
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=shorten(error.message))
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    elif isinstance(error, UnfitOutput):
        info.metadata["problem"] = error.problem
    elif isinstance(error, Overloaded):
        details.append(_retry_info(error.retry_after))
    elif code == code_pb2.UNAVAILABLE:
        details.append(_retry_info(UNAVAILABLE_RETRY_AFTER))
    return status_pb2.Status(code=code, message=shorten(str(error)), details=[_pack(detail) for detail in details])


def bug() -> status_pb2.Status:
    """What a client learns of a bug: nothing but that there is one. The log knows more."""
    info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN)
    return status_pb2.Status(
        code=code_pb2.INTERNAL,
        message="internal error; the server's log has the details",
        details=[_pack(info)],
    )


def shorten(message: str) -> str:
    """At most ``MAX_MESSAGE`` code points, and none that a header or a log line should not hold."""
    printable = "".join(c if c.isprintable() else "\ufffd" for c in message[: MAX_MESSAGE + 1])
    return printable if len(printable) <= MAX_MESSAGE else printable[: MAX_MESSAGE - 1] + "…"


def pushback_milliseconds(error: Overloaded) -> int:
    """The delay of the error's RetryInfo, as gRPC's own retries want it (grpc-retry-pushback-ms, gRFC A6)."""
    return _retry_info(error.retry_after).retry_delay.ToMilliseconds()


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromTimedelta(timedelta(seconds=seconds))
    return info


def _pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
