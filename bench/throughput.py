"""Throughput side by side, with the same weights, in one run: `make bench`. The result goes to bench/results/.

Contestants, all on this machine's cores, greedy, the same cap on the length of an output:

* transformers + grpcio: bench/baseline_server.py, as most people write it: thread pool, one call at a time, a lock
* LibreTranslate: the weights packaged for Argos Translate, same precision as ours; needs --libretranslate PROGRAM
* CTranslate2 offline: translate_batch over all sentences, sorted by length: the bound of what batching can reach
* ours cold: nothing comes from the cache; ours warm: everything does

Servers are driven by 64 callers that send one comment a call; where the name says so, by 8 callers that send lists of
32, as a batch job does. Each contestant runs once a round; rounds are
interleaved, so that a slow phase of the machine hits all of them; medians are compared.

    python -m bench.throughput --libretranslate .venv-libre/bin/libretranslate
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import ctranslate2

from bench import report
from bench.harness import (
    RESULTS,
    ROOT,
    BenchError,
    JsonObject,
    Process,
    Server,
    cpu_seconds,
    ghz,
    in_lists,
    machine,
    median,
    progress,
    read_requests,
    with_policy,
)
from bench.opus_sized import make as make_opus_sized
from translator import registry
from translator.allocator import keep_freed_memory
from translator.config import load_settings
from translator.engines import available_cores
from translator.engines.marian_ct2 import convert
from translator.model import DecodingOptions, ModelDescription
from translator.registry import ModelFolder
from translator.service import Translator
from translator.vocabulary import Vocabulary

CALLERS = 64
# Of the callers that send lists; one list each is what the queue takes within max_queue_seconds.
LIST_CALLERS, LIST_SIZE = 8, 32
WARM_COMMENTS = 300
# Sentences of one offline batch: larger ones were no faster.
OFFLINE_BATCH = 32
METHOD = (
    "Same weights, greedy decoding and cap on the output length for all; 64 callers, one comment a call, or 8 callers "
    "and lists of 32 where it says so; "
    "load generator and servers share the cores. Rounds are interleaved; the ratios are between medians. "
    "CTranslate2 offline gets the sentences that our server would give to the model, already split and encoded, and "
    "does nothing else: no text handling, no calls, no checks of the output."
)


class Contestant(Protocol):
    """Something that translates the load data."""

    @property
    def pid(self) -> int | None:
        """The process that does the work."""
        ...

    def start(self) -> None: ...

    def measure(self, seconds: float) -> Measured:
        """Translate for about ``seconds``."""
        ...

    def stop(self) -> None: ...


class Measured(NamedTuple):
    """What one run did. ``comments`` may be a fraction where sentences were counted."""

    comments: float
    seconds: float


@dataclass(frozen=True)
class Weights:
    """One pair of models and how they are run.

    Args:
        flags: of our server.
        folders: the two directions.
    """

    title: str
    folders: dict[str, ModelFolder]
    flags: tuple[str, ...]
    cache_dir: Path


class Baseline:
    """transformers + grpcio with a lock."""

    def __init__(self, weights: Weights) -> None:
        models = [f"{pair}={folder.path}" for pair, folder in weights.folders.items()]
        command = [sys.executable, "-W", "ignore", "-m", "bench.baseline_server", *models]
        self._process = Process(command, r"serving on (\S+)")
        self._address = ""
        self._requests = read_requests("distinct")

    def start(self) -> None:
        self._address = self._process.start()[1]

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def measure(self, seconds: float) -> Measured:
        run = ghz(self._address, self._requests, concurrency=CALLERS, seconds=seconds, timeout=300)
        return Measured(len(run.latencies), run.seconds)

    def stop(self) -> None:
        self._process.stop()


class Ours:
    """This project's server, cold (every comment is translated anew) or warm (all of them come from the cache)."""

    def __init__(self, weights: Weights, warm: bool, flags: Sequence[str] = (), size: int = 1) -> None:
        self._server = Server([*weights.flags, "--beam-size", "1", *flags])
        requests = read_requests("distinct")
        self._warm, self._size = warm, size
        chosen = requests[:WARM_COMMENTS] if warm else with_policy(requests, "CACHE_POLICY_REFRESH")
        self._requests = in_lists(chosen, size)

    def start(self) -> None:
        self._server.start()
        if self._warm:
            ghz(self._server.address, self._requests, concurrency=CALLERS, calls=len(self._requests))

    @property
    def pid(self) -> int | None:
        return self._server.pid

    def measure(self, seconds: float) -> Measured:
        callers = CALLERS if self._size == 1 else LIST_CALLERS
        run = ghz(self._server.address, self._requests, concurrency=callers, seconds=seconds)
        return Measured(len(run.latencies) * self._size, run.seconds)

    def stop(self) -> None:
        self._server.stop()


