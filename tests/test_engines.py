"""Both engines run the same weights and say the same."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import regex
from conftest import chinese_sentences, make_settings
from sacrebleu.metrics import CHRF

from translator import engines, registry
from translator.engines import marian_ct2
from translator.engines.marian_ct2 import choose_compute_type, convert
from translator.errors import ConfigError, ModelError
from translator.model import DecodingOptions, Model
from translator.registry import ModelFolder

SENTENCES = [
    "今天天气真好，我们去公园吧。", "我很喜欢这首歌", "这个视频太好笑了", "谢谢你的分享", "你在哪里买的？",
    "他昨天没有来上班", "这家店的东西很贵，但是质量很好", "请问有人知道怎么做吗", "我妈妈做的菜最好吃",
    "明天要下雨了，记得带伞", "好久不见，你最近怎么样？", "这部电影我看了三遍", "太可爱了吧", "楼主说得对",
    "我也想去北京旅游", "别担心，一切都会好的", *chinese_sentences(24),
]  # fmt: skip
OPTIONS = DecodingOptions()


@pytest.fixture(scope="module")
def folder(cache_dir: Path) -> ModelFolder:
    return registry.locate(registry.read_manifest()["embedded"]["zh-en"], cache_dir)


def load(folder: ModelFolder, cache_dir: Path, engine: str, compute_type: str) -> Model:
    settings = make_settings(
        engine=engine, device="cpu", compute_type=compute_type, workers=1, intra_threads=2, cache_dir=cache_dir
    )
    return engines.load(folder, settings)


def translate(model: Model, texts: list[str], options: DecodingOptions = OPTIONS) -> list[str]:
    return model.decode(model.generate(model.encode(texts), options))


@pytest.fixture(scope="module")
def ct2_int8(folder: ModelFolder, cache_dir: Path) -> Model:
    return load(folder, cache_dir, "ct2", "int8")


@pytest.fixture(scope="module")
def ct2_float32(folder: ModelFolder, cache_dir: Path) -> Model:
    return load(folder, cache_dir, "ct2", "float32")


@pytest.fixture(scope="module")
def torch_float32(folder: ModelFolder, cache_dir: Path) -> Model:
    return load(folder, cache_dir, "torch", "float32")


def share_of_identical(one: list[str], other: list[str]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def test_the_same_weights_in_the_same_precision_say_the_same(ct2_float32: Model, torch_float32: Model) -> None:
    whole = DecodingOptions(shortlist=False)  # torch knows no shortlist
    ours, theirs = (translate(model, SENTENCES, whole) for model in (ct2_float32, torch_float32))
    share = share_of_identical(ours, theirs)
    print(f"ct2 float32 and torch float32: {share:.1%} of {len(SENTENCES)} outputs identical")
    # A rounding may tip a close decision; more than that means that the two do not compute the same thing.
    assert share >= 0.95, [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]]


def test_beam_search_agrees_too(ct2_float32: Model, torch_float32: Model) -> None:
    beam = DecodingOptions(beam_size=4, no_repeat_ngram_size=3)
    ours, theirs = (translate(model, SENTENCES[:8], beam) for model in (ct2_float32, torch_float32))
    assert CHRF().corpus_score(ours, [theirs]).score > 70


def test_int8_keeps_the_meaning(ct2_int8: Model, torch_float32: Model) -> None:
    ours, theirs = translate(ct2_int8, SENTENCES), translate(torch_float32, SENTENCES)
    score = CHRF().corpus_score(ours, [theirs]).score
    print(f"ct2 int8 against torch float32: chrF {score:.1f}, {share_of_identical(ours, theirs):.1%} identical")
    assert score > 60


@pytest.mark.parametrize("name", ["ct2_int8", "torch_float32"])
def test_no_chinese_in_english_on_demand(name: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(name)
    texts = ["“意义”两个字怎么写？", "垃圾", "一坨云", *SENTENCES]
    for options in (DecodingOptions(han_in_english=False), DecodingOptions(2, han_in_english=False, shortlist=False)):
        outputs = translate(model, texts, options)
        assert all(outputs)
        assert not regex.search(r"\p{Han}", "".join(outputs))


@pytest.mark.parametrize("engine", ["ct2", "torch"])
def test_chinese_in_chinese_is_never_forbidden(engine: str, cache_dir: Path) -> None:
    folder = registry.locate(registry.read_manifest()["embedded"]["en-zh"], cache_dir)
    model = load(folder, cache_dir, engine, "auto")
    options = DecodingOptions(han_in_english=False)
    (text,) = translate(model, ["Thank you"], options)
    assert [text] == translate(model, ["Thank you"])
    assert "谢" in text


@pytest.mark.parametrize("name", ["ct2_int8", "torch_float32"])
def test_a_batch_keeps_order_and_length(name: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(name)
    texts = [SENTENCES[0], "好", SENTENCES[6], "你", SENTENCES[0]]
    outputs = translate(model, texts)
    assert len(outputs) == 5
    assert outputs[0] == outputs[4]
    alone = [translate(model, [text])[0] for text in texts]
    assert CHRF().corpus_score(outputs, [alone]).score > 60


@pytest.mark.parametrize("name", ["ct2_int8", "torch_float32"])
def test_the_output_is_capped_by_the_source(name: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(name)
    short = DecodingOptions(max_length_factor=0.0, max_length_offset=3)
    assert all(len(ids) <= 3 for ids in model.generate(model.encode(SENTENCES[:5]), short))


@pytest.mark.parametrize("name", ["ct2_int8", "torch_float32"])
def test_the_longest_source_is_translated(name: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(name)
    (ids,) = model.encode(["".join(SENTENCES) * 4])
    ids = [*ids[: model.max_tokens - 1], ids[-1]]
    assert len(ids) == model.max_tokens
    # A short output will do: what could go wrong is the last position of the source.
    (output,) = model.generate([ids], DecodingOptions(max_length_factor=0.0, max_length_offset=40))
    assert 0 < len(output) <= 40


def test_descriptions(ct2_int8: Model, torch_float32: Model) -> None:
    assert (ct2_int8.description.engine, ct2_int8.description.device) == ("ct2", "cpu")
    assert ct2_int8.description.compute_type.startswith("int8")
    assert (torch_float32.description.engine, torch_float32.description.compute_type) == ("torch", "float32")
    assert ct2_int8.description.id != torch_float32.description.id
    assert ct2_int8.description.revision == torch_float32.description.revision


def test_generate_may_run_on_several_threads(ct2_int8: Model) -> None:
    expected = translate(ct2_int8, SENTENCES[:8])
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append(translate(ct2_int8, SENTENCES[:8]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_ct2_does_not_import_torch(cache_dir: Path, ct2_int8: Model) -> None:
    """It would cost the server a second and hundreds of megabytes."""
    program = (
        "import sys; from translator import engines, registry; from translator.config import Settings; from pathlib "
        "import Path; s = Settings(cache_dir=Path(sys.argv[1]), device='cpu', compute_type='int8'); "
        "engines.load(registry.locate(registry.sources('embedded')[0], s.cache_dir), s); "
        "import server.serve; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program, str(cache_dir)], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "[]", done.stderr
    assert ct2_int8.description


# Settings


def test_what_does_not_run_here_is_a_config_error(folder: ModelFolder, cache_dir: Path) -> None:
    with pytest.raises(ConfigError, match="compute_type"):
        choose_compute_type("int3", "cpu")
    with pytest.raises(ConfigError, match="compute_type"):
        load(folder, cache_dir, "torch", "int8")
    assert choose_compute_type("auto", "cpu") in ("int8", "float32")


def test_cuda_without_a_gpu_is_a_config_error() -> None:
    import ctranslate2

    if ctranslate2.get_cuda_device_count():
        pytest.skip("this machine has a GPU")
    for engine in ("ct2", "torch"):
        with pytest.raises(ConfigError, match="cuda"):
            engines.resolve(make_settings(engine=engine, device="cuda"))


def test_workers_and_threads() -> None:
    cores = engines.available_cores()
    assert cores >= 1
    assert engines.resolve(make_settings(engine="ct2", device="cpu")) == ("ct2", "cpu", cores, 1)
    assert engines.resolve(make_settings(engine="torch", device="cpu")) == ("torch", "cpu", 1, cores)
    assert engines.resolve(make_settings(device="cpu", workers=3, intra_threads=5))[2:] == (3, 5)


# Conversion. The converter is a stand-in that leaves traces: the real one takes many seconds and ran above.

STAND_IN = """
import sys, pathlib, time, os
folder, out, kind = sys.argv[1:]
traces = pathlib.Path(os.environ["TRACES"])
(traces / f"{os.getpid()}.start").touch()
if "fail" in os.environ.get("MODE", ""): sys.exit("ValueError: no such layer")
if "hang" in os.environ.get("MODE", ""): time.sleep(600)
pathlib.Path(out).mkdir()
(pathlib.Path(out) / "model.bin").write_text(kind)
"""


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "traces"
    path.mkdir()
    monkeypatch.setenv("TRACES", str(path))
    monkeypatch.setattr(marian_ct2, "_CONVERT", STAND_IN)
    return path


def test_two_processes_convert_once(folder: ModelFolder, tmp_path: Path, traces: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from translator import registry; "
        "from translator.engines import marian_ct2; "
        "marian_ct2._CONVERT = sys.argv[2]; c = Path(sys.argv[1]); "
        "print(marian_ct2.convert(registry.locate(registry.sources('embedded')[0], c), 'int8', c))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "cache"), STAND_IN]
    root = Path(__file__).parent.parent
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(3)]
    outputs = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(outputs) == 1
    assert len(list(traces.glob("*.start"))) == 1, "converted more than once"
    target = Path(outputs.pop())
    assert (target / "model.bin").exists()
    assert sorted(path.suffix for path in target.parent.iterdir() if path != target) == [".lock"], "left-overs"


def test_a_failed_conversion_leaves_nothing_and_is_tried_again(
    folder: ModelFolder, tmp_path: Path, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("MODE", "fail")
        with pytest.raises(ModelError, match="no such layer"):
            convert(folder, "int8", tmp_path)
    assert not list(tmp_path.rglob("model.bin"))
    target = convert(folder, "int8", tmp_path)
    assert (target / "model.bin").exists()
    assert convert(folder, "int8", tmp_path) == target
    assert len(list(traces.glob("*.start"))) == 2
    assert convert(folder, "float32", tmp_path) != target


def test_a_conversion_can_be_given_up(
    folder: ModelFolder, tmp_path: Path, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODE", "hang")
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(ModelError):
        convert(folder, "int8", tmp_path, cancelled)
    assert not list(tmp_path.rglob("model.bin"))


def test_what_a_clean_up_left_is_replaced(folder: ModelFolder, tmp_path: Path, traces: Path) -> None:
    target = convert(folder, "int8", tmp_path)
    (target / "model.bin").unlink()
    (target / "rest").touch()
    assert (convert(folder, "int8", tmp_path) / "model.bin").exists()
    assert len(list(traces.glob("*.start"))) == 2


def test_a_cache_folder_that_cannot_be_written_is_named(folder: ModelFolder, tmp_path: Path, traces: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="cache_dir"):
        convert(folder, "int8", tmp_path / "file")
    assert not list(traces.iterdir())


def test_a_damaged_converted_model_says_what_to_do(folder: ModelFolder, tmp_path: Path, traces: Path) -> None:
    with pytest.raises(ModelError, match="delete that folder"):
        load(folder, tmp_path, "ct2", "int8")
