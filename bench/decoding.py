"""The torch engine's own decoding against transformers' `generate`, in one process with the same weights.

    python -m bench.decoding [--model embedded] [--pair zh-en] [--device cpu] [--batches 1,8,32,128,256] [--beams 1,4]

A batch holds sentences of bench/data that are neighbours in length, around the median, as the server makes them. Each
round runs every batch with both, one right after the other; medians over the rounds are compared, so that the capture
of graphs, in the first round, does not count. The time is that of the whole call, encoder included; tokens are those
written, end-of-sentence left out. On CUDA, where this was never run, the share of the memory's bandwidth is shown:
what reading the decoder's weights once a step needs at the least, of the time that was needed. The result goes to
bench/results/.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench.harness import RESULTS, JsonObject, describe, machine, median, progress, read_requests
from bench.report import Table, markdown_table, number, share
from translator import registry
from translator.allocator import keep_freed_memory
from translator.config import load_settings
from translator.engines import available_cores
from translator.engines.decoding import Decoder
from translator.engines.marian_torch import Generate, load_weights
from translator.model import DecodingOptions
from translator.vocabulary import Vocabulary

# Sentences of a run at the least: small batches are repeated with other sentences.
SENTENCES = 16


def batches_of(encoded: Sequence[list[int]], size: int) -> list[list[list[int]]]:
    """Batches of ``size`` neighbours in length, around the median, from sentences that are sorted by it."""
    count = max(1, SENTENCES // size)
    first = max(0, (len(encoded) - count * size) // 2)
    return [list(encoded[at : at + size]) for at in range(first, first + count * size, size)]


def bandwidth(device: torch.device, mebibytes: int = 512) -> float:
    """Bytes/s of the device's memory, read and written, found by copying."""
    source = torch.ones(mebibytes << 18, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        target.copy_(source)
        float(target[0])  # waits for a GPU
        seconds.append(time.perf_counter() - started)
    return 2 * source.nbytes / min(seconds)


def run(
    decode: Callable[..., list[list[int]]], batches: list[list[list[int]]], beams: int
) -> tuple[float, list[list[int]]]:
    """Seconds, and the outputs."""
    options = DecodingOptions(beam_size=beams)
    outputs: list[list[int]] = []
    started = time.perf_counter()
    for batch in batches:
        cap = options.max_target_tokens(max(map(len, batch)), 511)
        outputs += decode(batch, cap, options)
    return time.perf_counter() - started, outputs


def table(result: JsonObject) -> Table:
    """All cases, one a line."""
    head = "search", "batch", "generate, tokens/s", "ours, tokens/s", "ours is faster by", "same outputs"
    on_gpu = any("bandwidth_share" in row for row in result["cases"])
    rows: list[Sequence[str]] = []
    for row in result["cases"]:
        search = "greedy" if row["beams"] == 1 else f"{row['beams']} beams"
        rates = (row["tokens"] / row["seconds"][name] for name in ("generate", "ours"))
        cells = [
            search,
            str(row["batch"]),
            *map(number, rates),
            f"{row['ratio']:.2f} x",
            f"{row['same']} of {row['sentences']}",
        ]
        rows.append([*cells, share(row.get("bandwidth_share"))] if on_gpu else cells)
    return ((*head, "of the memory's bandwidth") if on_gpu else head), rows


def write(result: JsonObject, target: Path) -> None:
    """Write ``target`` as .json and .md."""
    target.parent.mkdir(exist_ok=True)
    target.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    about = (
        f"{result['model']}, {result['compute_type']} on {result['device']}, {result['threads']} threads; "
        f"{result['rounds']} rounds."
    )
    parts = ["# Decoding on torch, beside transformers' generate", f"{describe(result['machine'])}. {about}"]
    target.with_suffix(".md").write_text("\n\n".join([*parts, markdown_table(table(result))]) + "\n", encoding="utf-8")


def compare(
    decoders: dict[str, Callable[..., list[list[int]]]],
    encoded: Sequence[list[int]],
    sizes: Sequence[int],
    beams: Sequence[int],
    rounds: int,
    after_round: Callable[[int, list[JsonObject]], None] = lambda number, cases: None,
) -> list[JsonObject]:
    """Cases with the seconds of ``ours`` and ``generate``, in rounds that are interleaved.

    Args:
        encoded: source ids, sorted by length.
        after_round: told the rounds done and the cases so far.
    """
    cases: list[JsonObject] = []
    for number_of_beams in beams:
        for size in sizes:
            if size <= len(encoded):
                cases.append({"beams": number_of_beams, "batch": size, "all_seconds": {name: [] for name in decoders}})
    for done in range(rounds):
        for case in cases:
            batches = batches_of(encoded, case["batch"])
            outputs = {}
            for name, decode in decoders.items():
                if not done:
                    run(decode, [batches[0][:8]], case["beams"])
                seconds, outputs[name] = run(decode, batches, case["beams"])
                case["all_seconds"][name].append(seconds)
            ours = outputs["ours"]
            case["seconds"] = {name: median(values) for name, values in case["all_seconds"].items()}
            case["ratio"] = case["seconds"]["generate"] / case["seconds"]["ours"]
            case["sentences"], case["tokens"] = len(ours), sum(map(len, ours))
            case["same"] = sum(a == b for a, b in zip(ours, outputs["generate"], strict=True))
            lengths = [len(ids) for ids in ours]
            size = case["batch"]
            case["steps"] = sum(1 + max(lengths[at : at + size]) for at in range(0, len(lengths), size))
        after_round(done + 1, cases)
    return cases


def main() -> None:
    """Run it and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="as the setting of this name")
    parser.add_argument("--pair", default="zh-en")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compute-type", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--batches", default="", help="sizes; by default 1,8,32,128,256 and on CUDA 1024")
    parser.add_argument("--beams", default="1,4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="decoding", help="name of the files in bench/results/")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the server does
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    sizes, beams = (
        [int(n) for n in text.split(",")]
        for text in (arguments.batches or ("1,8,32,128,256" + ",1024" * (device.type == "cuda")), arguments.beams)
    )
    source = next(s for s in registry.sources(arguments.model) if s.pair == arguments.pair)
    folder = registry.locate(source, load_settings().cache_dir)
    vocabulary = Vocabulary(folder.path, folder.target_prefix)
    language = arguments.pair[:2]
    texts = [t for r in read_requests("distinct") if r["source_language_code"][:2] == language for t in r["contents"]]
    encoded = sorted((ids for ids in vocabulary.encode(texts) if len(ids) <= folder.max_tokens), key=len)
    model = load_weights(folder.path, device.type, arguments.compute_type).to(device).eval()  # type: ignore[arg-type]
    result: JsonObject = {
        "machine": machine(),
        "model": f"{source.name}/{source.pair}",
        "compute_type": arguments.compute_type,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": arguments.threads,
    }
    decoder_bytes = sum(p.nbytes for p in (*model.model.decoder.layers.parameters(), model.lm_head.weight))
    if device.type == "cuda":
        result["bandwidth"] = bandwidth(device)

    def keep(done: int, cases: list[JsonObject]) -> None:
        for case in cases if "bandwidth" in result else ():
            least = case["steps"] * decoder_bytes / result["bandwidth"]
            case["bandwidth_share"] = least / case["seconds"]["ours"]
        write(result | {"rounds": done, "cases": cases}, RESULTS / arguments.name)

    with progress("measuring"):
        decoders = {"generate": Generate(model), "ours": Decoder(model)}
        compare(decoders, encoded, sizes, beams, arguments.rounds, keep)
    print((RESULTS / arguments.name).with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
