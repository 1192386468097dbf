"""What the tests share: a model that does as it is told, and servers around it or around the embedded one."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog

from server.serve import Server
from translator.config import ENV_PREFIX, Settings
from translator.model import DecodingOptions, ModelDescription
from translator.service import Translator
from translator.v1 import translation_pb2 as pb
from translator.v1 import translation_pb2_grpc as pb_grpc

# Bounds a wait so that a hang fails instead of stopping the suite; never a measure of speed.
PATIENCE = 60.0

# Tests decide for themselves; models never come from the network.
os.environ["HF_HUB_OFFLINE"] = "1"


class FakeModel:
    """A ``translator.model.Model`` that records its batches and does as it is told.

    A token is a code point, so a token's id says which text it came from; id 0 ends a sentence. By default the
    translation is made letter by letter: the same source always gives the same output, different sources different
    ones, symbols such as placeholders stay, and the guard finds it fit.

    Args:
        pair: zh-en or en-zh.
        placeholders: see ``ModelDescription``.
        max_tokens: see ``Model``.
        revision: tells models apart in cache keys.
    """

    def __init__(
        self,
        pair: str = "zh-en",
        *,
        name: str = "fake",
        placeholders: Sequence[str] = (),
        max_tokens: int = 512,
        revision: str = "r1",
    ) -> None:
        self.description = ModelDescription(
            name=name,
            pair=pair,
            revision=revision,
            license="CC0-1.0",
            engine="fake",
            device="cpu",
            compute_type="exact",
            placeholders=tuple(placeholders),
        )
        self.max_tokens = max_tokens
        self.batches: list[list[str]] = []
        """Sources of each batch in the order in which ``generate`` was entered."""
        self.options: list[DecodingOptions] = []
        """Decoding options of each batch."""
        self.answers: dict[str, str | list[str]] = {}
        """Prescribed translations; of a list the first is used at the first try, and so on, the last for ever."""
        self.failure: Callable[[list[str]], BaseException | None] = lambda _: None
        """Asked before each batch; what it returns is raised."""
        self.drop_outputs = 0
        """So many outputs are missing at the end of each batch."""
        self.encoded: list[str] = []
        self.closed = 0
        self._tries: dict[str, int] = {}
        self._gate = threading.Event()
        self._gate.set()
        self._changed = threading.Condition()

    # Control

    def hold(self) -> None:
        """Let every later batch wait inside ``generate`` until ``release``."""
        self._gate.clear()

    def release(self) -> None:
        self._gate.set()

    async def started(self, batches: int = 1) -> None:
        """Return when ``generate`` was entered so many times."""
        reached = await asyncio.to_thread(self._wait_for, batches)
        assert reached, f"{len(self.batches)} of {batches} batches started"

    def _wait_for(self, batches: int) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: len(self.batches) >= batches, PATIENCE)

    @property
    def sentences(self) -> list[str]:
        """Every sentence that reached the model."""
        return [text for batch in self.batches for text in batch]

    # Model

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        self.encoded += texts
        return [[*map(ord, text), 0] for text in texts]

    def generate(self, batch: Sequence[Sequence[int]], options: DecodingOptions) -> list[list[int]]:
        texts = ["".join(chr(i) for i in ids if i) for ids in batch]
        with self._changed:
            self.batches.append(texts)
            self.options.append(options)
            self._changed.notify_all()
        assert self._gate.wait(PATIENCE), "nobody released the model"
        if error := self.failure(texts):
            raise error
        outputs = [list(map(ord, self._answer(text))) for text in texts]
        return outputs[: len(outputs) - self.drop_outputs]

    def decode(self, batch: Sequence[Sequence[int]]) -> list[str]:
        return ["".join(map(chr, ids)) for ids in batch]

    def close(self) -> None:
        self.closed += 1
        self.release()

    def _answer(self, text: str) -> str:
        prescribed = self.answers.get(text)
        if prescribed is None:
            return self.translation(text)
        if isinstance(prescribed, str):
            return prescribed
        tries = self._tries.get(text, 0)
        self._tries[text] = tries + 1
        return prescribed[min(tries, len(prescribed) - 1)]

    def translation(self, text: str) -> str:
        """What the model answers when nothing is prescribed."""
        return to_english(text) if self.description.pair == "zh-en" else to_chinese(text)


_HEX_TO_LETTERS = str.maketrans("0123456789abcdef", "ghijklmnopqrstuv")


def to_english(text: str) -> str:
    """Each Han character becomes a word of four letters; all else stays."""
    return re.sub("[\u4e00-\u9fff]", lambda m: " " + f"{ord(m[0]):x}".translate(_HEX_TO_LETTERS), text).strip()


def to_chinese(text: str) -> str:
    """Each word becomes two Han characters; all else stays."""

    def word(match: re.Match[str]) -> str:
        number = zlib.crc32(match[0].encode())
        return chr(0x4E00 + number % 20_000) + chr(0x4E00 + (number // 20_000) % 20_000)

    return re.sub(r" ?[A-Za-z]+(?:['’][A-Za-z]+)*", word, text)


def fake_models(**arguments: Any) -> dict[tuple[str, str], FakeModel]:
    """Both directions, as ``Translator`` takes them."""
    return {("fake", pair): FakeModel(pair, **arguments) for pair in ("zh-en", "en-zh")}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the person who runs the tests must not change them."""
    for name in list(os.environ):
        if name.startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _quiet_log() -> None:
    """structlog prints by default; the tests' own output is enough."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted models of this test session: never the user's own cache."""
    return tmp_path_factory.mktemp("cache")


