"""Stopping loses nothing: in process, and as a real process that gets signals under load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from conftest import PATIENCE, Running, StartServer, chinese_sentences, request, to_english
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.serve import SERVICE
from translator.v1 import translation_pb2 as pb
from translator.v1 import translation_pb2_grpc as pb_grpc

Code = grpc.StatusCode
ROOT = Path(__file__).resolve().parent.parent


async def until(condition: Callable[[], bool]) -> None:
    async def wait() -> None:
        while not condition():  # noqa: ASYNC110 - the server makes it true
            await asyncio.sleep(0.001)

    await asyncio.wait_for(wait(), PATIENCE)


async def hold_calls(running: Running, count: int) -> list[asyncio.Task[pb.TranslateTextResponse]]:
    """Calls that the server has accepted and cannot answer yet."""
    running.zh_en.hold()
    stub = running.stub

    async def call(content: str) -> pb.TranslateTextResponse:
        return await stub.TranslateText(request(content), timeout=PATIENCE)  # type: ignore[no-any-return]

    tasks = [asyncio.create_task(call(sentence)) for sentence in chinese_sentences(count)]
    await until(lambda: running.server.metrics.in_flight._value.get() == count)
    return tasks


async def test_a_drain_answers_every_accepted_call(start_server: StartServer) -> None:
    running = await start_server()
    watch = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch_all = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest(service=""))
    await watch_all.read()
    await until(lambda: running.server.metrics.in_flight._value.get() == 2)
    running.zh_en.hold()
    calls = [asyncio.create_task(_call(running, sentence)) for sentence in chinese_sentences(200)]
    await until(lambda: running.server.metrics.in_flight._value.get() == 202)
    stopping = asyncio.create_task(running.server.stop(PATIENCE))
    for stream in (watch, watch_all):
        assert (await asyncio.wait_for(stream.read(), PATIENCE)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        stream.cancel()
    assert not stopping.done()
    running.zh_en.release()
    answers = await asyncio.wait_for(asyncio.gather(*calls), PATIENCE)
    assert [a.translations[0].translated_text for a in answers] == [to_english(s) for s in chinese_sentences(200)]
    await asyncio.wait_for(stopping, PATIENCE)


async def _call(running: Running, content: str) -> pb.TranslateTextResponse:
    return await running.stub.TranslateText(request(content), timeout=PATIENCE)  # type: ignore[no-any-return]


async def test_new_calls_are_refused_while_draining(start_server: StartServer) -> None:
    running = await start_server()
    calls = await hold_calls(running, 3)
    stopping = asyncio.create_task(running.server.stop(PATIENCE))
    await until(lambda: running.server._calls._refusing)
    async with grpc.aio.insecure_channel(running.address) as late:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await pb_grpc.TranslationServiceStub(late).TranslateText(request("晚了"), timeout=PATIENCE)
        assert failed.value.code() is Code.UNAVAILABLE
    running.zh_en.release()
    assert len(await asyncio.wait_for(asyncio.gather(*calls), PATIENCE)) == 3
    await asyncio.wait_for(stopping, PATIENCE)


async def test_after_the_grace_calls_are_cut_off_and_the_server_stops(start_server: StartServer) -> None:
    running = await start_server()
    calls = await hold_calls(running, 5)
    stopping = asyncio.create_task(running.server.stop(0.05))
    outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), PATIENCE)
    assert {type(outcome) for outcome in outcomes} == {grpc.aio.AioRpcError}
    running.zh_en.release()
    await asyncio.wait_for(stopping, PATIENCE)


async def test_stopping_twice_or_being_cut_off_while_stopping_is_harmless(start_server: StartServer) -> None:
    """grpc's own stop, cancelled and called again, crashes the process."""
    running = await start_server()
    calls = await hold_calls(running, 5)
    first = asyncio.create_task(running.server.stop(PATIENCE))
    await until(lambda: running.server._calls._refusing)
    second = asyncio.create_task(running.server.stop(0))
    first.cancel()
    running.zh_en.release()
    assert len(await asyncio.wait_for(asyncio.gather(*calls), PATIENCE)) == 5
    await asyncio.wait_for(second, PATIENCE)
    await asyncio.wait_for(running.server.stop(), PATIENCE)


