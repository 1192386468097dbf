"""What the benchmarks share: load data, a server process, its metrics, runs of ghz, the machine's description."""

from __future__ import annotations

import gzip
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Self
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from translator.engines import available_cores

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(__file__).resolve().parent / "data"
RESULTS = Path(__file__).resolve().parent / "results"
SERVICE = "translator.v1.TranslationService"
# Seconds for a server to say that it serves; the first start converts the models.
START_TIMEOUT = 180.0

JsonObject = dict[str, Any]


class BenchError(Exception):
    """A benchmark cannot run; the message says what to do."""


# Data


def read_requests(name: str) -> list[JsonObject]:
    """Requests of one comment each from bench/data, ``name`` being ``distinct`` or ``zipf``."""
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def in_lists(requests: Sequence[JsonObject], size: int) -> list[JsonObject]:
    """Requests of ``size`` comments each. A request has one direction, so each direction is grouped apart.

    A rest that does not fill a list is left out.
    """
    if size == 1:
        return list(requests)
    open_lists: dict[str, list[str]] = {}
    lists: list[JsonObject] = []
    for request in requests:
        target = request["target_language_code"]
        contents = open_lists.setdefault(target, [])
        contents += request["contents"]
        if len(contents) >= size:
            lists.append({**request, "contents": contents[:size]})
            open_lists[target] = []
    return lists


def with_policy(requests: Sequence[JsonObject], policy: str) -> list[JsonObject]:
    """The requests with a cache policy, e.g. CACHE_POLICY_REFRESH."""
    return [{**request, "cache_policy": policy} for request in requests]


def as_stream(requests: Sequence[JsonObject]) -> list[JsonObject]:
    """StreamTranslate messages, one a comment."""
    return [
        {
            "id": str(i),
            "content": request["contents"][0],
            "source_language_code": request.get("source_language_code", ""),
            "target_language_code": request["target_language_code"],
        }
        for i, request in enumerate(requests)
    ]


# Numbers


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest-rank percentile; NaN when there are no values."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float:
    """The middle value, the lower one of two; NaN when there are no values."""
    return percentile(values, 0.5)


# Metrics


@dataclass(frozen=True)
class Snapshot:
    """Counters of a server at one moment."""

    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = field(default_factory=dict)

    def total(self, name: str, **labels: str) -> float:
        """Sum over all series of ``name`` that carry ``labels``."""
        wanted = set(labels.items())
        return sum(value for (n, pairs), value in self.samples.items() if n == name and wanted <= set(pairs))

    def since(self, before: Snapshot) -> Snapshot:
        """What was added since ``before``; meaningful for counters only."""
        return Snapshot({key: value - before.samples.get(key, 0.0) for key, value in self.samples.items()})

    def hit_rate(self) -> float | None:
        """Share of comments that were answered from the cache, of those that had to be translated."""
        cached = self.total("translate_comments_total", outcome="cached")
        all_of_them = cached + self.total("translate_comments_total", outcome="translated")
        return cached / all_of_them if all_of_them else None

    def mean_batch(self) -> float | None:
        """Sentences per batch."""
        batches = self.total("translate_batch_sentences_count")
        return self.total("translate_batch_sentences_sum") / batches if batches else None

    def padding_share(self) -> float | None:
        """Share of padding in the source tokens given to the model."""
        source, padding = (self.total("translate_tokens_total", kind=kind) for kind in ("source", "padding"))
        return padding / (source + padding) if source else None


