"""The server as a client meets it: real server, real channel; fake models, and the embedded one at the end."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from conftest import (
    PATIENCE,
    Running,
    StartServer,
    chinese_sentences,
    fake_models,
    request,
    to_english,
    translate,
)
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from server import serve
from server.serve import SERVICE
from translator.batcher import Batcher
from translator.errors import ConfigError, DeadlineExceeded, InferenceError, ModelError, Unavailable
from translator.text import PLACEHOLDERS
from translator.v1 import translation_pb2 as pb
from translator.v1 import translation_pb2_grpc as pb_grpc

SENTENCE = "我喜欢你家的书"
Code = grpc.StatusCode


def status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """The rich status; fails unless there is one with exactly one ErrorInfo."""
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])  # type: ignore[arg-type]
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    assert sum(detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) for detail in status.details) == 1
    return status


def find(status: status_pb2.Status, kind: type[Any]) -> Any:
    """The detail of a kind, or None."""
    for detail in status.details:
        message = kind()
        if detail.Unpack(message):
            return message
    return None


def reason(status: status_pb2.Status) -> str:
    return str(find(status, error_details_pb2.ErrorInfo).reason)


async def refused(call: Any) -> tuple[Code, status_pb2.Status]:
    """The status of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value.code(), status_of(failed.value)


async def health(running: Running, service: str = "") -> str:
    stub = health_pb2_grpc.HealthStub(running.channel)
    response = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))


async def metrics(running: Running) -> str:
    """The text of /metrics."""
    url = f"http://127.0.0.1:{running.server.metrics_port}/metrics"

    def get() -> str:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(get)


# Each method


async def test_translate_text(start_server: StartServer) -> None:
    running = await start_server()
    response = await running.stub.TranslateText(request(SENTENCE, "😂", "Привет, как дела?", "hello there"))
    one, two, three, four = response.translations
    assert one.translated_text == to_english(SENTENCE)
    assert (one.detected_language_code, one.model, one.cache_hit) == ("zh-Hans", "fake/zh-en", False)
    assert 0 < one.confidence <= 1
    assert not one.HasField("status")
    assert (two.translated_text, two.skip_reason) == ("😂", pb.SKIP_REASON_NO_LINGUISTIC_CONTENT)
    assert (three.detected_language_code, three.skip_reason) == ("ru", pb.SKIP_REASON_UNSUPPORTED_LANGUAGE)
    assert four.skip_reason == pb.SKIP_REASON_ALREADY_TARGET_LANGUAGE
    assert response.stats.source_tokens == len(SENTENCE) + 1
    assert response.stats.target_tokens == len(one.translated_text)
    assert response.stats.inference_time.ToMicroseconds() > 0
    again = await running.stub.TranslateText(request(SENTENCE))
    assert again.translations[0].cache_hit
    assert again.stats.source_tokens == 0


async def test_terms_cache_policy_and_priority(start_server: StartServer) -> None:
    running = await start_server(fake_models(placeholders=PLACEHOLDERS))
    term = pb.GlossaryTerm(source="小书店", target="Little Bookshop")
    (translation,) = await translate(
        running,
        "我喜欢小书店的鱼",
        glossary_terms=[term],
        priority=pb.PRIORITY_BATCH,
        cache_policy=pb.CACHE_POLICY_BYPASS,
    )
    assert "Little Bookshop" in translation.translated_text
    assert list(translation.applied_terms) == [term]
    assert len(running.server.translator.cache) == 0
    await translate(running, SENTENCE, cache_policy=pb.CACHE_POLICY_REFRESH)
    assert len(running.server.translator.cache) == 1


async def test_detect_language(start_server: StartServer) -> None:
    running = await start_server()
    response = await running.stub.DetectLanguage(pb.DetectLanguageRequest(contents=[SENTENCE, "hello there", "😂", ""]))
    assert [found.language_code for found in response.languages] == ["zh-Hans", "en", "und", "und"]
    assert response.languages[0].confidence > 0.5
    code, status = await refused(running.stub.DetectLanguage(pb.DetectLanguageRequest()))
    assert (code, reason(status)) == (Code.INVALID_ARGUMENT, "EMPTY_CONTENTS")


