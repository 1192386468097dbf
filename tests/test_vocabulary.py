"""Token ids: transformers' own for ordinary text, and never a control token for what only looks like one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import chinese_sentences
from hypothesis import given, settings
from hypothesis import strategies as st

from translator import registry
from translator.errors import ModelError
from translator.spans import PLACEHOLDERS
from translator.vocabulary import EOS, PAD, Vocabulary

SAMPLES = [
    "今天天气真好，我们去公园吧。", "这家店的奶茶绝了😭", "yyds!!! 绝绝子", "我們明天見", "哈哈哈哈哈哈哈",
    "The weather is lovely today.", "I can't believe it's 12:30 already :)", "LOL so gooood", "naïve café — ¿qué?",
    "RT @user: check https://t.co/abc #topic", "１２３　ＡＢＣ", "a  b   c", " leading and trailing ", "…", "℃ ½ ﷽",
    "Привет",
    "𠮷野家", "👨‍👩‍👧‍👦", "<b>bold</b> & \"quotes\"", "100% sure", "第1句。第2句！第3句？", "\u3000全角空格", "e\u0301",
    *chinese_sentences(50),
]  # fmt: skip
CONTROLS = ["</s>", "<pad>", "<unk>", "<s>", ">>cmn_Hans<<", ">>eng<<", "▁", "⁇"]


def folder_of(pair: str) -> Path:
    folder = registry.read_manifest()["embedded"][pair].folder
    assert folder
    return folder


@pytest.fixture(scope="module", params=["zh-en", "en-zh"])
def folder(request: pytest.FixtureRequest) -> Path:
    return folder_of(request.param)


@pytest.fixture(scope="module")
def vocabulary(folder: Path) -> Vocabulary:
    return Vocabulary(folder)


@pytest.mark.filterwarnings("ignore")
def test_ids_are_those_of_transformers(folder: Path, vocabulary: Vocabulary) -> None:
    from transformers import MarianTokenizer

    theirs = MarianTokenizer.from_pretrained(folder, local_files_only=True)
    for text, ids in zip(SAMPLES, vocabulary.encode(SAMPLES), strict=True):
        assert ids == theirs(text).input_ids, text
    for ids in vocabulary.encode(SAMPLES):
        target = [i for i in ids if i < len(vocabulary.target_pieces)]
        assert vocabulary.decode([target]) == [theirs.decode(target, skip_special_tokens=True).strip()]


@pytest.mark.parametrize("control", CONTROLS)
def test_text_never_becomes_a_control_token(vocabulary: Vocabulary, control: str) -> None:
    pieces = vocabulary.source_pieces
    for text in (control, f"我{control}你", f"{control} {control}", f"a{control}"):
        (ids,) = vocabulary.encode([text])
        assert ids.count(vocabulary.encode([""])[0][-1]) == 1, "the end of the sentence stands once, at its end"
        assert not {pieces[i] for i in ids[:-1]} & {EOS, PAD, "<s>", ">>cmn_Hans<<", ">>eng<<"}


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_has_ids_within_the_vocabulary(text: str) -> None:
    vocabulary = _zh_en()
    (ids,) = vocabulary.encode([text])
    assert vocabulary.source_pieces[ids[-1]] == EOS
    assert all(0 <= i < len(vocabulary.source_pieces) for i in ids)
    assert not {vocabulary.source_pieces[i] for i in ids[:-1]} & {EOS, PAD}


_cached: list[Vocabulary] = []


def _zh_en() -> Vocabulary:
    if not _cached:
        _cached.append(Vocabulary(folder_of("zh-en")))
    return _cached[0]


def test_encoding_does_not_truncate(vocabulary: Vocabulary) -> None:
    assert len(vocabulary.encode(["好书" * 3000])[0]) > 1000


def test_batches_are_the_same_as_single_texts(vocabulary: Vocabulary) -> None:
    assert vocabulary.encode(SAMPLES) == [vocabulary.encode([text])[0] for text in SAMPLES]
    assert vocabulary.encode([]) == []


def test_control_tokens_are_left_out_of_the_output(vocabulary: Vocabulary) -> None:
    pieces = {piece: i for i, piece in enumerate(vocabulary.target_pieces)}
    (ids,) = vocabulary.encode(["hello"])
    word = ids[:-1]
    assert vocabulary.decode([[*word, pieces[EOS], pieces[PAD]]]) == vocabulary.decode([word])
    assert vocabulary.decode([[]]) == [""]


def test_a_prefix_is_put_before_every_source_and_cannot_come_from_text(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("en-zh"), tmp_path / "model"))
    ids = json.loads((folder / "vocab.json").read_text())
    ids[">>cmn_Hans<<"] = max(ids.values()) + 1
    (folder / "vocab.json").write_text(json.dumps(ids))
    vocabulary = Vocabulary(folder, ">>cmn_Hans<<")
    prefix = ids[">>cmn_Hans<<"]
    for text in ("hello", "", ">>cmn_Hans<< hello"):
        (found,) = vocabulary.encode([text])
        assert found[0] == prefix
        assert found.count(prefix) == 1
    assert vocabulary.decode([[prefix]]) == [""]
    with pytest.raises(ModelError, match=">>xyz<<"):
        Vocabulary(folder, ">>xyz<<")


@pytest.mark.parametrize("damage", ["missing", "not json", "not a model"])
def test_damage_is_a_model_error(tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(folder_of("en-zh"), tmp_path / "model"))
    if damage == "missing":
        (folder / "vocab.json").unlink()
    elif damage == "not json":
        (folder / "vocab.json").write_text("{")
    else:
        (folder / "source.spm").write_bytes(b"junk")
    with pytest.raises(ModelError):
        Vocabulary(folder)


def test_the_embedded_vocabularies_have_all_placeholders(vocabulary: Vocabulary) -> None:
    assert vocabulary.placeholders == PLACEHOLDERS
    for symbol, ids in zip(PLACEHOLDERS, vocabulary.encode(PLACEHOLDERS), strict=True):
        assert vocabulary.decode([ids]) == [symbol]


def test_a_vocabulary_that_lacks_a_placeholder_has_none(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    pieces = json.loads((copy / "vocab.json").read_text(encoding="utf-8"))
    pieces["an ordinary piece"] = pieces.pop(PLACEHOLDERS[3])
    (copy / "vocab.json").write_text(json.dumps(pieces), encoding="utf-8")
    assert Vocabulary(copy).placeholders == ()


def test_the_shortlist_into_english_offers_nothing_foreign() -> None:
    """models/ leaves them out of the shortlist by a rule of its own, which must agree with that of the engines."""
    folder = folder_of("zh-en")
    vocabulary = Vocabulary(folder)
    lines = (folder / registry.SHORTLIST).read_text(encoding="utf-8").splitlines()
    offered = {piece for line in lines for piece in line.split("\t")[1].split(" ")}
    foreign = {vocabulary.target_pieces[i] for i in vocabulary.foreign_ids("zh-en")}
    assert len(foreign) > 5000
    assert not foreign & offered
    assert {"▁the", "!"} <= offered
    assert vocabulary.foreign_ids("en-zh") == []