async def test_a_draining_stream_answers_what_was_read_and_ends_with_unavailable(start_server: StartServer) -> None:
    running = await start_server(stream_in_flight=32)

    # More than the server reads at a time. Then silence: grpc's Python client takes a write that meets the end of the
    # call for an error of its own.
    async def endless() -> AsyncIterator[pb.StreamTranslateRequest]:
        for i, sentence in enumerate(chinese_sentences(48)):
            yield pb.StreamTranslateRequest(id=str(i), content=sentence, target_language_code="en")
        await asyncio.Event().wait()

    running.zh_en.hold()
    before = len(running.zh_en.batches)
    call = running.stub.StreamTranslate(endless())
    await running.zh_en.started(before + 1)
    batcher = running.server.translator.batcher
    await until(lambda: batcher.queued + batcher.in_model == 32)
    stopping = asyncio.create_task(running.server.stop(PATIENCE))
    await asyncio.sleep(0)
    running.zh_en.release()
    answered: dict[int, str] = {}

    async def read() -> None:
        async for answer in call:
            answered[int(answer.id)] = answer.translation.translated_text

    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await asyncio.wait_for(read(), PATIENCE)
    assert ended.value.code() is Code.UNAVAILABLE
    assert "grpc-status-details-bin" in dict(ended.value.trailing_metadata())
    sentences = chinese_sentences(48)
    assert set(answered) >= set(range(32)), "what was read is answered"
    assert answered == {i: to_english(sentences[i]) for i in answered}
    await asyncio.wait_for(stopping, PATIENCE)


async def test_an_idle_stream_does_not_hold_up_the_drain(start_server: StartServer) -> None:
    running = await start_server()

    async def one_and_silence() -> AsyncIterator[pb.StreamTranslateRequest]:
        yield pb.StreamTranslateRequest(id="1", content="我喜欢你家的书", target_language_code="en")
        await asyncio.Event().wait()

    call = running.stub.StreamTranslate(one_and_silence())
    assert (await asyncio.wait_for(call.read(), PATIENCE)).id == "1"
    stopping = asyncio.create_task(running.server.stop(PATIENCE * 10))
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await asyncio.wait_for(call.read(), PATIENCE)
    assert ended.value.code() is Code.UNAVAILABLE
    await asyncio.wait_for(stopping, PATIENCE)


# As a process