class Offline:
    """CTranslate2 alone on sentences that are split, encoded and sorted by length beforehand."""

    def __init__(self, weights: Weights, shortlist: bool = False) -> None:
        self._weights = weights
        self._shortlist = shortlist
        self._translators: dict[str, ctranslate2.Translator] = {}
        self._sentences: dict[str, list[list[str]]] = {}
        self._per_comment = self._rate = 0.0

    def start(self) -> None:
        comments = read_requests("distinct")
        ids = sentences_of(comments, self._weights)
        self._per_comment = sum(map(len, ids.values())) / len(comments)
        for pair, folder in self._weights.folders.items():
            pieces = Vocabulary(folder.path, folder.target_prefix).source_pieces
            self._sentences[pair] = [[pieces[i] for i in sentence] for sentence in ids[pair]]
            self._translators[pair] = ctranslate2.Translator(
                str(convert(folder, "int8", self._weights.cache_dir)),
                device="cpu",
                compute_type="int8",
                inter_threads=available_cores(),
                intra_threads=1,
            )
        started = time.perf_counter()
        done = self._work(self._batches(128, 0))
        self._rate = done / (time.perf_counter() - started)

    @property
    def pid(self) -> int | None:
        return os.getpid()

    def measure(self, seconds: float) -> Measured:
        # As many sentences as should fill the time, drawn anew each round.
        batches = self._batches(max(128, round(self._rate * seconds)), time.monotonic_ns())
        started = time.perf_counter()
        done = self._work(batches)
        took = time.perf_counter() - started
        self._rate = done / took
        return Measured(done / self._per_comment, took)

    def _batches(self, count: int, seed: int) -> list[tuple[str, list[list[str]]]]:
        """``count`` sentences of both directions in batches of neighbours in length."""
        batches = []
        total = sum(map(len, self._sentences.values()))
        for pair, sentences in self._sentences.items():
            wanted = min(len(sentences), round(count * len(sentences) / total))
            chosen = sorted(random.Random(seed).sample(sentences, wanted), key=len)
            batches += [(pair, chosen[i : i + OFFLINE_BATCH]) for i in range(0, len(chosen), OFFLINE_BATCH)]
        return batches

    def _work(self, batches: list[tuple[str, list[list[str]]]]) -> int:
        """Translate on one thread a core; number of sentences."""
        waiting = iter(batches)
        lock = threading.Lock()
        options = DecodingOptions()

        def work() -> None:
            while True:
                with lock:
                    taken = next(waiting, None)
                if taken is None:
                    return
                pair, batch = taken
                limit = self._weights.folders[pair].max_tokens - 1
                self._translators[pair].translate_batch(
                    batch,
                    beam_size=1,
                    max_input_length=0,
                    max_decoding_length=options.max_target_tokens(max(map(len, batch)), limit),
                    disable_unk=True,
                    use_vmap=self._shortlist,
                )

        threads = [threading.Thread(target=work) for _ in range(available_cores())]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(len(batch) for _, batch in batches)

    def stop(self) -> None:
        for translator in self._translators.values():
            translator.unload_model()
        self._translators.clear()


