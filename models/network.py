"""The translation network: presets, initialisation, loss and the checkpoint folder.

The network is transformers' ``MarianMTModel`` itself, so that what is trained is what is loaded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationConfig, MarianConfig, MarianMTModel

import packed

PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"d_model": 32, "heads": 2, "ffn": 64, "encoder": 1, "decoder": 1},
    "small": {"d_model": 256, "heads": 8, "ffn": 1024, "encoder": 4, "decoder": 2},
    "embedded": {"d_model": 384, "heads": 6, "ffn": 1536, "encoder": 6, "decoder": 2},
}
"""``small`` is for two CPU cores, ``embedded`` (20.3M parameters with 16,000 pieces) for a GPU."""

TOKENIZER_FILES = ("vocab.json", "target_vocab.json", "tokenizer_config.json")


def build(preset: str, vocab_size: int, dropout: float) -> MarianMTModel:
    """A network with random weights; ``<pad>`` is the last id and starts the decoder."""
    shape = PRESETS[preset]
    pad = vocab_size - 1
    settings: dict[str, Any] = {"static_position_embeddings": True, "attn_implementation": "eager"}
    config = MarianConfig(
        vocab_size=vocab_size,
        decoder_vocab_size=vocab_size,
        d_model=shape["d_model"],
        encoder_layers=shape["encoder"],
        decoder_layers=shape["decoder"],
        encoder_attention_heads=shape["heads"],
        decoder_attention_heads=shape["heads"],
        encoder_ffn_dim=shape["ffn"],
        decoder_ffn_dim=shape["ffn"],
        activation_function="relu",
        dropout=dropout,
        attention_dropout=0.0,
        activation_dropout=0.0,
        max_position_embeddings=512,
        scale_embedding=True,
        **settings,
        share_encoder_decoder_embeddings=True,
        tie_word_embeddings=True,
        pad_token_id=pad,
        decoder_start_token_id=pad,
        bos_token_id=packed.EOS,
        eos_token_id=packed.EOS,
        forced_eos_token_id=None,
    )
    model = MarianMTModel(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bad_words_ids=[[pad]],
        bos_token_id=packed.EOS,
        eos_token_id=packed.EOS,
        pad_token_id=pad,
        decoder_start_token_id=pad,
        max_length=512,
        num_beams=1,
    )
    _scaled_init(model)
    return model


def load(folder: Path, dropout: float | None = None) -> MarianMTModel:
    """Load a Marian folder in float32 for training.

    Attention is eager: at the lengths of comments it is faster than the fused kernel on a CPU.

    Raises:
        OSError: the folder holds no loadable Marian model.
    """
    options: dict[str, Any] = {} if dropout is None else {"dropout": dropout}
    model = MarianMTModel.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, **options
    )
    assert isinstance(model, MarianMTModel)
    return model


def pad_id(model: MarianMTModel) -> int:
    """The id that fills rows up."""
    pad = model.config.pad_token_id
    assert pad is not None
    return pad


def embeddings(model: MarianMTModel) -> list[nn.Parameter]:
    """The embedding matrices that hold a row for ``<pad>``; one if they are tied."""
    found = (
        model.model.encoder.embed_tokens.weight,
        model.model.decoder.embed_tokens.weight,
        model.lm_head.weight,
    )
    return list({id(weight): weight for weight in found}.values())


def _scaled_init(model: MarianMTModel) -> None:
    """Depth-scaled Xavier (Zhang et al. 2019, arXiv:1908.11365) for a post-norm network.

    The cross-attention projections start near the identity: with embeddings in which a word and
    its translation are neighbours (``semantic_embeddings``), an attended source piece then already
    votes for its translation at the tied output, and attention has a gradient from step one.
    """
    for stack in (model.model.encoder.layers, model.model.decoder.layers):
        for depth, layer in enumerate(stack, 1):
            for name, parameter in layer.named_parameters():
                if parameter.dim() < 2:
                    continue
                if name.startswith("encoder_attn"):
                    nn.init.eye_(parameter)
                    parameter.data.mul_(0.7).add_(torch.randn_like(parameter) * 0.02)
                else:
                    nn.init.xavier_uniform_(parameter, gain=depth**-0.5)


def semantic_embeddings(data: Iterable[packed.Packed], vocab_size: int, width: int, seed: int = 1) -> Tensor:
    """Piece vectors in which translations are neighbours, shape ``(vocab_size, width)``.

    Latent semantic indexing over sentence pairs (Littman, Dumais and Landauer 1998): pairs are
    documents, the pieces of both sides are terms, weighted by idf; the rows are the left singular
    vectors of the truncated SVD, found by randomised subspace iteration (Halko et al. 2011,
    arXiv:0909.4061). Rows have the norm that Marian's scaled embedding expects.
    """
    columns: list[npt.NDArray[np.int64]] = []
    documents: list[npt.NDArray[np.int64]] = []
    base = 0
    for source in data:
        for ids, at in ((source.source, source.source_at), (source.target, source.target_at)):
            columns.append(ids.astype(np.int64))
            documents.append(np.repeat(np.arange(len(at) - 1), np.diff(at)) + base)
        base += len(source)
    piece, document = np.concatenate(columns), np.concatenate(documents)
    unique = np.unique(document * vocab_size + piece)
    piece, document = unique % vocab_size, unique // vocab_size
    idf = np.log(base / np.maximum(np.bincount(piece, minlength=vocab_size), 1)).astype(np.float32)
    weight: npt.NDArray[np.float32] = idf[piece]
    length = np.sqrt(np.bincount(document, weights=weight**2, minlength=base)).astype(np.float32)
    weight /= np.maximum(length[document], 1e-6)
    matrix = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([piece, document])), torch.from_numpy(weight), (vocab_size, base)
    ).to_sparse_csr()
    transposed = matrix.t().to_sparse_csr()
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(vocab_size, width + 16, generator=generator)
    for _ in range(4):
        basis = torch.linalg.qr(basis)[0]
        basis = torch.mm(matrix, torch.mm(transposed, basis))
    left, scale, _ = torch.linalg.svd(basis, full_matrices=False)
    vectors = left[:, :width] * scale[:width].sqrt().sqrt()
    vectors = functional.normalize(vectors, dim=1)
    # Pieces that never occur get a random direction instead of zero.
    unseen = torch.from_numpy(np.bincount(piece, minlength=vocab_size) == 0)
    vectors[unseen] = functional.normalize(torch.randn(int(unseen.sum()), width, generator=generator), dim=1)
    return vectors


def set_embeddings(model: MarianMTModel, vectors: Tensor) -> None:
    """Use ``vectors`` for the tied source, target and output embeddings."""
    with torch.no_grad():
        model.model.shared.weight.copy_(vectors)
        model.model.shared.weight[pad_id(model)] = 0.0


class Loss:
    """Label-smoothed cross entropy over the non-pad target positions of a batch.

    With ``negatives`` > 0 the softmax runs over the pieces of the batch plus that many pieces drawn
    by frequency, not over the whole vocabulary, which is most of the work on a CPU. The partition
    function stays nearly unbiased because each drawn piece counts ``1 / P(drawn)`` times (log-Q
    correction: Bengio and Senecal 2008; Yi et al. 2019). The pieces of the sources are always in:
    with shared embeddings a model in doubt copies, and what is never a target is hardly ever drawn
    (without them a fifth of the English outputs held Chinese characters).

    Args:
        frequency: how often each piece is a target, shape ``(vocab,)``; any scale.
    """

    def __init__(self, frequency: npt.NDArray[np.int64], negatives: int, smoothing: float) -> None:
        share = (frequency + 1.0) ** 0.5
        share /= share.sum()
        occurs = (frequency + 0.5) / (frequency.sum() + len(frequency))
        self._share = torch.from_numpy(share.astype(np.float32))
        self._log_undrawn = torch.from_numpy(np.log1p(-share).astype(np.float32))
        self._log_absent = torch.from_numpy(np.log1p(-occurs).astype(np.float32))
        self._negatives = negatives
        self._smoothing = smoothing

    def __call__(
        self, model: MarianMTModel, source: Tensor, target: Tensor, *, full: bool = False
    ) -> tuple[Tensor, int]:
        """Mean loss in nats per target piece, and the number of pieces.

        Args:
            source: ``(rows, s)`` ids, padded; target: ``(rows, t)`` ids, padded.
            full: use the whole vocabulary and no smoothing, as for validation.
        """
        pad = pad_id(model)
        shifted = target.new_full(target.shape, model.config.decoder_start_token_id)
        shifted[:, 1:] = target[:, :-1]
        hidden = model.model(
            input_ids=source,
            attention_mask=source.ne(pad).long(),
            decoder_input_ids=shifted,
            use_cache=False,
        ).last_hidden_state
        real = target.ne(pad)
        hidden, labels = hidden[real], target[real]
        weight, bias = model.lm_head.weight, model.final_logits_bias[0]
        if full or not self._negatives:
            logits = functional.linear(hidden, weight, bias)
            smoothing = 0.0 if full else self._smoothing
            loss = functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
            return loss, len(labels)
        drawn = torch.multinomial(self._share, self._negatives, replacement=True)
        # Where the sides have vocabularies of their own, a source's ids say nothing of targets.
        shared = model.config.share_encoder_decoder_embeddings
        sources = source[source.ne(pad)] if shared else labels[:0]
        candidates = torch.unique(torch.cat([labels, sources, drawn.to(labels.device)]))
        # A piece is in the set if it is a source or a target of this batch or was drawn.
        absent = self._log_absent * len(labels) + self._log_undrawn * self._negatives
        log_q = torch.log(-torch.expm1(absent)).to(labels.device)
        log_q[sources] = 0.0
        logits = functional.linear(hidden, weight[candidates], bias[candidates] - log_q[candidates])
        position = torch.searchsorted(candidates, labels)
        # The correction makes a piece stand for absent ones; a label is never absent.
        logits = logits.float().scatter_add(1, position[:, None], log_q[labels][:, None])
        loss = functional.cross_entropy(logits, position, label_smoothing=self._smoothing)
        return loss, len(labels)


def export(start: Path, weights: dict[str, Tensor], out: Path, pair: str) -> None:
    """Write a Marian folder that transformers and CTranslate2's converter load.

    Args:
        start: Marian folder that gives shape, tokenizer and fixed buffers.
        weights: trained parameters by name; stored as float16.
        out: folder to write; created. Files of the same names are replaced.
    """
    model = load(start)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.float16)  # type: ignore[arg-type]
    model.save_pretrained(out)
    for path in start.iterdir():
        if path.suffix == ".spm" or path.name in TOKENIZER_FILES:
            shutil.copyfile(path, out / path.name)
    settings_file = out / "tokenizer_config.json"
    if not settings_file.exists():
        source, target = pair.split("-")
        settings = {
            "model_max_length": 512,
            "source_lang": source,
            "target_lang": target,
            "tokenizer_class": "MarianTokenizer",
            "separate_vocabs": False,
        }
        settings_file.write_text(json.dumps(settings), encoding="utf-8")
