"""What surrounds every call: request id, authorisation, error mapping, metrics, log. No comment text is logged."""

from __future__ import annotations

import asyncio
import hmac
import inspect
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from time import perf_counter
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from server import errors
from server.metrics import Metrics
from translator.errors import InvalidRequest, Overloaded, TranslateError, Unavailable

log = structlog.get_logger("server")

REQUEST_ID = "x-request-id"
_VALID_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
# Probes and tools come without a token; they learn nothing of anybody's comments.
_OPEN_SERVICES = ("/grpc.health.v1.Health/",)

# The stubs type each kind of handler apart; here all four are treated alike.
_Handler = Any


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps each method once; thereafter a call costs a dictionary look-up more.

    Args:
        auth_token: when not empty, calls need ``authorization: Bearer TOKEN``.
    """

    def __init__(self, metrics: Metrics, auth_token: str = "") -> None:
        self._metrics = metrics
        self._expected = f"Bearer {auth_token}".encode() if auth_token else b""
        self._wrapped: dict[str, _Handler] = {}
        self._refusing = False
        self.accepted = 0
        """Calls since the start, for whoever waits until no more come."""

    def refuse(self) -> None:
        """Answer new calls with UNAVAILABLE from now on; health checks stay welcome."""
        self._refusing = True

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None  # grpc answers UNIMPLEMENTED; not remembered, since clients choose the name
            wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: _Handler) -> _Handler:
        name = method.rpartition("/")[2]
        is_open = method.startswith(_OPEN_SERVICES)
        parse = _parser(handler.request_deserializer)
        receive = _parse_each(parse) if handler.request_streaming else parse
        if handler.response_streaming:
            inner = handler.stream_stream if handler.request_streaming else handler.unary_stream

            async def generate(request: Any, context: Any) -> AsyncIterator[Any]:
                call = _Call(self._metrics, name, context)
                try:
                    await self._begin(context, is_open)
                    # Closed here and not some time later: the client may go away while a response is written.
                    async with aclosing(inner(receive(request), context)) as responses:
                        async for response in responses:
                            yield response
                except GeneratorExit:
                    call.code = "CANCELLED"
                    raise
                except BaseException as error:
                    await call.failed(error)
                finally:
                    call.finished()

            async def write(request: Any, context: Any) -> None:
                call = _Call(self._metrics, name, context)
                try:
                    await self._begin(context, is_open)
                    await inner(receive(request), context)
                except BaseException as error:
                    await call.failed(error)
                finally:
                    call.finished()

            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else (grpc.unary_stream_rpc_method_handler)
            )
            # grpc.aio has two styles of streaming handlers: those that yield, and those that call context.write.
            return make(generate if inspect.isasyncgenfunction(inner) else write, None, handler.response_serializer)
        inner = handler.stream_unary if handler.request_streaming else handler.unary_unary

        async def unary(request: Any, context: Any) -> Any:
            call = _Call(self._metrics, name, context)
            try:
                await self._begin(context, is_open)
                return await inner(receive(request), context)
            except BaseException as error:
                await call.failed(error)
            finally:
                call.finished()

        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else (grpc.unary_unary_rpc_method_handler)
        )
        return make(unary, None, handler.response_serializer)

    async def _begin(self, context: Any, is_open: bool) -> None:
        """Give the call its id, the client's own where it sent a fit one, and check its token."""
        self.accepted += 1
        given, token = "", b""
        for key, value in context.invocation_metadata() or ():
            if key == REQUEST_ID and isinstance(value, str) and _VALID_ID.fullmatch(value):
                given = value
            elif key == "authorization":
                token = value.encode() if isinstance(value, str) else value
        request_id = given or secrets.token_hex(8)
        structlog.contextvars.bind_contextvars(request_id=request_id)
        context.set_trailing_metadata(((REQUEST_ID, request_id),))
        if is_open:
            return
        if self._expected and not hmac.compare_digest(token, self._expected):
            raise errors.Unauthenticated("metadata 'authorization: Bearer TOKEN' is missing or wrong")
        if self._refusing:
            raise Unavailable("the server is shutting down")


def _parser(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Parsing as a part of the call: grpc's own answers UNKNOWN to bytes that are no message, without details."""

    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except (DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest("request", "is not a valid message of this method", "MALFORMED_REQUEST") from error

    return parse


def _parse_each(parse: Callable[[bytes], Any]) -> Callable[[AsyncIterator[bytes]], AsyncIterator[Any]]:
    async def parse_each(messages: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for data in messages:
            yield parse(data)

    return parse_each


class _Call:
    """Bookkeeping of one call."""

    __slots__ = ("_context", "_metrics", "_name", "_peer", "_started", "code")

    def __init__(self, metrics: Metrics, name: str, context: Any) -> None:
        self._metrics = metrics
        self._name = name
        self._context = context
        # Asked now: after a hard stop the call's core is gone, and asking it kills the process.
        self._peer = context.peer()
        self.code = "OK"
        self._started = perf_counter()
        metrics.in_flight.inc()

    async def failed(self, error: BaseException) -> None:
        """End the call with the status that fits ``error``. Always raises."""
        if isinstance(error, asyncio.CancelledError):
            self.code = "CANCELLED"
            raise error
        if isinstance(error, grpc.aio.AbortError):
            self.code = self._context.code().name
            raise error
        if isinstance(error, TranslateError):
            status = errors.status_of(error)
            self.code = grpc_code(status).name
            # Under overload one line for each refusal would be a load of its own; the metrics count them.
            write = log.debug if isinstance(error, Overloaded) else log.warning
            write("call refused", method=self._name, code=self.code, reason=error.reason, detail=status.message)
        else:
            status = errors.bug()
            self.code = "INTERNAL"
            log.error("call failed", method=self._name, exc_info=error)
        trailers = [
            *self._context.trailing_metadata(),
            ("grpc-status-details-bin", status.SerializeToString()),
        ]
        if isinstance(error, Overloaded):
            # Not when unavailable: another replica may serve.
            trailers.append(("grpc-retry-pushback-ms", str(errors.pushback_milliseconds(error))))
        await self._context.abort(grpc_code(status), status.message, tuple(trailers))

    def finished(self) -> None:
        seconds = perf_counter() - self._started
        self._metrics.in_flight.dec()
        self._metrics.requests.labels(self._name, self.code).inc()
        self._metrics.latency.labels(self._name).observe(seconds)
        log.debug("call", method=self._name, code=self.code, ms=round(1000 * seconds, 2), peer=self._peer)


_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


def grpc_code(status: status_pb2.Status) -> grpc.StatusCode:
    """The transport's code of a google.rpc.Status."""
    return _BY_NUMBER[status.code]
