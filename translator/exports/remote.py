"""A running server as back end of an export, through StreamTranslate."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2

from translator.exports.backends import failure_of
from translator.exports.rows import ExportError, ExportStopped, Failure, Outcome
from translator.glossary import Term
from translator.v1 import translation_pb2 as pb
from translator.v1 import translation_pb2_grpc

RETRIED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
}
"""A restart, a full queue, a stream that a proxy or a draining server cut, or (INTERNAL) a connection that broke in the
middle of a message. Anything else would fail again."""
RETRIED_ITEMS = {code_pb2.UNAVAILABLE, code_pb2.RESOURCE_EXHAUSTED, code_pb2.CANCELLED}
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0

SKIPS = {
    pb.SKIP_REASON_UNSPECIFIED: "",
    pb.SKIP_REASON_ALREADY_TARGET_LANGUAGE: "already_target_language",
    pb.SKIP_REASON_NO_LINGUISTIC_CONTENT: "no_linguistic_content",
    pb.SKIP_REASON_UNSUPPORTED_LANGUAGE: "unsupported_language",
}


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach a server.

    Args:
        address: ``host:port``.
        tls: encrypt; implied by each of the files.
        ca: PEM bundle that the server's certificate must be signed by; None for the system's.
        certificate, key: PEM client certificate and its key, for servers that ask for one.
        token: sent as ``authorization: Bearer TOKEN``.
        patience: seconds without any answer after which the run stops.
    """

    address: str
    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: str = ""
    patience: float = 600.0

    def channel(self) -> grpc.aio.Channel:
        """A channel; it connects at its first call.

        Raises:
            ExportError: a file cannot be read, or only one of certificate and key is given.
        """
        options = [("grpc.keepalive_time_ms", 60_000), ("grpc.max_receive_message_length", 16 * 2**20)]
        if not (self.tls or self.ca or self.certificate or self.key):
            return grpc.aio.insecure_channel(self.address, options)
        if bool(self.certificate) != bool(self.key):
            raise ExportError("--tls-certificate and --tls-private-key belong together")
        try:
            ca, key, certificate = (p.read_bytes() if p else None for p in (self.ca, self.key, self.certificate))
        except OSError as error:
            raise ExportError(f"TLS: {error}") from error
        return grpc.aio.secure_channel(self.address, grpc.ssl_channel_credentials(ca, key, certificate), options)


