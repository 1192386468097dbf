"""Measure `comment-translate file`: rows/s and peak memory, kill -9 and resume, a server as back end.

    python bench/exports.py rows models/data/train/comments.tsv distinct 10000 > rows.csv
    python bench/exports.py measure rows.csv
    python bench/exports.py measure rows.csv -- --server 127.0.0.1:50051
    python bench/exports.py kill rows.csv --times 10
    python bench/exports.py pipeline rows.csv
    python bench/exports.py route rows.csv

`pipeline` has no Translator, `route` has one whose model takes no time.
Comments come from a TSV file whose second and third columns are Chinese and English. `measure` prints a row of a
Markdown table: rows, different comments, seconds, rows/s, CPU seconds, rows per CPU second, peak memory.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import filecmp
import itertools
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from translator.config import load_settings
from translator.exports.backends import Backend, LocalBackend
from translator.exports.jobs import ExportOptions, plan
from translator.exports.pipeline import Pipeline
from translator.exports.progress import Reporter
from translator.exports.rows import Counts, Outcome
from translator.model import PAIRS, DecodingOptions, Model, ModelDescription
from translator.service import Translator

COMMAND = [sys.executable, "-m", "translator.cli", "file"]


def comments(path: Path) -> list[str]:
    """Chinese comments of a TSV file, each once."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    return list(dict.fromkeys(row[1] for row in rows if len(row) >= 3))


def distinct(pool: list[str], seed: int = 1) -> Iterator[str]:
    """Endlessly many different comments: those of the pool, then beginnings of some with endings of others."""
    yield from pool
    halves = [(c[: len(c) // 2], c[len(c) // 2 :]) for c in pool if len(c) > 7]
    choose = random.Random(seed)
    seen = set(pool)
    while True:
        comment = choose.choice(halves)[0] + choose.choice(halves)[1]
        if comment not in seen:
            seen.add(comment)
            yield comment


def repeated(pool: list[str], rows: int, seed: int = 1) -> Iterator[str]:
    """Comments drawn from the pool by Zipf's law: the one of rank r is drawn in proportion to 1/r."""
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(pool) + 1)))
    choose = random.Random(seed)
    for _ in range(0, rows, 10_000):
        yield from choose.choices(pool, cum_weights=weights, k=10_000)