class Process:
    """``python -m server`` with its output."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self.port = 0
        self._reader = asyncio.create_task(self._read())
        self._new = asyncio.Event()

    async def _read(self) -> None:
        assert self.process.stderr
        async for line in self.process.stderr:
            self.lines.append(line.decode().rstrip())
            self._new.set()
        self._new.set()

    async def line(self, word: str) -> str:
        """The first line of the log that holds a word."""
        async with asyncio.timeout(2 * PATIENCE):
            while True:
                for line in self.lines:
                    if word in line:
                        return line
                assert not self._reader.done(), f"ended without {word!r}: {self.lines}"
                self._new.clear()
                await self._new.wait()

    async def ended(self) -> int:
        status = await asyncio.wait_for(self.process.wait(), PATIENCE)
        await self._reader
        return status


Launch = Callable[..., Awaitable[Process]]


@pytest.fixture
async def launch(cache_dir: Path) -> AsyncIterator[Launch]:
    launched: list[Process] = []

    async def start(*arguments: str) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "server", "--port", "0", "--metrics-port", "-1", "--cache-dir", str(cache_dir),
            "--log-format", "json", *arguments,
            cwd=ROOT, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if not name.startswith("COMMENT_TRANSLATE_")},
        )  # fmt: skip
        launched.append(Process(process))
        return launched[-1]

    yield start
    for item in launched:
        with contextlib.suppress(ProcessLookupError):
            item.process.kill()
        await item.ended()


def address_in(line: str) -> str:
    return str(json.loads(line)["address"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_under_load_loses_no_accepted_call(launch: Launch, number: signal.Signals) -> None:
    process: Process = await launch(
        "--log-level", "debug", "--max-batch-tokens", "64", "--workers", "1", "--max-queue-seconds", "1000"
    )
    address = address_in(await process.line('"serving"'))
    sentences = chinese_sentences(400)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.TranslationServiceStub(channel)
        await stub.TranslateText(request("你好吗"), timeout=PATIENCE)

        async def call(sentence: str) -> pb.TranslateTextResponse | grpc.aio.AioRpcError:
            try:
                return await stub.TranslateText(  # type: ignore[no-any-return]
                    request(sentence), timeout=PATIENCE, metadata=(("x-request-id", sentence.encode().hex()[:120]),)
                )
            except grpc.aio.AioRpcError as error:
                return error

        tasks = [asyncio.create_task(call(sentence)) for sentence in sentences]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE)
        process.process.send_signal(number)
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
    assert await process.ended() == 0
    assert any('"stopped"' in line for line in process.lines)
    answered = [outcome for outcome in outcomes if isinstance(outcome, pb.TranslateTextResponse)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    # All were on their way when the signal came: each is answered, or told with UNAVAILABLE that another try is safe.
    assert len(answered) > 1
    assert {error.code() for error in refused} <= {Code.UNAVAILABLE}
    # Every call that reached a handler was answered: the log has one line for each call that ended, and none ended ill.
    calls = [line for line in process.lines if '"event": "call"' in line and "TranslateText" in line]
    assert sum('"code": "OK"' in line for line in calls) == len(answered) + 1
    assert all('"code": "OK"' in line or '"code": "UNAVAILABLE"' in line for line in calls)


async def test_the_second_signal_stops_at_once(launch: Launch) -> None:
    process: Process = await launch("--drain-seconds", "600")
    address = address_in(await process.line('"serving"'))
    async with grpc.aio.insecure_channel(address) as channel:
        # An open health watch keeps the drain waiting.
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        await asyncio.wait_for(watch.read(), PATIENCE)
        process.process.send_signal(signal.SIGTERM)
        await process.line('"draining"')
        process.process.send_signal(signal.SIGTERM)
        assert await process.ended() == 1
    assert any("second signal" in line for line in process.lines)


async def test_a_signal_while_loading_ends_the_process(launch: Launch, tmp_path: Path) -> None:
    process: Process = await launch("--cache-dir", str(tmp_path))
    await process.line("converting")  # with an empty cache folder the start takes seconds
    process.process.send_signal(signal.SIGTERM)
    assert await process.ended() == 0
    assert not any("Traceback" in line for line in process.lines)


async def test_a_taken_port_ends_the_process_with_a_message(launch: Launch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process: Process = await launch("--port", str(port))
        assert await process.ended() == 2
    assert any(f"port: cannot listen on 127.0.0.1:{port}" in line for line in process.lines)
    assert not any("Traceback" in line for line in process.lines)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--beam-size", "0"), "beam-size"),
        (("--engine", "magic"), "engine"),
        (("--compute-type", "int3"), "compute_type"),
        (("--model", "nothing"), "model"),
        (("--tls-certificate", "/nowhere"), "tls_private_key"),
        (("--config", "/nowhere.toml"), "/nowhere.toml"),
    ],
)
async def test_a_bad_setting_exits_2_and_is_named(launch: Launch, arguments: tuple[str, ...], named: str) -> None:
    process: Process = await launch(*arguments)
    assert await process.ended() == 2
    assert any(named in line for line in process.lines), process.lines
    assert not any("Traceback" in line for line in process.lines)