async def test_supported_languages(start_server: StartServer) -> None:
    running = await start_server()
    response = await running.stub.GetSupportedLanguages(pb.GetSupportedLanguagesRequest())
    assert {language.language_code: language.display_name for language in response.languages} == {
        "zh-Hans": "Chinese (Simplified)",
        "zh-Hant": "Chinese (Traditional)",
        "en": "English",
    }
    pairs = {(pair.source_language_code, pair.target_language_code): pair.model for pair in response.pairs}
    assert pairs == {
        ("zh-Hans", "en"): "fake/zh-en",
        ("zh-Hant", "en"): "fake/zh-en",
        ("en", "zh-Hans"): "fake/en-zh",
        ("en", "zh-Hant"): "fake/en-zh",
        ("zh-Hans", "zh-Hant"): "",
        ("zh-Hant", "zh-Hans"): "",
    }
    in_chinese = pb.GetSupportedLanguagesRequest(display_language_code="zh-CN")
    response = await running.stub.GetSupportedLanguages(in_chinese)
    assert "英语" in [language.display_name for language in response.languages]
    unknown = pb.GetSupportedLanguagesRequest(display_language_code="xx")
    code, status = await refused(running.stub.GetSupportedLanguages(unknown))
    assert code is Code.INVALID_ARGUMENT
    assert find(status, error_details_pb2.BadRequest).field_violations[0].field == "display_language_code"


async def test_with_one_direction_only_that_one_is_listed(start_server: StartServer) -> None:
    running = await start_server({("fake", "zh-en"): fake_models()["fake", "zh-en"]})
    response = await running.stub.GetSupportedLanguages(pb.GetSupportedLanguagesRequest())
    assert ("en", "zh-Hans") not in {(p.source_language_code, p.target_language_code) for p in response.pairs}
    supported = {language.language_code: language for language in response.languages}
    assert not supported["en"].support_source
    assert supported["en"].support_target


async def test_server_info(start_server: StartServer) -> None:
    running = await start_server(max_contents=7, max_queue_tokens=4321)
    info = await running.stub.GetServerInfo(pb.GetServerInfoRequest())
    assert (info.limits.max_contents, info.limits.max_queue_tokens) == (7, 4321)
    assert info.limits.max_content_codepoints == 5000
    assert info.default_model == "fake"
    assert {(model.name, model.pair, model.ready) for model in info.models} == {
        ("fake", "zh-en", True),
        ("fake", "en-zh", True),
    }
    assert all(model.revision and model.license and model.engine and model.device for model in info.models)
    assert info.version
    assert info.uptime.ToMicroseconds() > 0


# Odd input


@pytest.mark.parametrize(
    ("given", "field", "why"),
    [
        (pb.TranslateTextRequest(target_language_code="en"), "contents", "EMPTY_CONTENTS"),
        (request(*["a"] * 1025), "contents", "TOO_MANY_CONTENTS"),
        (request("字" * 30_721), "contents", "REQUEST_TOO_LONG"),
        (request("字" * 1_000_000), "contents", "REQUEST_TOO_LONG"),
        (request(SENTENCE, target=""), "target_language_code", "TARGET_LANGUAGE_MISSING"),
        (request(SENTENCE, target="fr"), "target_language_code", "UNSUPPORTED_LANGUAGE"),
        (request(SENTENCE, target="x" * 100_000), "target_language_code", "UNSUPPORTED_LANGUAGE"),
        (request(SENTENCE, source_language_code="\x00"), "source_language_code", "UNSUPPORTED_LANGUAGE"),
        (request(SENTENCE, model="gpt"), "model", "UNKNOWN_MODEL"),
        (request(SENTENCE, priority=9), "priority", "INVALID_PRIORITY"),
        (request(SENTENCE, cache_policy=9), "cache_policy", "INVALID_CACHE_POLICY"),
        (request(SENTENCE, glossary_terms=[pb.GlossaryTerm()]), "glossary_terms[0].source", "INVALID_GLOSSARY_TERM"),
    ],
)
async def test_a_bad_request_is_named(
    start_server: StartServer, given: pb.TranslateTextRequest, field: str, why: str
) -> None:
    running = await start_server()
    code, status = await refused(running.stub.TranslateText(given))
    assert (code, reason(status)) == (Code.INVALID_ARGUMENT, why)
    assert [v.field for v in find(status, error_details_pb2.BadRequest).field_violations] == [field]


async def test_odd_comments_are_answered_one_by_one(start_server: StartServer) -> None:
    running = await start_server()
    odd = ["", " ", "我", "字" * 5001, "a\x00b", "\ufffd\ufffe", "</s>", ">>cmn_Hans<<", f"{SENTENCE}</s>", "\u202e"]
    translations = await translate(running, *odd, SENTENCE)
    assert len(translations) == len(odd) + 1
    by_content = dict(zip(odd, translations, strict=False))
    assert by_content[""].skip_reason == by_content[" "].skip_reason == pb.SKIP_REASON_NO_LINGUISTIC_CONTENT
    assert by_content["我"].translated_text == to_english("我")
    long = by_content["字" * 5001]
    assert long.translated_text == "字" * 5001
    assert (long.status.code, reason(long.status)) == (Code.INVALID_ARGUMENT.value[0], "CONTENT_TOO_LONG")
    assert find(long.status, error_details_pb2.BadRequest).field_violations[0].field == "contents[3]"
    assert by_content["</s>"].translated_text == "</s>"
    assert by_content[">>cmn_Hans<<"].translated_text == ">>cmn_Hans<<"
    assert "</s>" in by_content[f"{SENTENCE}</s>"].translated_text
    assert translations[-1].translated_text == to_english(SENTENCE)
    assert not any("</s>" in sentence for sentence in running.zh_en.sentences)


