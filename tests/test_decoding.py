"""The torch engine's own decoding says what transformers' `generate` says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import chinese_sentences, make_settings
from transformers import MarianConfig, MarianMTModel

from translator import engines, registry
from translator.engines import marian_torch
from translator.engines.decoding import Decoder, unsupported
from translator.engines.marian_torch import Generate
from translator.errors import ModelError
from translator.model import DecodingOptions
from translator.vocabulary import Vocabulary

EMBEDDED = registry.models_dir() / "embedded"
SENTENCES = {
    "zh-en": [
        "这家店的奶茶绝了",
        "好",
        "今天天气真好，我们一起去公园走走吧，记得带上孩子和水。",
        *chinese_sentences(5),
    ],
    "en-zh": [
        "This place is unreal",
        "ok",
        "I watched it three times and I still do not know what it is about.",
        "lol",
    ],
}
# Pieces of the random models; small, so that n-grams do repeat.
EOS, PAD = 0, 129
OPUS = {
    "vocab_size": PAD + 1, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "activation_function": "swish",
    "max_position_embeddings": 100, "scale_embedding": True, "pad_token_id": PAD, "eos_token_id": EOS,
    "decoder_start_token_id": PAD, "forced_eos_token_id": None, "init_std": 1.0,
}  # fmt: skip
# As in Helsinki-NLP's folders.
OPUS_GENERATION = {"bad_words_ids": [[PAD]], "num_beams": 6, "forced_eos_token_id": EOS, "renormalize_logits": True}


def random_model(generation: dict[str, Any] | None = None, eos_bias: float = 6.0, **config: Any) -> MarianMTModel:
    """A small MarianMT model in opus-mt's layout; ``eos_bias`` says how soon its outputs end."""
    torch.manual_seed(7)
    model = MarianMTModel(MarianConfig(**(OPUS | config))).eval()
    model.final_logits_bias.normal_()
    model.final_logits_bias[0, EOS] = eos_bias
    for name, value in (OPUS_GENERATION if generation is None else generation).items():
        setattr(model.generation_config, name, value)
    return model


def random_batch(count: int = 9, longest: int = 12) -> list[list[int]]:
    """Sources of unequal lengths."""
    numbers = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, longest, (count,), generator=numbers).tolist()
    return [[*torch.randint(1, PAD, (length,), generator=numbers).tolist(), EOS] for length in lengths]


def both(
    model: MarianMTModel,
    batch: list[list[int]],
    cap: int,
    options: DecodingOptions,
    static: bool | None = None,
    never: Sequence[int] = (),
) -> set[int]:
    """Assert that ours and `generate` write the same; tells the lengths."""
    assert not unsupported(model)
    expected = Generate(model)(batch, cap, options, never)
    assert Decoder(model, static=static)(batch, cap, options, never) == expected
    return {len(ids) for ids in expected}


@pytest.fixture(scope="module", params=["zh-en", "en-zh"])
def embedded(request: pytest.FixtureRequest) -> tuple[MarianMTModel, list[list[int]]]:
    folder = EMBEDDED / request.param
    model = MarianMTModel.from_pretrained(folder, dtype=torch.float32).eval()
    return model, Vocabulary(folder).encode(SENTENCES[request.param])


@pytest.mark.parametrize(("beams", "no_repeat"), [(1, 0), (1, 3), (2, 2), (4, 0)])
def test_embedded_models(embedded: tuple[MarianMTModel, list[list[int]]], beams: int, no_repeat: int) -> None:
    model, batch = embedded
    both(model, batch, 60, DecodingOptions(beams, no_repeat_ngram_size=no_repeat))


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    ("beams", "length_penalty", "no_repeat"),
    [(1, 1.0, 0), (1, 1.0, 2), (2, 1.0, 3), (3, 0.0, 1), (4, 1.0, 0), (4, 2.0, 2), (4, -0.5, 0)],
)
def test_random_model_of_opus_layout(beams: int, length_penalty: float, no_repeat: int, static: bool) -> None:
    """Static shapes, which CUDA graphs need, change nothing; nor does what opus-mt's folders ask for."""
    options = DecodingOptions(beams, length_penalty, no_repeat)
    for generation in (OPUS_GENERATION, {}):
        assert len(both(random_model(generation), random_batch(), 20, options, static)) > 2


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("generation", [OPUS_GENERATION, {}])
def test_banned_pieces_are_not_written(beams: int, generation: dict[str, Any]) -> None:
    model, never = random_model(generation), list(range(1, PAD, 2))
    both(model, random_batch(), 20, DecodingOptions(beams), never=never)
    outputs = Decoder(model)(random_batch(), 20, DecodingOptions(beams), never)
    assert sum(map(len, outputs)) > 20
    assert not {i for ids in outputs for i in ids} & set(never)


@pytest.mark.parametrize("beams", [1, 4])
def test_separate_vocabularies_without_scaling(beams: int) -> None:
    model = random_model(share_encoder_decoder_embeddings=False, decoder_vocab_size=PAD + 71, scale_embedding=False)
    both(model, random_batch(), 20, DecodingOptions(beams))


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("beams", [1, 3])
def test_the_cache_grows(beams: int, static: bool) -> None:
    """Outputs end between the first and the last position, so that the batch shrinks while the cache grows."""
    model = random_model({}, eos_bias=4.0, init_std=0.3)
    lengths = both(model, random_batch(), 99, DecodingOptions(beams), static)
    assert any(32 < length < 99 for length in lengths)