def parse_metrics(text: str) -> Snapshot:
    """Samples of a Prometheus exposition."""
    return Snapshot(
        {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    )


# Servers


class Process:
    """A server process. Its output goes to a file, so that it can never block on a full pipe.

    Args:
        command: what to run, from the repository's root.
        ready: regular expression of the line that says that it serves.
        environment: additions to the environment.
    """

    def __init__(self, command: Sequence[str], ready: str, environment: dict[str, str] | None = None) -> None:
        self._command = list(command)
        self._ready = re.compile(ready)
        self._environment = os.environ | (environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    def start(self) -> re.Match[str]:
        """Start it and wait for the line that says that it serves.

        Raises:
            BenchError: it ended, or did not serve in time; with the end of its output.
        """
        output = self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        process = self._process = subprocess.Popen(
            self._command, cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        until = time.monotonic() + START_TIMEOUT
        while time.monotonic() < until:
            ended = process.poll() is not None
            text = os.pread(output.fileno(), 1 << 20, 0).decode(errors="replace")
            if found := self._ready.search(text):
                return found
            if ended:
                break
            time.sleep(0.02)
        self.stop()
        raise BenchError(f"{' '.join(self._command)} did not start: {text.strip()[-500:]}")

    def stop(self) -> None:
        """Ask it to end, and insist after ten seconds. Idempotent."""
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._output:
            self._output.close()
            self._output = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process else None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Server(Process):
    """A server of this project on free ports, or one that runs already.

    Args:
        arguments: flags of ``python -m server`` besides the ports.
        environment: additions to the environment.
    """

    def __init__(self, arguments: Sequence[str] = (), environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "server", "--port", "0", "--metrics-port", "0", "--log-format", "json"]
        super().__init__([*command, *arguments], r'\{.*"event": "serving".*\}', environment)
        self.address = ""
        self.metrics_url = ""

    @classmethod
    def running(cls, address: str, metrics_url: str) -> Server:
        """A server that somebody else started; it is left alone."""
        server = cls()
        server.address, server.metrics_url = address, metrics_url
        return server

    def start(self) -> re.Match[str]:
        found = super().start()
        event = json.loads(found[0])
        self.address = f"127.0.0.1:{event['address'].rpartition(':')[2]}"
        self.metrics_url = f"http://127.0.0.1:{event['metrics_port']}/metrics"
        return found

    def snapshot(self) -> Snapshot:
        """The metrics now; empty when no metrics address is known."""
        if not self.metrics_url:
            return Snapshot()
        with urlopen(self.metrics_url, timeout=30) as response:
            return parse_metrics(response.read().decode())

    def resident_bytes(self) -> int:
        """Resident memory; 0 when unknown."""
        if self.pid is not None and (memory := resident_bytes(self.pid)):
            return memory
        return int(self.snapshot().total("process_resident_memory_bytes"))


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used so far, on Linux; NaN elsewhere."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Resident memory of a process on Linux; 0 elsewhere."""
    try:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


# ghz


@dataclass(frozen=True)
class Run:
    """What one run of ghz measured. Times in seconds.

    Args:
        latencies: of the calls that succeeded.
        codes: number of calls by status code.
        seconds: from the first call to the end of the last.
        sending_seconds: from the start of the first call to the start of the last.
    """

    latencies: list[float]
    codes: dict[str, int]
    seconds: float
    sending_seconds: float

    @property
    def calls(self) -> int:
        return sum(self.codes.values())

    @property
    def rate(self) -> float:
        """Successful calls per second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def latency(self, share: float) -> float:
        return percentile(self.latencies, share)


def find_ghz() -> Path:
    """ghz from .tools or from the path.

    Raises:
        BenchError: there is none.
    """
    local = ROOT / ".tools" / "ghz"
    if local.exists():
        return local
    if found := shutil.which("ghz"):
        return Path(found)
    raise BenchError("ghz is missing; install it with: make tools (needs Go)")


def ghz(
    address: str,
    requests: Sequence[JsonObject],
    *,
    method: str = "TranslateText",
    concurrency: int = 1,
    connections: int = 0,
    calls: int = 0,
    seconds: float = 0,
    rate: float = 0,
    timeout: float = 60,
    reflection: bool = False,
) -> Run:
    """Run ghz. With ``rate`` calls start on a schedule, whether or not earlier ones have come back (open loop).

    Args:
        requests: taken in turn, and again from the first after the last; for a stream, the messages of each call.
        connections: 0 for one per eight callers, at most 8.
        calls, seconds: one of them ends the run; calls under way are then awaited.
        reflection: ask the server for the schema instead of reading it from proto/.

    Raises:
        BenchError: ghz failed; ends with its last line.
    """
    if not connections:
        connections = min(8, max(1, concurrency // 8))
    command = [str(find_ghz()), "--insecure", "--disable-template-data", "--format", "json"]
    command += ["--call", f"{SERVICE}/{method}", "--timeout", f"{timeout}s"]
    command += ["--concurrency", str(concurrency), "--connections", str(connections)]
    if not reflection:
        command += ["--proto", str(ROOT / "proto/translator/v1/translation.proto")]
        command += ["--import-paths", f"{ROOT / 'proto'},{sysconfig.get_path('purelib')}"]
    if seconds:
        command += ["--duration", f"{seconds}s", "--duration-stop", "wait"]
    else:
        command += ["--total", str(max(calls, concurrency))]
    if rate:
        command += ["--async", "--rps", str(max(1, round(rate)))]
    with tempfile.TemporaryDirectory() as folder:
        data, output = Path(folder) / "data.json", Path(folder) / "report.json"
        data.write_text(json.dumps(requests, ensure_ascii=False), encoding="utf-8")
        command += ["--data-file", str(data), "--output", str(output), address]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not output.exists():
            last = ((done.stderr + done.stdout).strip().splitlines() or ["no message"])[-1]
            raise BenchError(f"ghz failed: {last}")
        return parse_ghz(json.loads(output.read_text(encoding="utf-8")))


def parse_ghz(report: JsonObject) -> Run:
    """A ghz JSON report. Its own percentiles mix in the failed calls, so they are made from the details."""
    details: list[JsonObject] = report.get("details") or []
    codes = Counter(_code(detail) for detail in details)
    latencies = [detail["latency"] / 1e9 for detail in details if _code(detail) == "OK"]
    # ghz notes the end of each call.
    starts = [datetime.fromisoformat(d["timestamp"]).timestamp() - d["latency"] / 1e9 for d in details]
    sending = max(starts) - min(starts) if starts else 0.0
    return Run(latencies, dict(codes), report.get("total", 0) / 1e9, sending)


def _code(detail: JsonObject) -> str:
    """``rpc error: code = ResourceExhausted desc = ...`` has the code that ghz's status field may leave out."""
    if detail.get("status") == "OK":
        return "OK"
    found = re.search(r"code = (\w+)", detail.get("error", ""))
    return found[1] if found else str(detail.get("status") or "Unknown")


# The machine


def machine() -> JsonObject:
    """Hardware and versions, for the head of a report."""
    return {
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("ctranslate2", "grpcio", "protobuf", "torch", "transformers")},
        "load_before": round(os.getloadavg()[0], 1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _cpu_name() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown"
    name = re.search(r"model name\s*:\s*(.+)", info)
    flags = set((re.search(r"flags\s*:\s*(.+)", info) or ["", ""])[1].split())
    known = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if flag in flags]
    return f"{name[1].strip() if name else platform.machine()} ({', '.join(known) or 'no AVX2'})"


def describe(facts: JsonObject) -> str:
    """``machine()`` in one sentence."""
    packages = ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['system']}, "
        f"Python {facts['python']}, {packages}; load average before: {facts['load_before']}; {facts['date']}"
    )


@contextmanager
def progress(text: str) -> Iterator[None]:
    """Say what runs, and how long it took."""
    print(f"{text} ...", end="", file=sys.stderr, flush=True)
    started = time.monotonic()
    try:
        yield
    finally:
        print(f" {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
