"""Train, fine-tune, score and export the translation models.

From the data in ``models/data`` to a model folder::

    python models/train.py prepare --out runs/data
    python models/train.py train --data runs/data --pair zh-en --out runs/zh-en
    python models/train.py export --run runs/zh-en --pair zh-en --out my-model/zh-en
    python models/train.py evaluate --model my-model/zh-en --pair zh-en models/data/dev/*.tsv

A model adapted to your own comments, a file of two tab-separated columns, zh and en::

    python models/train.py finetune --base models/embedded/zh-en --pair zh-en pairs.tsv --out mine

Exit status: 0 done, 1 bad input (the message names file and line), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# glibc gives freed memory back to the system by default, and taking it again costs up to four
# fifths of a training step on a CPU. It reads these settings when a process starts.
_MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
if __name__ == "__main__" and sys.platform == "linux" and not _MALLOC.keys() <= os.environ.keys():
    os.execve(sys.executable, [sys.executable, *sys.argv], {**_MALLOC, **os.environ})

import torch  # noqa: E402
import transformers  # noqa: E402

import corpus  # noqa: E402
import curves  # noqa: E402
import evaluation  # noqa: E402
import network  # noqa: E402
import packed  # noqa: E402
import shortlist  # noqa: E402
import training  # noqa: E402

HERE = Path(__file__).resolve().parent


def prepare(args: argparse.Namespace) -> None:
    """Clean, encode and pack a data folder, once for all runs."""
    packed.prepare(
        args.data,
        args.out,
        tokenizer=args.tokenizer,
        vocab_size=args.vocab_size,
        max_pieces=args.max_pieces,
        copies=packed.COPIES,
    )


def train(args: argparse.Namespace) -> None:
    """Train one direction; run again with the same --out to go on after a kill."""
    device = training.pick_device(args.device)
    torch.set_num_threads(args.threads)
    sources = packed.load_sources(args.data, args.pair)
    gpu = device.type == "cuda"
    weights = json.loads(args.weights) if args.weights else None
    options = training.Options(
        pair=args.pair,
        steps=args.steps,
        cooldown=args.steps // 4 if args.cooldown is None else args.cooldown,
        warmup=args.warmup,
        # A GPU is idle at batches that suit a CPU, and does not mind the whole softmax.
        max_tokens=args.max_tokens or (12_000 if gpu else 1500),
        negatives=args.negatives if args.negatives is not None else (0 if gpu else 1000),
        learning_rate=args.learning_rate or (7e-4 if gpu else 6e-4),
        curriculum=0 if args.start else args.steps // 10,
        every=args.every,
        save_every=args.save_every,
        score_every=args.score_every,
        patience=args.patience,
        seed=args.seed,
        weights=weights or training.WEIGHTS,
        last_weights=weights or training.LAST_WEIGHTS,
    )
    with tempfile.TemporaryDirectory() as scratch:
        start = Path(scratch)
        if not (args.out / "start").exists():
            _make_start(args, sources, start)
        run = training.Run(
            args.out,
            start,
            sources,
            packed.load_dev(args.data, args.pair, limit=400),
            options,
            device=device,
            dev_files=sorted((args.data / "dev").glob("*.tsv")),
            dropout=args.dropout,
        )
    run.resume()
    run.train()


def _make_start(args: argparse.Namespace, sources: dict[str, packed.Packed], folder: Path) -> None:
    """The model to begin with: that of --start or a new one, with the data's tokenizer."""
    vocabulary = json.loads((args.data / "vocab.json").read_text(encoding="utf-8"))
    if args.start:
        network.load(args.start).save_pretrained(folder)
    else:
        torch.manual_seed(args.seed)
        model = network.build(args.preset, len(vocabulary), args.dropout)
        clean = [data for name, data in sources.items() if not name.endswith("+")]
        vectors = network.semantic_embeddings(clean, len(vocabulary), model.config.d_model)
        network.set_embeddings(model, vectors)
        model.save_pretrained(folder)
    for name in ("source.spm", "target.spm", "vocab.json"):
        shutil.copyfile(args.data / name, folder / name)