@pytest.mark.parametrize("generation", [{}, OPUS_GENERATION])
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("cap", [1, 2, 3])
def test_caps(cap: int, beams: int, generation: dict[str, Any]) -> None:
    model = random_model(generation, eos_bias=-9.0)
    both(model, random_batch(4), cap, DecodingOptions(beams))
    outputs = Decoder(model)(random_batch(4), cap, DecodingOptions(beams))
    # A forced end takes the last position.
    assert [len(ids) for ids in outputs] == [cap - ("forced_eos_token_id" in generation)] * 4


@pytest.mark.parametrize("beams", [1, 4])
def test_a_sentence_is_translated_alike_alone(beams: int) -> None:
    decode, options = Decoder(random_model()), DecodingOptions(beams)
    batch = random_batch(17)
    assert [decode([ids], 20, options)[0] for ids in batch] == decode(batch, 20, options)


def test_nothing_in_nothing_out() -> None:
    decode = Decoder(random_model())
    assert decode([], 20, DecodingOptions()) == []
    assert decode([[5, EOS]], 0, DecodingOptions()) == [[]]


def test_bfloat16_keeps_to_the_cap() -> None:
    """Rounding may tip a decision, so that only the shape of the answer can be told."""
    decode = Decoder(random_model().to(torch.bfloat16))  # type: ignore[arg-type]
    for beams in (1, 2):
        outputs = decode(random_batch(), 20, DecodingOptions(beams, no_repeat_ngram_size=2))
        assert all(len(ids) < 20 and not {EOS, PAD} & set(ids) for ids in outputs)


# The engine


@pytest.mark.parametrize(
    ("generation", "reason"),
    [
        ({"repetition_penalty": 1.3}, "repetition_penalty"),
        ({"early_stopping": True}, "early_stopping"),
        ({"bad_words_ids": [[3, 4]]}, "bad_words_ids"),
        ({"eos_token_id": [EOS, 5]}, "end-of-sentence"),
    ],
)
def test_what_is_not_supported_is_named(generation: dict[str, Any], reason: str) -> None:
    assert reason in unsupported(random_model(generation))


def load(folder: Path, cache_dir: Path) -> marian_torch.TorchModel:
    settings = make_settings(
        engine="torch", device="cpu", compute_type="float32", intra_threads=1, model=f"zh-en={folder}"
    )
    model = engines.load(registry.locate(registry.sources(settings.model)[0], cache_dir), settings)
    assert isinstance(model, marian_torch.TorchModel)
    return model


def test_an_unsupported_folder_runs_on_generate(tmp_path: Path) -> None:
    folder = shutil.copytree(EMBEDDED / "zh-en", tmp_path / "model")
    plain = load(folder, tmp_path)
    batch = plain.encode(SENTENCES["zh-en"])
    expected = plain.generate(batch, DecodingOptions())
    config = folder / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"repetition_penalty": 1.0001}))
    slow = load(folder, tmp_path)
    assert slow.generate(batch, DecodingOptions()) == expected
    assert slow.generate([], DecodingOptions()) == plain.generate([], DecodingOptions()) == []
    assert [type(model._translate) for model in (plain, slow)] == [Decoder, Generate]


def test_a_closed_model_says_so(tmp_path: Path) -> None:
    model = load(EMBEDDED / "zh-en", tmp_path)
    model.close()
    model.close()
    with pytest.raises(ModelError, match="closed"):
        model.generate([[5, 0]], DecodingOptions())


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("avx2 fma", "float32"), ("avx512f avx512_bf16", "bfloat16"), ("amx_tile amx_bf16", "bfloat16")],
)
def test_bfloat16_only_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch, flags: str, expected: str) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"processor : 0\nflags\t\t: fpu {flags}\n")
    assert marian_torch._best_compute_type("cpu") == expected


# The benchmark


def test_the_benchmark_compares_like_with_like(tmp_path: Path) -> None:
    from bench import decoding

    encoded = sorted(random_batch(40), key=len)
    assert [len(batch) for batch in decoding.batches_of(encoded, 8)] == [8, 8]
    assert decoding.batches_of(encoded, 40) == [encoded]
    model = random_model()
    rounds: list[int] = []
    decoders = {"generate": Generate(model), "ours": Decoder(model)}
    cases = decoding.compare(decoders, encoded, [8, 64], [1, 2], 2, lambda done, _: rounds.append(done))
    assert rounds == [1, 2]
    assert [(case["beams"], case["batch"], case["same"]) for case in cases] == [(1, 8, 16), (2, 8, 16)]
    assert all(len(case["all_seconds"]["ours"]) == 2 and case["tokens"] > 0 for case in cases)
    head, rows = decoding.table({"cases": cases})
    assert all(len(row) == len(head) for row in rows)
    assert decoding.bandwidth(torch.device("cpu"), mebibytes=1) > 0