def test_a_client_cannot_send_lone_surrogates() -> None:
    """protobuf refuses them before they leave; bytes that hold them are the next test's."""
    with pytest.raises(UnicodeEncodeError):
        request("\ud800")


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x03\xed\xa0\x80", b"\x0a\xff", bytes(1000)])
async def test_bytes_that_are_no_message_are_an_invalid_argument(start_server: StartServer, data: bytes) -> None:
    running = await start_server()
    for method in ("TranslateText", "DetectLanguage"):
        call = running.channel.unary_unary(f"/{SERVICE}/{method}")
        code, status = await refused(call(data))
        assert (code, reason(status)) == (Code.INVALID_ARGUMENT, "MALFORMED_REQUEST")
    stream = running.channel.stream_stream(f"/{SERVICE}/StreamTranslate")(iter([data]))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await asyncio.wait_for(stream.read(), PATIENCE)
    assert failed.value.code() is Code.INVALID_ARGUMENT
    assert await translate(running, SENTENCE)


async def test_a_message_over_the_size_limit_is_refused(start_server: StartServer) -> None:
    running = await start_server(max_message_bytes=10_000)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await running.stub.TranslateText(request("字" * 5000))
    assert failed.value.code() is Code.RESOURCE_EXHAUSTED  # by the transport, before the server sees the call
    assert await translate(running, SENTENCE)


async def test_an_unknown_method_is_unimplemented(start_server: StartServer) -> None:
    running = await start_server()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await running.channel.unary_unary(f"/{SERVICE}/Nothing")(b"")
    assert failed.value.code() is Code.UNIMPLEMENTED


# Errors


async def test_per_item_errors_leave_the_others_alone(start_server: StartServer) -> None:
    running = await start_server()
    sentences = chinese_sentences(3)
    running.zh_en.answers[sentences[0]] = ""
    running.zh_en.failure = lambda texts: RuntimeError("secret") if sentences[1] in texts else None
    unfit, failed, fine = await translate(running, *sentences)
    assert (unfit.status.code, reason(unfit.status)) == (Code.DATA_LOSS.value[0], "TRANSLATION_UNFIT")
    assert (failed.status.code, reason(failed.status)) == (Code.INTERNAL.value[0], "INFERENCE_FAILED")
    assert "secret" not in str(failed)
    assert (unfit.translated_text, failed.translated_text) == (sentences[0], sentences[1])
    assert not fine.HasField("status")