def finetune(args: argparse.Namespace) -> None:
    """Adapt a Marian folder to your own pairs, and say what it gained on a part held out."""
    torch.set_num_threads(args.threads)
    lines = corpus.read_pairs(args.pairs)
    held = max(1, min(500, int(len(lines) * args.holdout)))
    if len(lines) < 2 * held:
        raise ValueError(f"{args.pairs}: {len(lines)} pairs are too few to learn from")
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(args.seed)).tolist()
    tokenizer = packed.Tokenizer(args.base)
    # A sentence that stands in both parts would flatter the figures.
    dev = [lines[i] for i in order[:held]]
    known = {side for line in dev for side in (corpus.key(line.zh), corpus.key(line.en))}
    kept = [
        line
        for line in (lines[i] for i in order[held:])
        if corpus.key(line.zh) not in known and corpus.key(line.en) not in known
    ]
    data = packed.pack(tokenizer, (line.sides(args.pair) for line in kept), 256)
    held_out = packed.pack(tokenizer, (line.sides(args.pair) for line in dev), 256)
    if not len(data) or not len(held_out):
        raise ValueError(f"{args.pairs}: no pairs of fewer than 256 pieces are left to learn from")
    per_epoch = max(1, int(data.lengths.max(axis=1).sum() / args.max_tokens))
    options = training.Options(
        pair=args.pair,
        steps=per_epoch * args.epochs,
        warmup=min(100, per_epoch),
        learning_rate=args.learning_rate,
        max_tokens=args.max_tokens,
        negatives=0,
        average=0.99,
        every=per_epoch,
        save_every=per_epoch,
        patience=3,
        seed=args.seed,
        weights={"pairs": 1.0},
    )
    with tempfile.TemporaryDirectory() as scratch:
        run = training.Run(
            Path(scratch) / "run",
            args.base,
            {"pairs": data},
            {"held_out": held_out},
            options,
            device=training.pick_device(args.device),
            dropout=args.dropout,
        )
        before = run.validate()["held_out_loss"]
        run.train()
        training.export_run(run.folder, args.out, args.pair, "best")
    print(
        f"{len(data)} pairs; loss on {len(held_out)} held-out pairs: {before:.3f} before, "
        f"{run.best:.3f} after (nats per piece). Written: {args.out}"
    )


def evaluate(args: argparse.Namespace) -> None:
    """BLEU, chrF, empty outputs, loops and speed on development files, as JSON lines."""
    torch.set_num_threads(args.threads)
    engine = evaluation.Engine(
        args.model,
        engine=args.engine,
        compute_type=args.compute_type,
        vmap=args.vmap,
        threads=args.threads,
    )
    for path in args.files:
        result, rows = evaluation.score(engine, args.pair, path, beam_size=args.beam_size, limit=args.limit)
        print(json.dumps({"beam_size": args.beam_size, **dataclasses.asdict(result)}), flush=True)
        if args.show:
            for source, reference, output in rows[: args.show]:
                print(f"  {source}\n    = {reference}\n    > {output}")


def export(args: argparse.Namespace) -> None:
    """Write a run's averaged weights as a float16 Marian folder."""
    step = training.export_run(args.run_folder, args.out, args.pair, args.which)
    print(f"{args.out}: {args.which} weights, {step} updates")


def vmap(args: argparse.Namespace) -> None:
    """Build a lexical shortlist (CTranslate2 vmap) from packed data."""
    pieces = packed.Tokenizer(args.data).pieces
    sources = packed.load_sources(args.data, args.pair)
    # Documentation and interface strings add cells by the hundred million, and few that
    # comments use.
    chosen = [
        data for name, data in sources.items() if training.WEIGHTS.get(name, 0.0) >= 0.1 and not name.endswith("+")
    ]
    # CTranslate2 leaves <pad>, the last piece, out of the vocabulary.
    pieces = pieces[:-1]
    table, frequent = shortlist.build(chosen, len(pieces), votes=args.votes, frequent=args.frequent)
    # A model unsure of a word copies it; into English that helps nobody, and any other candidate is better.
    never = set(filter(corpus.writes_han, pieces)) if args.pair.endswith("-en") else set()
    shortlist.write(args.out, table, frequent, pieces, never)


