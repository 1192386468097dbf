"""Training side: data, tokenizer, training loop, fine-tuning and export, on tiny models."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

MODELS = Path(__file__).resolve().parent.parent / "models"
sys.path.insert(0, str(MODELS))

import corpus  # noqa: E402
import evaluation  # noqa: E402
import network  # noqa: E402
import packed  # noqa: E402
import train  # noqa: E402
import training  # noqa: E402

EMBEDDED = MODELS / "embedded"
COMMENTS = MODELS / "data" / "train" / "comments.tsv"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Several threads gain nothing on models this small, and spin when the machine is busy."""
    torch.set_num_threads(1)


def write_tsv(path: Path, rows: list[tuple[str, ...]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return path


def comment_rows(count: int) -> list[tuple[str, ...]]:
    lines = [line for line in corpus.read_lines(COMMENTS) if len(line.en) < 60]
    return [("zh", line.zh, line.en) for line in random.Random(4).sample(lines, count)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data folder of 64 training and 8 held-out comments."""
    folder = tmp_path_factory.mktemp("data")
    rows = comment_rows(72)
    write_tsv(folder / "raw" / "train" / "comments.tsv", rows[:64])
    write_tsv(folder / "raw" / "dev" / "comments.tsv", rows[64:])
    status = train.main(["prepare", "--data", str(folder / "raw"), "--out", str(folder), "--vocab-size", "900"])
    assert status == 0
    return folder


def options(**changes: object) -> training.Options:
    values: dict[str, object] = {
        "pair": "zh-en", "steps": 40, "warmup": 5, "learning_rate": 5e-3, "max_tokens": 200,
        "negatives": 100, "average": 0.9, "every": 20, "save_every": 20,
        "weights": {"comments": 1.0},
    }  # fmt: skip
    return training.Options(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tiny(data: Path) -> Path:
    """A random tiny model with the data's tokenizer."""
    folder = data / "tiny"
    vocabulary = json.loads((data / "vocab.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    network.build("tiny", len(vocabulary), 0.0).save_pretrained(folder)
    for name in ("source.spm", "target.spm", "vocab.json"):
        (folder / name).write_bytes((data / name).read_bytes())
    return folder


def new_run(folder: Path, data: Path, tiny: Path, **changes: object) -> training.Run:
    return training.Run(
        folder,
        tiny,
        packed.load_sources(data, "zh-en"),
        packed.load_dev(data, "zh-en", 8),
        options(**changes),
        device=torch.device("cpu"),
    )


def steps_logged(folder: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [record for record in records if record["event"] == "step"]


# Text


def test_no_development_line_reaches_training_on_either_side(tmp_path: Path) -> None:
    rows = comment_rows(40)
    held = ("zh", "今天的云像棉花糖。", "The clouds look like cotton candy today.")
    leaks = [
        ("zh", "今天的云，像棉花糖！", "Clouds of sugar"),
        ("en", "云朵如糖", "the clouds look like COTTON CANDY today"),
    ]
    write_tsv(tmp_path / "train" / "comments.tsv", [*rows, *leaks])
    write_tsv(tmp_path / "dev" / "comments.tsv", [held])
    lines = list(corpus.read_lines(tmp_path / "train" / "comments.tsv"))
    clean = list(corpus.clean(lines, frozenset()))
    kept = list(corpus.clean(lines, corpus.held_out(tmp_path)))
    assert len(kept) > 30
    assert [line.zh for line in clean if line not in kept] == [zh for _, zh, _ in leaks]


def test_committed_training_data_holds_no_development_line() -> None:
    forbidden = corpus.held_out(MODELS / "data")
    lines = list(corpus.clean(corpus.read_lines(COMMENTS), forbidden))
    assert len(lines) > 40_000
    assert not any(corpus.key(line.zh) in forbidden for line in lines)


def test_machine_translated_sides_are_never_targets() -> None:
    assert corpus.directions("chat_mt_zh") == ("zh-en",)
    assert corpus.directions("chat_mt_en") == ("en-zh",)


def test_shared_spans_become_placeholders_in_source_order() -> None:
    class Always(random.Random):
        def random(self) -> float:
            return 0.0

    masked = corpus.mask_shared("看 https://a.b/c ，@小王 说 😂😂", "@小王 says 😂😂 https://a.b/c", Always())
    assert masked == ("看 \ue000 ，\ue001 说 \ue002", "\ue001 says \ue002 \ue000")


@pytest.mark.parametrize("pair", corpus.PAIRS)
def test_altered_pairs_have_the_same_placeholders_on_both_sides(pair: str) -> None:
    rng = random.Random(2)
    pairs = [corpus.Line(zh, en, "").sides(pair) for _, zh, en in comment_rows(300)]
    altered = [corpus.augment(pair, *p, rng, None) for p in pairs]
    altered += [corpus.join(rng.sample(pairs, 3), pair == "zh-en", rng) for _ in range(100)]
    for source, target in altered:
        here, there = (sorted(c for c in text if c in corpus.PLACEHOLDERS) for text in (source, target))
        assert here == there
        assert here == list(corpus.PLACEHOLDERS[: len(here)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xe4\xbd\xa0\xe5\xa5\xbd\thello\none column\n", "pairs.tsv:2: expected 2"),
        (b"\xe4\xbd\xa0\xe5\xa5\xbd\t\n", "pairs.tsv:1: the en side is empty"),
        (b"\xe4\xbd\xa0\xe5\xa5\xbd\thello\n\xff\thello\n", "pairs.tsv:2: not UTF-8"),
        (b"hello\t\xe4\xbd\xa0\xe5\xa5\xbd\n", "pairs.tsv:1: the zh column is not Chinese"),
    ],
)
def test_a_bad_pair_is_named_by_its_line(
    tmp_path: Path, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_bytes(content)
    base, out = str(EMBEDDED / "zh-en"), str(tmp_path / "out")
    arguments = ["finetune", str(pairs), "--base", base, "--pair", "zh-en", "--threads", "1"]
    assert train.main([*arguments, "--out", out]) == 1
    assert message in capsys.readouterr().err


def test_a_header_names_the_columns(tmp_path: Path) -> None:
    rows = [("id", "en", "zh"), ("1", "hello", "你好")]
    (line,) = corpus.read_pairs(write_tsv(tmp_path / "pairs.tsv", rows))
    assert (line.zh, line.en) == ("你好", "hello")


# Tokenizer


def test_a_drawn_segmentation_spells_the_same_text() -> None:
    tokenizer = packed.Tokenizer(MODELS / "embedded" / "en-zh")
    text = "I own twelve eyeshadow palettes"
    best = tokenizer.source_pieces(text)
    drawn = [tokenizer.source_pieces(text, alpha=0.3) for _ in range(20)]
    assert {"".join(pieces) for pieces in drawn} == {"".join(best)}
    assert len({tuple(pieces) for pieces in drawn}) > 5


@pytest.mark.parametrize(
    "text",
    [
        "\ue000你好\ue001世界\ue00f",
        "so \ue000 good \ue001\ue002 !",
        "\ue000",
        "a\ue003b",
        "👩‍👧 \ufffd ok",
    ],
)
@pytest.mark.parametrize("kind", ["new", "reserved"])
def test_placeholders_survive_a_round_trip(kind: str, text: str, data: Path, tmp_path: Path) -> None:
    folder = data
    if kind == "reserved":
        old = tmp_path / "old.spm"
        lines = [corpus.Line(zh, en, "") for _, zh, en in comment_rows(64)]
        packed.train_tokenizer(lines, 900, old)
        proto = packed.spm_proto.ModelProto.FromString(old.read_bytes())
        for i, symbol in enumerate(corpus.PLACEHOLDERS):
            index = next(j for j, piece in enumerate(proto.pieces) if piece.piece == symbol)
            proto.pieces[index].piece = f"never{i}"
            proto.pieces[index].type = 1
        before = [piece.piece for piece in proto.pieces]
        texts = [side for line in lines for side in (line.zh, line.en)]
        model = packed.reserve_placeholders(proto.SerializeToString(), texts)
        after = [piece.piece for piece in packed.spm_proto.ModelProto.FromString(model).pieces]
        assert sum(a != b for a, b in zip(before, after, strict=True)) == len(corpus.PLACEHOLDERS)
        for name in ("source.spm", "target.spm"):
            (tmp_path / name).write_bytes(model)
        packed.write_vocabulary(tmp_path / "source.spm")
        folder = tmp_path
    tokenizer = packed.Tokenizer(folder)
    pieces = tokenizer.source_pieces(text)
    assert [p for p in pieces if p in corpus.PLACEHOLDERS] == [c for c in text if c in corpus.PLACEHOLDERS]
    assert tokenizer.text_from_ids(tokenizer.target_ids(text)) == text


def test_control_token_text_stays_text(data: Path) -> None:
    tokenizer = packed.Tokenizer(data)
    ids = tokenizer.source_ids("</s> <pad>")
    assert packed.EOS not in ids
    assert len(json.loads((data / "vocab.json").read_text(encoding="utf-8"))) - 1 not in ids


# Batches


def test_batches_repeat_and_can_be_entered_anywhere(data: Path) -> None:
    mixture = packed.Mixture(
        packed.load_sources(data, "zh-en"),
        {"comments": 1.5, "comments+": 0.5, "absent": 1.0},
        max_tokens=150,
        pad=899,
        seed=3,
    )
    stream = mixture.batches()
    first = [next(stream) for _ in range(60)]
    again = mixture.batches(skip=41)
    for batch in first[41:]:
        other = next(again)
        assert (batch.source == other.source).all()
        assert (batch.target == other.target).all()
    for batch in first:
        assert len(batch.source) == 1 or batch.source.size <= 150


# Training


def test_a_tiny_model_learns_its_pairs(tmp_path: Path, data: Path, tiny: Path) -> None:
    new_run(tmp_path, data, tiny, steps=300, every=100, negatives=0).train()
    losses = [record["loss"] for record in steps_logged(tmp_path)]
    assert losses[-1] < 0.6 * losses[0]


def test_the_sampled_softmax_approaches_the_whole_one(data: Path, tiny: Path) -> None:
    source = packed.load_sources(data, "zh-en")["comments"]
    (batch, *_) = packed.in_order(source, 899)
    model = network.load(tiny)
    model.train(False)
    ids = torch.from_numpy(batch.source), torch.from_numpy(batch.target)
    # As of a large corpus: of 64 comments alone, most pieces are unseen, and the smoothing of their counts is a bias.
    frequency = 1000 * training.frequency({"comments": source}, {"comments": 1.0}, 900)
    whole, count = network.Loss(frequency, 0, 0.0)(model, *ids)
    torch.manual_seed(1)
    draws = [network.Loss(frequency, 400, 0.0)(model, *ids) for _ in range(20)]
    assert {same for _, same in draws} == {count}
    sampled = sum(float(loss) for loss, _ in draws) / len(draws)
    assert sampled == pytest.approx(float(whole), rel=0.05)


def test_copies_are_unlearnt_however_rare_as_targets(data: Path, tiny: Path) -> None:
    source = packed.load_sources(data, "zh-en")["comments"]
    (batch, *_) = packed.in_order(source, 899)
    model = network.load(tiny)
    (copied, *_) = set(batch.source.flatten().tolist()) - set(batch.target.flatten().tolist())
    model.final_logits_bias[0, copied] = 50.0
    frequency = np.full(900, 10**9)
    frequency[copied] = 0
    loss, _ = network.Loss(frequency, 5, 0.0)(model, torch.from_numpy(batch.source), torch.from_numpy(batch.target))
    assert loss > 20


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, data: Path, tiny: Path) -> None:
    new_run(tmp_path / "whole", data, tiny).train()
    killed = new_run(tmp_path / "killed", data, tiny, steps=40)
    killed.save = lambda: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    fresh = new_run(tmp_path / "resumed", data, tiny)
    assert not fresh.resume()
    half = new_run(tmp_path / "resumed", data, tiny, steps=40)
    steps, half.options.steps = half.options.steps, 20
    half.train()
    resumed = new_run(tmp_path / "resumed", data, tiny, steps=steps)
    assert resumed.resume()
    assert resumed.step == 20
    resumed.train()
    whole = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)
    again = torch.load(tmp_path / "resumed" / "checkpoint.pt", weights_only=True)
    for name, value in whole["average"].items():
        torch.testing.assert_close(again["average"][name], value)


def test_training_stops_when_it_no_longer_gains(tmp_path: Path, data: Path, tiny: Path) -> None:
    run = new_run(tmp_path, data, tiny, learning_rate=0.0, every=5, patience=2)
    run.train()
    assert run.step < run.options.steps


@pytest.mark.parametrize(
    ("source", "output", "loops"),
    [
        ("哈哈哈哈哈哈标准答案", "Hahahahaha standard answer", False),
        ("go go go go go", "冲冲冲冲冲冲冲冲", False),
        ("展示了典型用法", "to define the hose the hose the hose the hose x", True),
        ("not displayed", "在acacacacy", True),
        ("哈哈，标准答案", "standard answer", False),
    ],
)
def test_a_loop_is_what_no_person_repeated(source: str, output: str, loops: bool) -> None:
    assert evaluation.is_loop(output, source, "a reference") is loops


def test_an_exported_model_loads_everywhere(tmp_path: Path, data: Path, tiny: Path) -> None:
    from safetensors.torch import load_file
    from transformers import MarianMTModel, MarianTokenizer

    run = new_run(tmp_path / "run", data, tiny)
    run.train()
    out = tmp_path / "out"
    arguments = ["export", "--run", str(run.folder), "--pair", "zh-en", "--out", str(out)]
    assert train.main(arguments) == 0
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.float16}
    assert isinstance(MarianMTModel.from_pretrained(out), MarianMTModel)
    tokenizer = MarianTokenizer.from_pretrained(out)
    mine = packed.Tokenizer(out)
    assert tokenizer("你好\ue000").input_ids == [*mine.source_ids("你好\ue000"), packed.EOS]
    texts = ["你好", "谢谢大家"]
    fast = evaluation.Engine(out, compute_type="float32").translate(texts)
    assert fast == evaluation.Engine(out, engine="transformers").translate(texts)


def test_a_shortlist_offers_translations_and_copies(data: Path, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "vmap.txt"
    arguments = ["--pair", "zh-en", "--votes", "5", "--frequent", "20", "--out", str(path)]
    assert train.main(["vmap", "--data", str(data), *arguments]) == 0
    lines = dict(line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    assert set(corpus.PLACEHOLDERS) <= set(lines[""].split())
    pieces = packed.Tokenizer(data).pieces[:-1]
    assert set(lines) == {"", *pieces}
    offered = {candidate for candidates in lines.values() for candidate in candidates.split()}
    for piece, candidates in lines.items():
        if piece and not corpus.writes_han(piece):
            assert piece in candidates.split()
    assert offered
    assert not any(corpus.writes_han(piece) for piece in offered)  # no Chinese in English
    engine = evaluation.Engine(tiny, compute_type="float32", vmap=path)
    assert len(engine.translate(["你好"])) == 1


# Fine-tuning


def finetune(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    rows = [(zh, en) for _, zh, en in comment_rows(300)]
    # A house style that no other data has: what a user's own pairs would teach.
    rows = [(zh, f"[us] {en}") for zh, en in rows]
    pairs = write_tsv(tmp_path / "pairs.tsv", rows)
    arguments = ["finetune", str(pairs), "--base", str(base), "--pair", "zh-en", "--epochs", "2"]
    arguments += ["--threads", "1", "--out", str(tmp_path / "mine"), *more]
    assert train.main(arguments) == 0
    return capsys.readouterr().out.splitlines()[-1]


def test_finetuning_the_embedded_model_gains_on_held_out_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = finetune(tmp_path, EMBEDDED / "zh-en", capsys, "--max-tokens", "500")
    words = said.split()
    before, after = float(words[words.index("before,") - 1]), float(words[words.index("after") - 1])
    assert after < before - 0.2
    outputs = evaluation.Engine(tmp_path / "mine").translate(["今天好开心", "谢谢你"])
    assert all(output.strip() for output in outputs)


def test_finetuning_works_with_separate_tokenizers_and_a_language_prefix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The layout of opus-mt: two SentencePiece models, one vocab.json in another order."""
    base = tmp_path / "opus"
    base.mkdir()
    pieces: dict[str, None] = {">>cmn_Hans<<": None, "<unk>": None}
    for side, keep in (("source", 0), ("target", 1)):
        texts = [row[1 + keep] for row in comment_rows(300)]
        lines = [corpus.Line(text, text, "") for text in texts]
        packed.train_tokenizer(lines, 2000, base / f"{side}.spm")
        proto = packed.spm_proto.ModelProto.FromString((base / f"{side}.spm").read_bytes())
        pieces |= dict.fromkeys(piece.piece for piece in proto.pieces)
    vocabulary = {piece: i for i, piece in enumerate(sorted(pieces.keys() - {"</s>"}), 1)}
    vocabulary |= {"</s>": 0, "<pad>": len(vocabulary) + 1}
    (base / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    network.build("tiny", len(vocabulary), 0.1).save_pretrained(base)
    said = finetune(tmp_path, base, capsys, "--learning-rate", "0.005")
    assert "after" in said
    ids = packed.Tokenizer(tmp_path / "mine").source_ids("你好")
    assert ids[0] == vocabulary[">>cmn_Hans<<"]