def write_rows(path: Path, kind: str, rows: int) -> None:
    """A CSV file with an id, the comment, and two columns of the kind that exports have."""
    pool = comments(path)
    texts = distinct(pool) if kind == "distinct" else repeated(pool[: max(1000, rows // 20)], rows)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["id", "created_at", "text", "likes"])
    for i, text in enumerate(itertools.islice(texts, rows)):
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(1_700_000_000 + i))
        writer.writerow([10**15 + i, moment, text, i % 1000])


def measure(path: Path, flags: list[str]) -> None:
    """One run as a row of a table, of a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / f"out{''.join(path.suffixes)}"
        command = [*COMMAND, str(path), "-o", str(output), "-c", "text", "-t", "en", *flags]
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        assert process.stderr is not None
        log = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        if os.waitstatus_to_exitcode(status) > 1:
            sys.exit(log)
    print(log, file=sys.stderr)
    figures = re.search(r"([\d,]+) rows, ([\d,]+) comments translated, ([\d,]+) of them", log)
    speed = re.search(r"([\d,.]+) s, ([\d,]+) rows/s", log)
    if figures is None or speed is None:
        sys.exit(f"no summary in: {log}")
    rows, done, repeats = (int(figure.replace(",", "")) for figure in figures.groups())
    memory = usage.ru_maxrss / 1024
    busy = usage.ru_utime + usage.ru_stime
    cells = [f"{rows:,}", f"{done - repeats:,}", speed[1], speed[2], f"{busy:,.0f}", f"{rows / busy:,.0f}"]
    print(f"| {' | '.join(cells)} | {memory:,.0f} MB |", flush=True)


class CopyBackend:
    """Translates nothing: what is left is reading, remembering and writing."""

    tokens = None

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def translate(self, texts: Sequence[str]) -> list[Outcome]:
        return [Outcome(text, "zh-Hans") for text in texts]


class CopyModel:
    """A model that takes no time: what is left besides is detection, masking, batching and the cache."""

    max_tokens = 512

    def __init__(self, pair: str) -> None:
        self.description = ModelDescription("copy", pair, "1", "CC0-1.0", "copy", "cpu", "exact")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[*map(ord, text), 0] for text in texts]

    def generate(self, batch: Sequence[Sequence[int]], options: DecodingOptions) -> list[list[int]]:
        return [list(ids[:-1]) for ids in batch]

    def decode(self, batch: Sequence[Sequence[int]]) -> list[str]:
        return ["".join(map(chr, ids)) for ids in batch]

    def close(self) -> None: ...


class MemoryReporter(Reporter):
    """Prints the memory of the process now and then, to show whether it grows."""

    def __init__(self, every: int) -> None:
        super().__init__("none")
        self._every = self._next = every

    def update(self, name: str, counts: Counts, tokens: int | None, fraction: float | None) -> None:
        if counts.rows >= self._next:
            self._next += self._every
            resident = re.search(r"VmRSS:\s*(\d+)", Path("/proc/self/status").read_text())
            print(f"{counts.rows:,} rows, {int(resident[1]) // 1024 if resident else 0} MB", flush=True)


def without_model(path: Path, part: str) -> None:
    """Time and memory of everything but the model."""
    backend: Backend = CopyBackend()
    if part == "route":
        models: dict[tuple[str, str], Model] = {("copy", pair): CopyModel(pair) for pair in PAIRS}
        # The guard would find every copy unfit.
        backend = LocalBackend(Translator(load_settings({"guard": False}), models), "en")
    with tempfile.TemporaryDirectory() as folder:
        options = ExportOptions(("text",), "en")
        jobs, _ = plan([str(path)], f"{folder}/out{''.join(path.suffixes)}", options)
        started = time.process_time()
        reporter = MemoryReporter(20_000 if part == "route" else 200_000)
        summary = asyncio.run(Pipeline(backend, reporter).run(jobs))
        busy = time.process_time() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rates = f"{summary.here / summary.seconds:,.0f} | {busy:,.0f} | {summary.here / busy:,.0f}"
    print(f"| {summary.here:,} | {summary.seconds:,.1f} | {rates} | {memory:,.0f} MB |")


def kill(path: Path, times: int, flags: list[str], seed: int) -> None:
    """Kill runs at random moments and resume; the output has to be the same as that of one quiet run.

    A model's answers depend a little on what else is in the batch, and that depends on timing. So sentences are
    translated one by one here, few at a time.
    """
    choose = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, pieces = Path(folder) / "whole.csv", Path(folder) / "pieces.csv"
        tail = [str(path), "-c", "text", "-t", "en", "--progress", "none", "--max-batch-tokens", "16", *flags]
        tail += ["--in-flight", "50"]
        started = time.monotonic()
        subprocess.run([*COMMAND, *tail, "-o", str(whole)], check=False)
        seconds = time.monotonic() - started
        for attempt in range(times):
            process = subprocess.Popen([*COMMAND, *tail, "-o", str(pieces), "--resume"])
            part = pieces.with_name("pieces.csv.work") / "part"
            before = part.stat().st_size if part.exists() else 0
            while process.poll() is None and (not part.exists() or part.stat().st_size <= before):
                time.sleep(0.01)  # the start is the least interesting time
            time.sleep(choose.uniform(0, 2) * seconds / times / 2)
            process.send_signal(signal.SIGKILL)
            ended = process.wait()
            size = part.stat().st_size if part.exists() else 0
            print(f"killed {attempt + 1} of {times}: status {ended}, {size:,} bytes written", flush=True)
        status = subprocess.run([*COMMAND, *tail, "-o", str(pieces), "--resume"], check=False).returncode
        rows = sum(1 for _ in pieces.open("rb")) - 1
        same = filecmp.cmp(whole, pieces, shallow=False)
        print(f"resumed: status {status}, {rows:,} rows, the output is {'the same' if same else 'DIFFERENT'}")
        sys.exit(not same)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    rows = commands.add_parser("rows", help="write a CSV file to standard output")
    rows.add_argument("comments", type=Path)
    rows.add_argument("kind", choices=["distinct", "repeated"])
    rows.add_argument("count", type=int)
    for name in ("pipeline", "route"):
        commands.add_parser(name).add_argument("file", type=Path)
    for name in ("measure", "kill"):
        command = commands.add_parser(name)
        command.add_argument("file", type=Path)
        command.add_argument("flags", nargs="*", help="after --: flags of comment-translate file")
        if name == "kill":
            command.add_argument("--times", type=int, default=10)
            command.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.command == "rows":
        write_rows(arguments.comments, arguments.kind, arguments.count)
    elif arguments.command in ("pipeline", "route"):
        without_model(arguments.file, arguments.command)
    elif arguments.command == "measure":
        measure(arguments.file, arguments.flags)
    else:
        kill(arguments.file, arguments.times, arguments.flags, arguments.seed)


if __name__ == "__main__":
    main()
