"""translator.v1.TranslationService on top of ``translator.service.Translator``. Only conversion happens here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from time import monotonic
from typing import Any

import structlog
from google.rpc import status_pb2

from server import errors
from translator import __version__, language
from translator.batcher import Lane
from translator.config import Settings
from translator.errors import InvalidRequest, TranslateError, Unavailable, UnsupportedLanguage
from translator.glossary import Term
from translator.service import CachePolicy, SkipReason, Translation, Translator
from translator.v1 import translation_pb2 as pb
from translator.v1 import translation_pb2_grpc as pb_grpc

log = structlog.get_logger("server")

MAX_ID_BYTES = 128

DISPLAY_NAMES = {
    language.ZH_HANS: {"en": "Chinese (Simplified)", "zh": "简体中文"},
    language.ZH_HANT: {"en": "Chinese (Traditional)", "zh": "繁体中文"},
    language.EN: {"en": "English", "zh": "英语"},
}

_POLICIES = {
    pb.CACHE_POLICY_UNSPECIFIED: CachePolicy.USE,
    pb.CACHE_POLICY_BYPASS: CachePolicy.BYPASS,
    pb.CACHE_POLICY_REFRESH: CachePolicy.REFRESH,
}
_SKIPS = {
    SkipReason.ALREADY_TARGET_LANGUAGE: pb.SKIP_REASON_ALREADY_TARGET_LANGUAGE,
    SkipReason.NO_LINGUISTIC_CONTENT: pb.SKIP_REASON_NO_LINGUISTIC_CONTENT,
    SkipReason.UNSUPPORTED_LANGUAGE: pb.SKIP_REASON_UNSUPPORTED_LANGUAGE,
}


_Answers = asyncio.Queue[pb.StreamTranslateResponse | BaseException | None]


class TranslationServicer(pb_grpc.TranslationServiceServicer):
    """The gRPC service. All methods run on one event loop.

    Args:
        translator: started, or still loading: then calls are answered with UNAVAILABLE.
    """

    def __init__(self, translator: Translator, settings: Settings) -> None:
        self._translator = translator
        self._settings = settings
        self._started = monotonic()
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Take no further messages from open streams; what was read is still answered."""
        self._draining.set()

    async def TranslateText(self, request: pb.TranslateTextRequest, context: Any) -> pb.TranslateTextResponse:
        self._require_loaded()
        result = await self._translator.translate(
            request.contents,
            timeout=_time_left(context, self._settings.default_deadline_seconds),
            **_options(request, Lane.INTERACTIVE, ""),
        )
        response = pb.TranslateTextResponse(translations=map(_to_proto, result.translations))
        response.stats.source_tokens = result.source_tokens
        response.stats.target_tokens = result.target_tokens
        response.stats.queue_time.FromTimedelta(timedelta(seconds=result.queue_seconds))
        response.stats.inference_time.FromTimedelta(timedelta(seconds=result.inference_seconds))
        return response

    async def StreamTranslate(
        self, request_iterator: AsyncIterator[pb.StreamTranslateRequest], context: Any
    ) -> AsyncIterator[pb.StreamTranslateResponse]:
        self._require_loaded()
        answers: _Answers = asyncio.Queue()
        room = asyncio.Semaphore(self._settings.stream_in_flight)
        reader = asyncio.create_task(self._read_stream(request_iterator, answers, room))
        try:
            while (answer := await answers.get()) is not None:
                if isinstance(answer, BaseException):
                    raise answer
                yield answer
                room.release()  # only when written: a client that does not read is not read from either
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read_stream(
        self,
        requests: AsyncIterator[pb.StreamTranslateRequest],
        answers: _Answers,
        room: asyncio.Semaphore,
    ) -> None:
        """Read while there is room for another unanswered comment; put answers as they come, None at the end."""
        target = ""
        draining = asyncio.create_task(self._draining.wait())
        iterator = aiter(requests)
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await room.acquire()
                    read = asyncio.ensure_future(_next(iterator))
                    await asyncio.wait((read, draining), return_when=asyncio.FIRST_COMPLETED)
                    if not read.done():
                        read.cancel()
                        break
                    if (request := read.result()) is None:
                        break
                    target = request.target_language_code or target
                    group.create_task(self._answer(request, target, answers))
            if self._draining.is_set():
                raise Unavailable("the server is shutting down; send what has no answer yet to another one")
            await answers.put(None)
        except asyncio.CancelledError:
            raise
        except BaseExceptionGroup as failures:
            await answers.put(failures.exceptions[0])
        except BaseException as error:
            await answers.put(error)
        finally:
            draining.cancel()

    async def _answer(
        self,
        request: pb.StreamTranslateRequest,
        target: str,
        answers: _Answers,
    ) -> None:
        """Translate one message; what is wrong with it is said in its own status, the stream goes on."""
        try:
            if not request.id or len(request.id.encode()) > MAX_ID_BYTES:
                raise InvalidRequest("id", f"is required and has at most {MAX_ID_BYTES} bytes", "INVALID_ID")
            result = await self._translator.translate([request.content], **_options(request, Lane.BATCH, target))
            translation = result.translations[0]
            answer = pb.StreamTranslateResponse(id=request.id, translation=_to_proto(translation))
        except Unavailable:
            raise
        except TranslateError as error:
            answer = _failed(request, errors.status_of(error))
        except Exception:
            log.exception("a bug in a stream")
            answer = _failed(request, errors.bug())
        answers.put_nowait(answer)

    async def DetectLanguage(self, request: pb.DetectLanguageRequest, context: Any) -> pb.DetectLanguageResponse:
        return pb.DetectLanguageResponse(
            languages=[
                pb.DetectedLanguage(language_code=found.language, confidence=found.confidence)
                for found in self._translator.detect(request.contents)
            ]
        )

    async def GetSupportedLanguages(
        self, request: pb.GetSupportedLanguagesRequest, context: Any
    ) -> pb.GetSupportedLanguagesResponse:
        self._require_loaded()
        try:
            shown_in = language.canonical(request.display_language_code)[:2] or "en"
        except UnsupportedLanguage as error:
            raise UnsupportedLanguage(error.code, "display_language_code") from None
        family = self._translator.default_model
        pairs = []
        for source in DISPLAY_NAMES:
            for target in DISPLAY_NAMES:
                if source == target:
                    continue
                model = f"{source[:2]}-{target[:2]}"
                if source[:2] == target[:2]:
                    pairs.append(pb.LanguagePair(source_language_code=source, target_language_code=target))
                elif (family, model) in self._translator.models:
                    pairs.append(
                        pb.LanguagePair(
                            source_language_code=source,
                            target_language_code=target,
                            model=f"{family}/{model}",
                        )
                    )
        return pb.GetSupportedLanguagesResponse(
            languages=[
                pb.SupportedLanguage(
                    language_code=code,
                    display_name=names[shown_in],
                    support_source=any(pair.source_language_code == code for pair in pairs),
                    support_target=any(pair.target_language_code == code for pair in pairs),
                )
                for code, names in DISPLAY_NAMES.items()
            ],
            pairs=pairs,
        )

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        settings = self._settings
        response = pb.GetServerInfoResponse(
            version=__version__,
            limits=pb.Limits(
                max_contents=settings.max_contents,
                max_request_codepoints=settings.max_request_codepoints,
                max_content_codepoints=settings.max_content_codepoints,
                max_glossary_terms=settings.max_glossary_terms,
                max_message_bytes=settings.max_message_bytes,
                max_queue_tokens=settings.max_queue_tokens,
            ),
            default_model=self._translator.default_model,
        )
        for model in self._translator.models.values():
            described = model.description
            response.models.add(
                name=described.name,
                pair=described.pair,
                revision=described.revision,
                license=described.license,
                engine=described.engine,
                device=described.device,
                compute_type=described.compute_type,
                ready=self._translator.ready,
            )
        response.uptime.FromTimedelta(timedelta(seconds=monotonic() - self._started))
        return response

    def _require_loaded(self) -> None:
        if not self._translator.started:
            raise Unavailable("the models are loading")