@pytest.mark.parametrize(
    ("error", "code", "why"),
    [
        (RuntimeError("secret /path/to/file"), Code.INTERNAL, "INTERNAL"),
        (SystemExit(1), Code.INTERNAL, "INTERNAL"),
        (InferenceError("failed"), Code.INTERNAL, "INFERENCE_FAILED"),
        (ModelError("gone"), Code.UNAVAILABLE, "MODEL_ERROR"),
        (DeadlineExceeded("late"), Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
        (Unavailable("draining"), Code.UNAVAILABLE, "UNAVAILABLE"),
    ],
)
async def test_whatever_is_raised_becomes_one_status(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: Code, why: str
) -> None:
    running = await start_server()

    async def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(running.server.translator, "translate", broken)
    found, status = await refused(running.stub.TranslateText(request(SENTENCE)))
    assert (found, reason(status)) == (code, why)
    assert "secret" not in str(status)
    assert "Traceback" not in str(status)
    if code is Code.UNAVAILABLE:
        assert find(status, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0


async def test_the_request_id_comes_back(start_server: StartServer) -> None:
    running = await start_server()

    async def answered(given: str | None, content: str = SENTENCE) -> str:
        metadata = (("x-request-id", given),) if given is not None else ()
        call = running.stub.TranslateText(request(content) if content else request(), metadata=metadata)
        try:
            await call
        except grpc.aio.AioRpcError as error:
            status_of(error)
        return str(dict(await call.trailing_metadata())["x-request-id"])

    assert await answered("abc-123") == "abc-123"
    assert await answered("abc-123", "") == "abc-123", "a refused call has one too"
    one, two = await answered(None), await answered(None)
    assert one
    assert one != two
    for unfit in ("with space", "x" * 129, "{}"):
        assert await answered(unfit) != unfit


async def test_a_token_is_asked_for(start_server: StartServer) -> None:
    running = await start_server(auth_token="hunter2")
    for metadata in (
        (),
        (("authorization", "Bearer wrong"),),
        (("authorization", "hunter2"),),
        (("authorization", ""),),
    ):
        code, status = await refused(running.stub.TranslateText(request(SENTENCE), metadata=metadata))
        assert (code, reason(status)) == (Code.UNAUTHENTICATED, "UNAUTHENTICATED")
        assert "hunter2" not in str(status)
    stream = running.stub.StreamTranslate(iter([pb.StreamTranslateRequest(id="1", content=SENTENCE)]))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stream.read()
    assert failed.value.code() is Code.UNAUTHENTICATED
    assert running.zh_en.sentences.count(SENTENCE) == 0
    response = await running.stub.TranslateText(request(SENTENCE), metadata=(("authorization", "Bearer hunter2"),))
    assert response.translations
    assert await health(running) == "SERVING", "probes come without a token"


# Transport security


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


def pem(path: Path, *blobs: trustme.Blob) -> Path:
    path.write_bytes(b"".join(blob.bytes() for blob in blobs))
    return path


async def test_tls(start_server: StartServer, authority: trustme.CA, tmp_path: Path) -> None:
    mine = authority.issue_cert("localhost", "127.0.0.1")
    running = await start_server(
        tls_certificate=pem(tmp_path / "cert.pem", *mine.cert_chain_pems),
        tls_private_key=pem(tmp_path / "key.pem", mine.private_key_pem),
    )
    with pytest.raises(grpc.aio.AioRpcError):  # the fixture's channel speaks plain text
        await running.stub.TranslateText(request(SENTENCE), timeout=PATIENCE)
    trusting = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    async with grpc.aio.secure_channel(running.address, trusting) as channel:
        assert await pb_grpc.TranslationServiceStub(channel).TranslateText(request(SENTENCE), timeout=PATIENCE)


async def test_mutual_tls(start_server: StartServer, authority: trustme.CA, tmp_path: Path) -> None:
    mine = authority.issue_cert("localhost", "127.0.0.1")
    theirs = authority.issue_cert("client.example")
    stranger = trustme.CA().issue_cert("client.example")
    running = await start_server(
        tls_certificate=pem(tmp_path / "cert.pem", *mine.cert_chain_pems),
        tls_private_key=pem(tmp_path / "key.pem", mine.private_key_pem),
        tls_client_ca=pem(tmp_path / "ca.pem", authority.cert_pem),
    )

    async def call(client: trustme.LeafCert | None) -> pb.TranslateTextResponse:
        chain = b"".join(blob.bytes() for blob in client.cert_chain_pems) if client else None
        key = client.private_key_pem.bytes() if client else None
        credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes(), key, chain)
        async with grpc.aio.secure_channel(running.address, credentials) as channel:
            stub = pb_grpc.TranslationServiceStub(channel)
            return await stub.TranslateText(request(SENTENCE), timeout=PATIENCE)  # type: ignore[misc]

    assert (await call(theirs)).translations
    for other in (None, stranger):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(other)
        assert failed.value.code() is Code.UNAVAILABLE


@pytest.mark.parametrize("wrong", ["half", "missing", "junk", "another key", "ca without", "junk ca"])
async def test_wrong_tls_files_are_named(
    start_server: StartServer, authority: trustme.CA, tmp_path: Path, wrong: str
) -> None:
    mine, other = authority.issue_cert("localhost"), authority.issue_cert("localhost")
    certificate = pem(tmp_path / "cert.pem", *mine.cert_chain_pems)
    key = pem(tmp_path / "key.pem", mine.private_key_pem)
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    given, named = {
        "half": ({"tls_certificate": certificate}, "tls_private_key"),
        "missing": ({"tls_certificate": tmp_path / "none.pem", "tls_private_key": key}, "none.pem"),
        "junk": ({"tls_certificate": junk, "tls_private_key": key}, "tls_certificate"),
        "another key": (
            {"tls_certificate": certificate, "tls_private_key": pem(tmp_path / "other.pem", other.private_key_pem)},
            "other.pem",
        ),
        "ca without": ({"tls_client_ca": certificate}, "tls_client_ca"),
        "junk ca": ({"tls_certificate": certificate, "tls_private_key": key, "tls_client_ca": junk}, "tls_client_ca"),
    }[wrong]
    running = await start_server(started=False, **given)
    with pytest.raises(ConfigError, match=named):
        await running.server.start()


# Health, reflection, ports


async def test_not_serving_while_loading_and_serving_after(start_server: StartServer) -> None:
    models = fake_models()
    models["fake", "zh-en"].hold()
    running = await start_server(models, started=False)
    starting = asyncio.create_task(running.server.start())
    await models["fake", "zh-en"].started()  # in the first sentence: the port is open, the models are not warm
    running.channel = grpc.aio.insecure_channel(running.address)
    assert [await health(running, name) for name in ("", SERVICE)] == ["NOT_SERVING"] * 2
    watch = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    models["fake", "zh-en"].release()
    await starting
    assert [await health(running, name) for name in ("", SERVICE)] == ["SERVING"] * 2
    assert (await asyncio.wait_for(watch.read(), PATIENCE)).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


async def test_calls_before_the_models_are_loaded_are_unavailable(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await start_server(started=False)
    loaded = asyncio.Event()
    start = running.server.translator.start

    async def slow_start() -> None:
        await loaded.wait()
        await start()

    monkeypatch.setattr(running.server.translator, "start", slow_start)
    starting = asyncio.create_task(running.server.start())
    while not running.server.port:  # noqa: ASYNC110 - bound within the first steps of start()
        await asyncio.sleep(0)
    running.channel = grpc.aio.insecure_channel(running.address)
    code, status = await refused(running.stub.TranslateText(request(SENTENCE), wait_for_ready=True))
    assert code is Code.UNAVAILABLE
    assert find(status, error_details_pb2.RetryInfo) is not None
    stream = running.stub.StreamTranslate(iter([pb.StreamTranslateRequest(id="1", content=SENTENCE)]))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stream.read()
    assert failed.value.code() is Code.UNAVAILABLE
    info = await running.stub.GetServerInfo(pb.GetServerInfoRequest())
    assert info.version
    assert not [model.name for model in info.models if model.ready]
    loaded.set()
    await starting
    assert await translate(running, SENTENCE)
    info = await running.stub.GetServerInfo(pb.GetServerInfoRequest())
    assert [model.ready for model in info.models] == [True] * len(running.models)


async def test_failing_workers_show_in_health_and_recovery_too(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "HEALTH_INTERVAL", 0.01)
    running = await start_server()
    watch = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    for model in running.models.values():
        model.failure = lambda _: RuntimeError("gone")
    for sentence in chinese_sentences(5):
        await translate(running, sentence)
    assert (await asyncio.wait_for(watch.read(), PATIENCE)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    for model in running.models.values():
        model.failure = lambda _: None
    # Nobody calls an unhealthy server: it has to find out by itself.
    assert (await asyncio.wait_for(watch.read(), PATIENCE)).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


@pytest.mark.parametrize("on", [True, False])
async def test_reflection(start_server: StartServer, on: bool) -> None:
    running = await start_server(reflection=on)
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=f"{SERVICE}.TranslateText"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.such.Symbol"),
    ]
    if not on:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.ServerReflectionInfo(iter([])).read()
        assert failed.value.code() is Code.UNIMPLEMENTED
        return
    answers = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]
    names = {service.name for service in answers[0].list_services_response.service}
    assert names >= {SERVICE, "grpc.health.v1.Health"}
    assert answers[1].file_descriptor_response.file_descriptor_proto
    assert answers[2].error_response.error_code == Code.NOT_FOUND.value[0]


async def test_a_taken_port_is_an_error_and_not_shared(start_server: StartServer) -> None:
    running = await start_server(metrics_port=0)
    second = await start_server(started=False, port=running.server.port)
    with pytest.raises(ConfigError, match=f"port.*{running.server.port}"):
        await second.server.start()
    third = await start_server(started=False, metrics_port=running.server.metrics_port)
    with pytest.raises(ConfigError, match=f"metrics_port.*{running.server.metrics_port}"):
        await third.server.start()


async def test_ipv6_and_names_as_host(start_server: StartServer) -> None:
    running = await start_server(host="localhost")
    async with grpc.aio.insecure_channel(f"localhost:{running.server.port}") as channel:
        assert await pb_grpc.TranslationServiceStub(channel).GetServerInfo(pb.GetServerInfoRequest(), timeout=PATIENCE)
    nowhere = await start_server(started=False, host="192.0.2.1")
    with pytest.raises(ConfigError, match="host"):
        await nowhere.server.start()
    six = await start_server(started=False, host="::1")
    try:
        await six.server.start()
    except ConfigError:
        pytest.skip("this machine has no IPv6")
    async with grpc.aio.insecure_channel(f"[::1]:{six.server.port}") as channel:
        assert await pb_grpc.TranslationServiceStub(channel).GetServerInfo(pb.GetServerInfoRequest(), timeout=PATIENCE)


# Deadlines, cancellation, overload


async def settled(batcher: Batcher) -> None:
    """Return when nothing waits in the queue; the test's own timeout bounds it."""
    while batcher.queued:  # noqa: ASYNC110 - other tasks empty it
        await asyncio.sleep(0.001)


async def calls_ended(running: Running) -> None:
    """Return when no call is in work."""
    while running.server.metrics.in_flight._value.get():  # noqa: ASYNC110 - the server ends them
        await asyncio.sleep(0.001)


async def test_a_deadline_that_passes_frees_the_queue(start_server: StartServer) -> None:
    running = await start_server()
    batcher = running.server.translator.batcher
    running.zh_en.hold()
    before = len(running.zh_en.batches)
    blocker = asyncio.create_task(translate(running, "占着模型的句子"))
    await running.zh_en.started(before + 1)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await running.stub.TranslateText(request(*chinese_sentences(5)), timeout=0.2)
    assert failed.value.code() is Code.DEADLINE_EXCEEDED
    await asyncio.wait_for(settled(batcher), PATIENCE)
    running.zh_en.release()
    await blocker


async def test_the_servers_own_deadline_is_a_rich_error(start_server: StartServer) -> None:
    running = await start_server(default_deadline_seconds=0.05)
    running.zh_en.hold()
    code, status = await refused(running.stub.TranslateText(request(SENTENCE)))
    assert (code, reason(status)) == (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    running.zh_en.release()


async def test_cancelled_calls_free_the_queue(start_server: StartServer) -> None:
    running = await start_server()
    batcher = running.server.translator.batcher
    running.zh_en.hold()
    before = len(running.zh_en.batches)
    blocker = asyncio.create_task(translate(running, "占着模型的句子"))
    await running.zh_en.started(before + 1)
    calls = [running.stub.TranslateText(request(sentence)) for sentence in chinese_sentences(20)]
    while batcher.queued < 20:  # noqa: ASYNC110 - the server fills it
        await asyncio.sleep(0.001)
    for call in calls:
        call.cancel()
    await asyncio.wait_for(settled(batcher), PATIENCE)
    running.zh_en.release()
    await blocker
    assert len(running.zh_en.batches) == before + 1
    assert await translate(running, SENTENCE)


async def test_a_thousand_callers_at_once(start_server: StartServer) -> None:
    running = await start_server()
    sentences = chinese_sentences(1000)
    # The first batch takes until the last caller has come: an instant model would leave nothing to batch.
    running.zh_en.hold()
    calls = [asyncio.create_task(translate(running, sentence)) for sentence in sentences]
    batcher = running.server.translator.batcher
    async with asyncio.timeout(PATIENCE):
        while batcher.queued + batcher.in_model < 1000:  # noqa: ASYNC110 - callers arrive
            await asyncio.sleep(0.001)
    running.zh_en.release()
    answers = await asyncio.gather(*calls)
    assert [answer[0].translated_text for answer in answers] == [to_english(sentence) for sentence in sentences]
    assert len(running.zh_en.batches) < 200, "nothing was batched"


async def test_overload_refuses_with_a_wait_and_keeps_what_it_accepted(start_server: StartServer) -> None:
    running = await start_server(max_queue_tokens=200, max_batch_tokens=64)
    running.zh_en.hold()
    before = len(running.zh_en.batches)
    blocker = asyncio.create_task(translate(running, "占着模型的句子"))
    await running.zh_en.started(before + 1)
    sentences = chinese_sentences(250)  # ten times what fits
    calls = [running.stub.TranslateText(request(sentence)) for sentence in sentences]

    async def outcome(call: Any) -> pb.TranslateTextResponse | grpc.aio.AioRpcError:
        try:
            return await call  # type: ignore[no-any-return]
        except grpc.aio.AioRpcError as error:
            return error

    tasks = [asyncio.create_task(outcome(call)) for call in calls]
    while sum(task.done() for task in tasks) < 200:  # noqa: ASYNC110 - refusals arrive
        await asyncio.sleep(0.001)
    assert running.server.translator.batcher.queued_tokens <= 200
    running.zh_en.release()
    outcomes = await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
    await blocker
    accepted = 0
    for sentence, answer in zip(sentences, outcomes, strict=True):
        if isinstance(answer, grpc.aio.AioRpcError):
            status = status_of(answer)
            assert (answer.code(), reason(status)) == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")
            delay = find(status, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds()
            assert delay > 0
            assert dict(answer.trailing_metadata())["grpc-retry-pushback-ms"] == str(delay)
        else:
            accepted += 1
            assert answer.translations[0].translated_text == to_english(sentence)
    assert 15 <= accepted <= 50


# Streams


def message(number: int, content: str, target: str = "", **more: Any) -> pb.StreamTranslateRequest:
    return pb.StreamTranslateRequest(id=str(number), content=content, target_language_code=target, **more)


async def collect(call: AsyncIterator[pb.StreamTranslateResponse]) -> dict[str, pb.Translation]:
    answers: dict[str, pb.Translation] = {}
    async for answer in call:
        assert answer.id not in answers, "answered twice"
        answers[answer.id] = answer.translation
    return answers


async def test_a_stream_answers_every_id(start_server: StartServer) -> None:
    running = await start_server(stream_in_flight=16)
    sentences = chinese_sentences(500)
    messages = [message(i, sentence, "en" if i == 0 else "") for i, sentence in enumerate(sentences)]
    answers = await asyncio.wait_for(collect(running.stub.StreamTranslate(iter(messages))), PATIENCE)
    assert {int(i): answer.translated_text for i, answer in answers.items()} == {
        i: to_english(sentence) for i, sentence in enumerate(sentences)
    }


async def test_an_empty_stream_ends(start_server: StartServer) -> None:
    running = await start_server()
    assert await asyncio.wait_for(collect(running.stub.StreamTranslate(iter([]))), PATIENCE) == {}


async def test_a_bad_message_fails_alone(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await start_server()
    original = running.server.translator.translate

    async def sometimes_broken(contents: list[str], **more: Any) -> Any:
        if contents == ["坏"]:
            raise ZeroDivisionError("secret")
        return await original(contents, **more)

    monkeypatch.setattr(running.server.translator, "translate", sometimes_broken)
    messages = [
        message(0, SENTENCE),  # no target yet
        message(1, SENTENCE, "en"),
        message(2, "字" * 5001),
        message(3, SENTENCE, model="gpt"),
        message(4, "坏"),
        message(5, SENTENCE, "fr"),
        message(6, SENTENCE, "en"),
        message(7, ""),
        message(8, SENTENCE, priority=9),
        pb.StreamTranslateRequest(content=SENTENCE),
        pb.StreamTranslateRequest(id="x" * 129, content=SENTENCE),
    ]
    answers = await asyncio.wait_for(collect(running.stub.StreamTranslate(iter(messages))), PATIENCE)
    assert len(answers) == len(messages)
    assert {i: reason(answer.status) for i, answer in answers.items() if answer.HasField("status")} == {
        "0": "TARGET_LANGUAGE_MISSING",
        "2": "CONTENT_TOO_LONG",
        "3": "UNKNOWN_MODEL",
        "4": "INTERNAL",
        "5": "UNSUPPORTED_LANGUAGE",
        "8": "INVALID_PRIORITY",
        "": "INVALID_ID",
        "x" * 129: "INVALID_ID",
    }
    assert "secret" not in str(answers["4"])
    assert answers["4"].translated_text == "坏"
    assert answers["1"].translated_text == answers["6"].translated_text == to_english(SENTENCE)


async def test_a_client_that_does_not_read_is_not_read_from(start_server: StartServer) -> None:
    running = await start_server(stream_in_flight=8)
    long = "😂" * 2000
    sent = 0

    async def messages() -> AsyncIterator[pb.StreamTranslateRequest]:
        nonlocal sent
        for i in range(4000):
            yield message(i, f"{i} {long}", "en")
            sent += 1

    call = running.stub.StreamTranslate(messages())
    seen = -1
    while sent > seen or sent == 0:  # until nothing more is taken for half a second
        seen = sent
        await asyncio.sleep(0.5)
    assert sent < 2500, "20 MB were taken from a client that reads nothing"
    answers = await asyncio.wait_for(collect(call), PATIENCE)
    assert len(answers) == 4000, "and when it reads, everything is answered"


async def test_a_cancelled_stream_frees_everything(start_server: StartServer) -> None:
    running = await start_server(stream_in_flight=64)
    batcher, gauge = running.server.translator.batcher, running.server.metrics
    running.zh_en.hold()
    before = len(running.zh_en.batches)

    async def endless() -> AsyncIterator[pb.StreamTranslateRequest]:
        for i, sentence in enumerate(chinese_sentences(10_000)):
            yield message(i, sentence, "en")

    call = running.stub.StreamTranslate(endless())
    await running.zh_en.started(before + 1)
    while batcher.queued < 60:  # noqa: ASYNC110 - the server fills it
        await asyncio.sleep(0.001)
    call.cancel()
    await asyncio.wait_for(settled(batcher), PATIENCE)
    running.zh_en.release()
    await asyncio.wait_for(calls_ended(running), PATIENCE)
    assert (
        gauge.registry.get_sample_value("translate_requests_total", {"method": "StreamTranslate", "code": "CANCELLED"})
        == 1
    )
    assert await translate(running, SENTENCE)


async def test_a_stream_cancelled_while_answers_are_written_frees_everything(start_server: StartServer) -> None:
    running = await start_server(stream_in_flight=64)
    gauge = running.server.metrics

    async def endless() -> AsyncIterator[pb.StreamTranslateRequest]:
        for i, sentence in enumerate(chinese_sentences(10_000)):
            yield message(i, sentence, "en")

    for taken in (1, 2, 30):
        call = running.stub.StreamTranslate(endless())
        for _ in range(taken):
            await call.read()
        call.cancel()
    await asyncio.wait_for(calls_ended(running), PATIENCE)
    assert (
        gauge.registry.get_sample_value("translate_requests_total", {"method": "StreamTranslate", "code": "INTERNAL"})
        is None
    )
    await asyncio.wait_for(settled(running.server.translator.batcher), PATIENCE)
    assert await translate(running, SENTENCE)


# Metrics


async def test_metrics_tell_what_happened(start_server: StartServer) -> None:
    running = await start_server(metrics_port=0)
    running.zh_en.answers["你想念我家的山"] = ["", "I miss my mountains."]
    await translate(running, SENTENCE, SENTENCE, "😂", "你想念我家的山")
    await translate(running, SENTENCE)
    await refused(running.stub.TranslateText(request()))
    text = await metrics(running)
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    expected = {
        'translate_requests_total{code="OK",method="TranslateText"}': 2,
        'translate_requests_total{code="INVALID_ARGUMENT",method="TranslateText"}': 1,
        'translate_comments_total{direction="zh-en",outcome="cached"}': 1,
        'translate_comments_total{direction="und-en",outcome="no_linguistic_content"}': 1,
        'translate_unfit_outputs_total{pair="zh-en",problem="empty",recovered="true"}': 1,
        "translate_requests_in_flight": 0,
        "translate_ready": 1,
        "translate_queue_tokens": 0,
    }
    assert {name: float(lines[name]) for name in expected} == expected
    assert float(lines['translate_request_seconds_count{method="TranslateText"}']) == 3
    assert float(lines['translate_tokens_total{kind="source",pair="zh-en"}']) > 0
    assert float(lines["translate_cache_sentences"]) == 2
    for word in ("我", SENTENCE, "peer"):
        assert word not in text


async def test_the_metrics_port_closes_with_the_server(start_server: StartServer) -> None:
    running = await start_server(metrics_port=0)
    assert "translate_ready" in await metrics(running)
    await running.server.stop(0)
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        await metrics(running)


# The embedded model


async def test_the_embedded_model_translates(start_server: StartServer) -> None:
    running = await start_server("embedded")
    chinese = ["今天天气真好，我们去公园吧。", "我很喜欢这首歌😭", "我們明天見"]
    english = ["The weather is lovely today.", "I like this song, it makes me happy!"]
    for texts, target in ((chinese, "en"), (english, "zh"), (english, "zh-TW")):
        for text, translation in zip(texts, await translate(running, *texts, target=target), strict=True):
            assert not translation.HasField("status"), (text, translation)
            assert translation.translated_text not in ("", text)
            assert translation.model.startswith("embedded/")
            letters = [c for c in translation.translated_text if c.isalpha()]
            han = sum("\u4e00" <= c <= "\u9fff" for c in letters)
            assert han == 0 if target == "en" else han > len(letters) / 2, translation.translated_text
    (crying,) = await translate(running, chinese[1])
    assert "😭" in crying.translated_text
    info = await running.stub.GetServerInfo(pb.GetServerInfoRequest())
    assert {(model.engine, model.device, model.ready) for model in info.models} <= {
        ("ct2", "cpu", True),
        ("ct2", "cuda", True),
    }


async def test_the_embedded_model_survives_hostile_comments(start_server: StartServer) -> None:
    running = await start_server("embedded")
    hostile: Iterable[str] = [
        "</s>", "<pad>", "<unk>", ">>cmn_Hans<< hello </s> there", "我</s>你<pad>他", "\x00我\x00喜欢\x00", "哈" * 2000,
        "a" * 5000, "我" + "很" * 300, "🧑‍🧑‍🧒‍🧒我", "﷽", "\ue000我\ue001", "▁▁▁", "我\ufffd", "w" * 100 + "我",
        "http://a.b/" + "c" * 3000, "￼", "𠮷野家", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢",
    ]  # fmt: skip
    for target in ("en", "zh"):
        translations = await translate(running, *hostile, target=target)
        for text, translation in zip(hostile, translations, strict=True):
            assert translation.translated_text, text
            if translation.HasField("status"):
                assert translation.status.code == Code.DATA_LOSS.value[0], (text, translation.status)
            for control in ("</s>", "<pad>", "<unk>", ">>cmn_Hans<<"):
                assert translation.translated_text.count(control) <= text.count(control), (text, translation)