class LibreTranslate:
    """LibreTranslate with the weights as Argos packages, wholly offline.

    Its own sentence splitter is a download, so it gets spaCy's rule-based one, which costs less. It takes int8 like
    ours and one thread a core, and its beam of 4 is set to 1.
    """

    def __init__(self, weights: Weights, program: Path) -> None:
        self._weights = weights
        self._program = program
        self._folder = Path(tempfile.mkdtemp(prefix="argos-"))
        self._requests = read_requests("distinct")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        cores = str(available_cores())
        environment = {
            "XDG_DATA_HOME": str(self._folder),
            "XDG_CONFIG_HOME": str(self._folder),
            "XDG_CACHE_HOME": str(self._folder),
            "ARGOS_PACKAGES_DIR": str(self._folder / "packages"),
            "ARGOS_CHUNK_TYPE": "SPACY",
            "ARGOS_BEAM_SIZE": "1",
            "ARGOS_COMPUTE_TYPE": "int8",
            "ARGOS_INTER_THREADS": cores,
            "ARGOS_INTRA_THREADS": "1",
        }
        command = [str(program), "--host", "127.0.0.1", "--port", str(self._port), "--disable-web-ui"]
        command += ["--load-only", "zh,en", "--threads", str(CALLERS)]
        self._process = Process(command, r"Running on", environment)

    def start(self) -> None:
        for pair, folder in self._weights.folders.items():
            self._package(pair, folder)
        # Argos asks for this folder before it downloads a splitter that is not used here.
        (self._folder / "argos-translate/spacy/senter/model").mkdir(parents=True)
        self._process.start()
        wait_for_port(self._port)  # it says that it runs before it listens
        for request in (self._requests[0], next(r for r in self._requests if r["target_language_code"] == "zh")):
            self._translate(http.client.HTTPConnection("127.0.0.1", self._port, timeout=300), request)

    def _package(self, pair: str, folder: ModelFolder) -> None:
        source, target = pair.split("-")
        package = self._folder / "packages" / f"{source}_{target}"
        shutil.copytree(convert(folder, "int8", self._weights.cache_dir), package / "model")
        config_file = package / "model" / "config.json"
        config = json.loads(config_file.read_text(encoding="utf-8"))
        # Argos gives only the pieces; the end of the sentence must come from CTranslate2.
        config_file.write_text(json.dumps(config | {"add_source_eos": True}), encoding="utf-8")
        shutil.copyfile(folder.path / "source.spm", package / "sentencepiece.model")
        names = {"zh": "Chinese", "en": "English"}
        metadata = {
            "package_version": "1.0",
            "argos_version": "1.9",
            "from_code": source,
            "from_name": names[source],
            "to_code": target,
            "to_name": names[target],
        }
        (package / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
        python = self._program.parent / "python"
        script = "import spacy, sys; spacy.blank('xx').to_disk(sys.argv[1])"
        subprocess.run([str(python), "-W", "ignore", "-c", script, str(package / "spacy")], check=True)

    @staticmethod
    def _translate(connection: http.client.HTTPConnection, request: JsonObject) -> None:
        body = {
            "q": request["contents"][0],
            "source": request["source_language_code"],
            "target": request["target_language_code"],
        }
        connection.request("POST", "/translate", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = json.loads(answer.read())
        if answer.status != 200 or "translatedText" not in text:
            raise BenchError(f"LibreTranslate answered {answer.status}: {text}")

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def measure(self, seconds: float) -> Measured:
        order = iter(random.Random(time.monotonic_ns()).sample(self._requests, len(self._requests)))
        lock = threading.Lock()
        done = 0
        until = time.monotonic() + seconds

        def call() -> None:
            nonlocal done
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)
            while time.monotonic() < until:
                with lock:
                    request = next(order, None)
                if request is None:
                    return
                self._translate(connection, request)
                with lock:
                    done += 1

        started = time.perf_counter()
        threads = [threading.Thread(target=call) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return Measured(done, time.perf_counter() - started)

    def stop(self) -> None:
        self._process.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


def wait_for_port(port: int) -> None:
    """Return when something listens.

    Raises:
        BenchError: nothing does after a minute.
    """
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise BenchError(f"nothing listens on port {port}")


class Recorder:
    """A model that remembers what it is asked and answers with the source: it finds out what reaches the model."""

    def __init__(self, folder: ModelFolder) -> None:
        self._vocabulary = Vocabulary(folder.path, folder.target_prefix)
        self.description = ModelDescription(
            name=folder.name,
            pair=folder.pair,
            revision=folder.revision,
            license=folder.license,
            engine="recorder",
            device="cpu",
            compute_type="none",
            placeholders=self._vocabulary.placeholders,
        )
        self.max_tokens = folder.max_tokens
        self.seen: list[list[int]] = []

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._vocabulary.encode(texts)

    def generate(self, batch: Sequence[Sequence[int]], options: DecodingOptions) -> list[list[int]]:
        self.seen += [list(ids) for ids in batch]
        return [list(ids) for ids in batch]

    def decode(self, batch: Sequence[Sequence[int]]) -> list[str]:
        return self._vocabulary.decode(batch)

    def close(self) -> None:
        """Nothing to free."""


def sentences_of(comments: Sequence[JsonObject], weights: Weights) -> dict[str, list[list[int]]]:
    """The source ids that our server would give to the model for these comments."""
    recorders = {pair: Recorder(folder) for pair, folder in weights.folders.items()}

    async def translate() -> None:
        settings = load_settings({"guard": False, "cache_bytes": 0})
        translator = Translator(settings, {(r.description.name, pair): r for pair, r in recorders.items()})
        await translator.start()
        for recorder in recorders.values():
            recorder.seen.clear()  # what came so far was the warm-up
        for comment in comments:
            await translator.translate(
                comment["contents"], source=comment["source_language_code"], target=comment["target_language_code"]
            )
        await translator.close()

    asyncio.run(translate())
    return {pair: recorder.seen for pair, recorder in recorders.items()}


def embedded() -> Weights:
    """The models in this repository."""
    settings = load_settings()
    folders = {s.pair: registry.locate(s, settings.cache_dir) for s in registry.sources("embedded")}
    return Weights("Embedded model", folders, (), settings.cache_dir)


def opus_sized(folder: Path) -> Weights:
    """The random model of opus-mt's size; the guard is off, since it would refuse every output."""
    tokenizer = next(iter(embedded().folders.values())).path
    made = make_opus_sized(folder / "opus-sized", tokenizer)
    setting = f"zh-en={made},en-zh={made}"
    folders = {s.pair: registry.locate(s, folder) for s in registry.sources(setting)}
    # 64 waiting callers are more than this model does in a second; the others refuse nobody either.
    flags = ("--model", setting, "--no-guard", "--cache-dir", str(folder), "--max-queue-seconds", "60")
    title = "opus-mt's size: 77.9 M parameters, random weights, 16 tokens an output (speed only)"
    return Weights(title, folders, flags, folder)


def contestants_of(weights: Weights, libretranslate: Path | None) -> dict[str, Contestant | str]:
    """All contestants by name, or why one cannot take part."""
    has_shortlist = all((folder.path / registry.SHORTLIST).exists() for folder in weights.folders.values())
    found: dict[str, Contestant | str] = {
        "transformers + grpcio, a lock": Baseline(weights),
        "LibreTranslate": LibreTranslate(weights, libretranslate) if libretranslate else "see --libretranslate",
        "CTranslate2 offline, sorted": Offline(weights),
        "ours cold": Ours(weights, warm=False),
        "ours cold, lists of 32": Ours(weights, warm=False, size=LIST_SIZE),
        "ours warm": Ours(weights, warm=True),
    }
    if "--no-guard" not in weights.flags:
        # Neither LibreTranslate nor the offline run checks its output, or tries again.
        found["ours cold, no guard"] = Ours(weights, False, ("--no-guard",))
    if has_shortlist:
        found["CTranslate2 offline, sorted, shortlist"] = Offline(weights, shortlist=True)
        found["ours cold, no shortlist"] = Ours(weights, False, ("--no-shortlist",))
        found["ours cold, no shortlist, lists of 32"] = Ours(weights, False, ("--no-shortlist",), LIST_SIZE)
    return found


def compare(weights: Weights, libretranslate: Path | None, rounds: int, seconds: float) -> JsonObject:
    """Run all contestants ``rounds`` times, interleaved."""
    rows: dict[str, JsonObject] = {}
    running: dict[str, Contestant] = {}
    with ExitStack() as stack:
        for name, contestant in contestants_of(weights, libretranslate).items():
            rows[name] = {"rates": [], "cpu_ms": [], "note": contestant if isinstance(contestant, str) else ""}
            if isinstance(contestant, str):
                continue
            stack.callback(contestant.stop)
            with progress(f"starting {name}"):
                contestant.start()
            running[name] = contestant
        for number in range(rounds):
            for name, contestant in running.items():
                with progress(f"round {number + 1}, {name}"):
                    before = cpu_seconds(contestant.pid or 0)
                    measured = contestant.measure(seconds)
                    used = cpu_seconds(contestant.pid or 0) - before
                rows[name]["rates"].append(measured.comments / measured.seconds)
                rows[name]["cpu_ms"].append(1000 * used / measured.comments)
    ran = [row for row in rows.values() if row["rates"]]
    for row in ran:
        row["median"], row["cpu_ms_median"] = median(row["rates"]), median(row["cpu_ms"])
    ours = rows["ours cold"]
    for row in ran:
        row["ratio"] = ours["median"] / row["median"]
        row["cpu_ratio"] = row["cpu_ms_median"] / ours["cpu_ms_median"]
    return {"contestants": rows}


def main() -> int:
    """Run it and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each run")
    parser.add_argument("--libretranslate", type=Path, metavar="PROGRAM", help="LibreTranslate in a .venv of its own")
    parser.add_argument("--only", choices=("embedded", "opus-sized"), help="one of the two models")
    parser.add_argument("--name", default="throughput", help="name of the files in bench/results/")
    arguments = parser.parse_args()
    keep_freed_memory()
    makers: dict[str, Callable[[], Weights]] = {
        "embedded": embedded,
        "opus-sized": lambda: opus_sized(ROOT / "build" / "bench"),
    }
    result: JsonObject = {"machine": machine(), "method": METHOD, "models": {}}
    target = RESULTS / arguments.name
    RESULTS.mkdir(exist_ok=True)
    for name, make in makers.items():
        if arguments.only not in (None, name):
            continue
        try:
            weights = make()
            compared = compare(weights, arguments.libretranslate, arguments.rounds, arguments.seconds)
        except BenchError as error:
            print(f"bench.throughput: {error}", file=sys.stderr)
            return 1
        # Written after each model: the second one takes minutes.
        result["models"][weights.title] = compared
        text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
        target.with_suffix(".json").write_text(text, encoding="utf-8")
        report.write_throughput(result, target)
    print(report.throughput_markdown(result))
    print(f"written: {target}.md, .json, .png, .html", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