def _failed(request: pb.StreamTranslateRequest, status: status_pb2.Status) -> pb.StreamTranslateResponse:
    translation = pb.Translation(translated_text=request.content, detected_language_code=language.UND, status=status)
    return pb.StreamTranslateResponse(id=request.id, translation=translation)


async def _next(
    iterator: AsyncIterator[pb.StreamTranslateRequest],
) -> pb.StreamTranslateRequest | None:
    return await anext(iterator, None)


def _time_left(context: Any, default: float) -> float:
    """Seconds until the caller's deadline, or the default for a call without one."""
    left: float | None = context.time_remaining()
    return default if left is None else left


def _options(request: pb.TranslateTextRequest | pb.StreamTranslateRequest, lane: Lane, target: str) -> dict[str, Any]:
    """Arguments of ``Translator.translate`` that both requests share."""
    if request.priority not in pb.Priority.values():
        raise InvalidRequest("priority", f"{request.priority} is not a Priority", "INVALID_PRIORITY")
    if request.cache_policy not in _POLICIES:
        raise InvalidRequest("cache_policy", f"{request.cache_policy} is not a CachePolicy", "INVALID_CACHE_POLICY")
    if request.priority != pb.PRIORITY_UNSPECIFIED:
        lane = Lane.INTERACTIVE if request.priority == pb.PRIORITY_INTERACTIVE else Lane.BATCH
    terms: Sequence[Term] = [Term(term.source, term.target) for term in request.glossary_terms]
    return {
        "target": request.target_language_code or target,
        "source": request.source_language_code,
        "model": request.model,
        "terms": terms,
        "lane": lane,
        "cache": _POLICIES[request.cache_policy],
    }


def _to_proto(translation: Translation) -> pb.Translation:
    message = pb.Translation(
        translated_text=translation.text,
        detected_language_code=translation.detected_language,
        confidence=translation.confidence,
        model=translation.model,
        cache_hit=translation.cache_hit,
    )
    if translation.skip:
        message.skip_reason = _SKIPS[translation.skip]
    if translation.error:
        message.status.CopyFrom(errors.status_of(translation.error))
    for term in translation.applied_terms:
        message.applied_terms.add(source=term.source, target=term.target)
    return message