@dataclass
class Running:
    """A server with a channel to it."""

    server: Server
    channel: grpc.aio.Channel
    models: dict[tuple[str, str], FakeModel] = field(default_factory=dict)

    @property
    def stub(self) -> pb_grpc.TranslationServiceAsyncStub:
        return pb_grpc.TranslationServiceStub(self.channel)  # type: ignore[return-value]

    @property
    def zh_en(self) -> FakeModel:
        return self.models["fake", "zh-en"]

    @property
    def en_zh(self) -> FakeModel:
        return self.models["fake", "en-zh"]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"


def request(*contents: str, target: str = "en", **more: Any) -> pb.TranslateTextRequest:
    return pb.TranslateTextRequest(contents=contents, target_language_code=target, **more)


async def translate(running: Running, *contents: str, target: str = "en", **more: Any) -> list[pb.Translation]:
    response = await running.stub.TranslateText(request(*contents, target=target, **more), timeout=PATIENCE)
    return list(response.translations)


StartServer = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start_server(cache_dir: Path) -> AsyncIterator[StartServer]:
    """Start servers on free ports: ``await start_server(models=..., started=True, **settings)``.

    ``models`` None gives a pair of fakes, ``"embedded"`` the real model. ``started`` False leaves the start to the
    test.
    """
    running: list[Running] = []

    async def start(
        models: dict[tuple[str, str], FakeModel] | str | None = None, *, started: bool = True, **given: Any
    ) -> Running:
        settings = make_settings(cache_dir=cache_dir, **given)
        if isinstance(models, str):
            server, fakes = Server(settings), {}
        else:
            fakes = models or fake_models()
            server = Server(settings, dict(fakes))
        item = Running(server, grpc.aio.insecure_channel("127.0.0.1:1"), fakes)
        running.append(item)
        if started:
            await server.start()
            item.channel = grpc.aio.insecure_channel(item.address)
        return item

    yield start
    for item in running:
        for model in item.models.values():
            model.release()
        await item.channel.close()
        await item.server.stop(0)


def make_settings(**given: Any) -> Settings:
    """Settings of a server that bothers nobody: free port, no metrics port.

    Nor is a caller turned away because this machine is slow today.
    """
    return Settings(**({"port": 0, "metrics_port": -1, "max_queue_seconds": 3600.0} | given))


@pytest.fixture
async def translator() -> AsyncIterator[Translator]:
    """A started ``Translator`` on fake models."""
    built = Translator(make_settings(), dict(fake_models()))
    await built.start()
    yield built
    for model in built.models.values():
        model.release()  # type: ignore[attr-defined]
    await built.close(drain=False)


@pytest.fixture
def chinese() -> Callable[[int], list[str]]:
    """Different Chinese sentences, each one sentence, none of them slang: ``chinese(100)``."""
    return chinese_sentences


def chinese_sentences(count: int, start: int = 0) -> list[str]:
    """Different Chinese sentences of one clause, deterministic."""
    subjects, verbs, objects = "我你他她咱", ("喜欢", "想念", "看见", "听说", "买了"), "书花车山茶鱼米灯画门"
    return [
        f"{subjects[i % 5]}{verbs[i // 5 % 5]}{chr(0x5F20 + i // 250)}家的{objects[i // 25 % 10]}"
        for i in range(start, start + count)
    ]