def plot(args: argparse.Namespace) -> None:
    """Draw the training curves of one or more runs from their logs."""
    curves.draw([(run / "log.jsonl") for run in args.runs], args.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        added.set_defaults(run=run)
        return added

    def shared(added: argparse.ArgumentParser, *names: str) -> None:
        if "pair" in names:
            added.add_argument("--pair", choices=corpus.PAIRS, required=True)
        if "device" in names:
            added.add_argument("--device", default="auto", help="auto, cpu, cuda (default auto)")
            added.add_argument("--dropout", type=float, default=0.1)
            added.add_argument("--seed", type=int, default=1)
        if "threads" in names:
            added.add_argument("--threads", type=int, default=os.cpu_count() or 1)

    add = command(prepare)
    add.add_argument("--data", type=Path, default=HERE / "data", help="folder with train/ and dev/")
    add.add_argument("--out", type=Path, required=True)
    add.add_argument("--tokenizer", type=Path, help="SentencePiece model to keep (default: train)")
    add.add_argument("--vocab-size", type=int, default=16_000)
    add.add_argument("--max-pieces", type=int, default=120, help="longer pairs are dropped")

    add = command(train)
    shared(add, "pair", "device", "threads")
    add.add_argument("--data", type=Path, required=True, help="what prepare wrote")
    add.add_argument("--out", type=Path, required=True, help="run folder; resumed if it exists")
    add.add_argument("--start", type=Path, help="Marian folder to go on from (same vocabulary)")
    add.add_argument("--preset", choices=sorted(network.PRESETS), default="embedded")
    add.add_argument("--steps", type=int, default=20_000)
    add.add_argument("--cooldown", type=int, help="updates at the end (default: a quarter)")
    add.add_argument("--warmup", type=int, default=400)
    add.add_argument("--learning-rate", type=float)
    add.add_argument("--max-tokens", type=int, help="padded pieces in one update")
    add.add_argument("--negatives", type=int, help="of the sampled softmax; 0 = whole vocabulary")
    add.add_argument("--save-every", type=int, default=200, help="updates between checkpoints")
    add.add_argument("--weights", help="JSON, copies of each source a round: '{\"comments\": 1}'")
    add.add_argument("--every", type=int, default=200, help="updates between validations")
    add.add_argument("--score-every", type=int, default=1000, help="updates between BLEU and chrF")
    add.add_argument("--patience", type=int, default=10, help="stop early; 0 = never")

    add = command(finetune)
    shared(add, "pair", "device", "threads")
    add.add_argument("pairs", type=Path, help="TSV: zh, en; or a header line that names them")
    add.add_argument("--base", type=Path, required=True, help="Marian folder to adapt")
    add.add_argument("--out", type=Path, required=True)
    add.add_argument("--epochs", type=int, default=10)
    add.add_argument("--learning-rate", type=float, default=2e-4)
    add.add_argument("--max-tokens", type=int, default=1000)
    add.add_argument("--holdout", type=float, default=0.1, help="part of the pairs to check on")

    add = command(evaluate)
    shared(add, "pair", "threads")
    add.add_argument("files", type=Path, nargs="+", help="development TSVs: origin, zh, en")
    add.add_argument("--model", type=Path, required=True)
    add.add_argument("--engine", choices=("ctranslate2", "transformers"), default="ctranslate2")
    add.add_argument("--compute-type", default="int8", help="CTranslate2's")
    add.add_argument("--beam-size", type=int, default=1)
    add.add_argument("--limit", type=int, help="lines of each file")
    add.add_argument("--show", type=int, default=0, help="print that many translations")
    add.add_argument("--vmap", type=Path, help="lexical shortlist, see the vmap command")

    add = command(export)
    shared(add, "pair")
    add.add_argument("--run", type=Path, required=True, dest="run_folder")
    add.add_argument("--out", type=Path, required=True)
    add.add_argument("--which", choices=("last", "best"), default="best")

    add = command(vmap)
    shared(add, "pair")
    add.add_argument("--data", type=Path, required=True, help="what prepare wrote")
    add.add_argument("--out", type=Path, required=True, help="vmap file")
    add.add_argument("--votes", type=int, default=60, help="candidates of each source piece")
    add.add_argument("--frequent", type=int, default=600, help="pieces that are always candidates")

    add = command(plot)
    add.add_argument("runs", type=Path, nargs="+")
    add.add_argument("--out", type=Path, required=True, help="PNG file")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = _parser().parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