class RemoteBackend:
    """See ``Backend``. One stream at a time; what is unanswered when it breaks is sent again on the next one.

    A comment may be translated twice by the server that way, but each gets one outcome. The server stops reading
    while it is busy, and ``write`` waits until it reads on: no other throttle is needed.

    Args:
        connection: the server.
        target, source, terms: as in ``LocalBackend``.
        model: family; empty for the server's default.
    """

    def __init__(
        self,
        connection: Connection,
        target: str,
        source: str = "",
        terms: Sequence[Term] = (),
        model: str = "",
    ) -> None:
        self._connection = connection
        self._request = pb.StreamTranslateRequest(
            source_language_code=source,
            target_language_code=target,
            model=model,
            glossary_terms=[pb.GlossaryTerm(source=term.source, target=term.target) for term in terms],
            priority=pb.PRIORITY_BATCH,
        )
        self._metadata = (("authorization", f"Bearer {connection.token}"),) if connection.token else ()
        self._waiting: dict[str, tuple[str, asyncio.Future[Outcome]]] = {}
        self._outbox: deque[str] = deque()
        self._more = asyncio.Event()
        self._next_id = 0
        self._answered = 0.0
        self._max_codepoints = 0
        self._channel: grpc.aio.Channel | None = None
        self._runner: asyncio.Task[None] | None = None
        self._failure: Exception | None = None

    async def start(self) -> None:
        """See ``Backend``. Waits for a server that is still starting."""
        self._channel = self._connection.channel()
        stub = translation_pb2_grpc.TranslationServiceStub(self._channel)
        started = monotonic()
        delay = FIRST_DELAY
        while True:
            try:
                info = await stub.GetServerInfo(pb.GetServerInfoRequest(), metadata=self._metadata, timeout=30)
                # In the stream a wrong language or model would be an error of every single comment.
                await stub.TranslateText(
                    pb.TranslateTextRequest(
                        contents=["?"],
                        source_language_code=self._request.source_language_code,
                        target_language_code=self._request.target_language_code,
                        model=self._request.model,
                        glossary_terms=self._request.glossary_terms,
                    ),
                    metadata=self._metadata,
                    timeout=30,
                )
                break
            except grpc.aio.AioRpcError as error:
                waited = monotonic() - started
                if error.code() not in RETRIED or waited > min(self._connection.patience, 30):
                    raise ExportError(f"{self._connection.address}: {_describe(error)}") from error
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY)
        self._max_codepoints = info.limits.max_content_codepoints
        self._answered = monotonic()
        self._runner = asyncio.create_task(self._run(stub))

    async def translate(self, texts: Sequence[str]) -> list[Outcome]:
        """See ``Backend``."""
        if self._failure:
            raise self._failure
        loop = asyncio.get_running_loop()
        futures = []
        if not self._waiting:
            self._answered = monotonic()  # idle time is not the server's
        for text in texts:
            future: asyncio.Future[Outcome] = loop.create_future()
            futures.append(future)
            if self._max_codepoints and len(text) > self._max_codepoints:
                message = f"has {len(text)} code points; the limit is {self._max_codepoints}"
                future.set_result(Outcome(None, failure=Failure("CONTENT_TOO_LONG", message)))
                continue
            self._next_id += 1
            name = str(self._next_id)
            self._waiting[name] = text, future
            self._outbox.append(name)
        self._more.set()
        return await asyncio.gather(*futures)

    async def _run(self, stub: translation_pb2_grpc.TranslationServiceAsyncStub) -> None:
        delay = FIRST_DELAY
        try:
            while True:
                before = self._answered
                error = await self._stream(stub)
                if error.code() not in RETRIED:
                    raise ExportError(f"{self._connection.address}: {_describe(error)}")
                if self._waiting and self._silence() > self._connection.patience:
                    raise ExportStopped(
                        f"{self._connection.address}: no answer for {self._connection.patience:.0f} s: "
                        f"{_describe(error)}"
                    )
                if self._answered != before:
                    delay = FIRST_DELAY
                # Spread out, so that many clients do not come back in the same moment.
                await asyncio.sleep(max(_retry_after(error), delay * random.uniform(0.7, 1.3)))
                delay = min(delay * 2, LONGEST_DELAY)
                self._outbox = deque(self._waiting)
                if self._outbox:
                    self._more.set()
        except Exception as failure:
            self._fail(failure)

    def _fail(self, failure: Exception) -> None:
        self._failure = failure
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(failure)
        self._waiting.clear()

    async def _stream(self, stub: translation_pb2_grpc.TranslationServiceAsyncStub) -> grpc.aio.AioRpcError:
        """One stream, until it breaks; returns why it did."""
        await self._more.wait()
        call = stub.StreamTranslate(metadata=self._metadata)
        writer = asyncio.create_task(self._write(call))
        watch = asyncio.create_task(self._watch(call))
        try:
            async for response in call:
                self._receive(response)
            return _broken("the server ended the stream")
        except grpc.aio.AioRpcError as error:
            return error
        except asyncio.CancelledError:
            if not watch.done():
                raise
            return _broken("the server is there, but does not answer")
        finally:
            watch.cancel()
            writer.cancel()
            with suppress(asyncio.CancelledError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await writer
            call.cancel()

    async def _write(
        self, call: grpc.aio.StreamStreamCall[pb.StreamTranslateRequest, pb.StreamTranslateResponse]
    ) -> None:
        request = pb.StreamTranslateRequest()
        request.CopyFrom(self._request)
        while True:
            while self._outbox:
                name = self._outbox.popleft()
                waiting = self._waiting.get(name)
                if waiting is None:
                    continue
                request.id, request.content = name, waiting[0]
                await call.write(request)
            self._more.clear()
            await self._more.wait()

    async def _watch(self, call: grpc.aio.Call) -> None:
        """End a stream whose server has stopped answering without hanging up."""
        while True:
            await asyncio.sleep(min(1.0, self._connection.patience / 4))
            if self._waiting and self._silence() > self._connection.patience:
                break
        call.cancel()

    def _silence(self) -> float:
        """Seconds since the last answer."""
        return monotonic() - self._answered

    def _receive(self, response: pb.StreamTranslateResponse) -> None:
        waiting = self._waiting.get(response.id)
        if waiting is None:
            return
        translation = response.translation
        if translation.status.code in RETRIED_ITEMS:
            self._outbox.append(response.id)
            self._more.set()
            return
        self._answered = monotonic()
        del self._waiting[response.id]
        if not waiting[1].done():
            waiting[1].set_result(_outcome(translation))

    async def close(self) -> None:
        """See ``Backend``."""
        if self._runner:
            self._runner.cancel()
            with suppress(asyncio.CancelledError):
                await self._runner
        if self._channel:
            await self._channel.close()

    @property
    def tokens(self) -> int | None:
        """The stream does not say."""
        return None


def _outcome(translation: pb.Translation) -> Outcome:
    status = translation.status
    failure = failure_of(_reason(status), status.message) if status.code else None
    return Outcome(
        None if failure else translation.translated_text,
        translation.detected_language_code,
        SKIPS.get(translation.skip_reason, "skipped"),
        failure,
        translation.cache_hit,
    )


def _reason(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return str(info.reason)
    return str(code_pb2.Code.Name(status.code))


def _broken(message: str) -> grpc.aio.AioRpcError:
    empty = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, empty, empty, message)


def _retry_after(error: grpc.aio.AioRpcError) -> float:
    """Seconds that the server asks for, 0 when it does not."""
    trailers = error.trailing_metadata() or ()
    for key, value in trailers:
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            retry = error_details_pb2.RetryInfo()
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(retry):
                    return float(retry.retry_delay.ToTimedelta().total_seconds())
    return 0.0


def _describe(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}"
