"""A MarianMT model of opus-mt's size with random weights: for speed only, its output means nothing.

77.9 million parameters, the architecture of Helsinki-NLP/opus-mt-zh-en. The output lengths are forced by the weights,
so that every engine sees the same ones without being told: the end-of-sentence row of the embeddings points where the
decoder's position signal goes, and its bias lets it win from the wanted length on.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import MarianConfig, MarianMTModel

VOCABULARY = 65001
# Tokens of an output: about the mean of the embedded model's on the load data.
LENGTH = 16


def make(folder: Path, tokenizer: Path) -> Path:
    """Write the model, unless it is there already.

    Args:
        tokenizer: MarianMT folder whose SentencePiece files are borrowed; the vocabulary is filled up with idle pieces.
    """
    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("source.spm", "target.spm", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    pieces: dict[str, int] = json.loads((tokenizer / "vocab.json").read_text(encoding="utf-8"))
    kept = [piece for piece in sorted(pieces, key=pieces.__getitem__) if piece != "<pad>"]
    filled = [*kept, *(f"idle{i}" for i in range(VOCABULARY - 1 - len(kept))), "<pad>"]
    vocabulary = {piece: i for i, piece in enumerate(filled)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    config = MarianConfig(
        vocab_size=VOCABULARY,
        d_model=512,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        activation_function="swish",
        max_position_embeddings=512,
        scale_embedding=True,
        pad_token_id=VOCABULARY - 1,
        eos_token_id=vocabulary["</s>"],
        decoder_start_token_id=VOCABULARY - 1,
        forced_eos_token_id=None,
    )
    torch.manual_seed(1)
    model = MarianMTModel(config).eval()
    _force_length(model, LENGTH)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def _force_length(model: MarianMTModel, length: int) -> None:
    """Let end-of-sentence win at step ``length``, whatever the source."""
    eos = model.config.eos_token_id
    for layer in [*model.model.encoder.layers, *model.model.decoder.layers]:
        # Small branches, so that the position signal in the residual stream reaches the output.
        layer.fc2.weight *= 0.1
        for name in ("self_attn", "encoder_attn"):
            if attention := getattr(layer, name, None):
                attention.out_proj.weight *= 0.1
    embeddings = model.model.shared.weight
    embeddings *= 0.1
    positions = model.model.decoder.embed_positions.weight[: length + 1]
    direction = positions[length] - positions[0]
    embeddings[eos] = 2 * direction / direction.norm()
    source = torch.randint(100, 8000, (8, 12), generator=torch.Generator().manual_seed(2))
    targets = torch.randint(100, 8000, (8, length + 1), generator=torch.Generator().manual_seed(3))
    targets[:, 0] = model.config.decoder_start_token_id
    logits = model(input_ids=source, decoder_input_ids=targets).logits
    lead = logits[:, :, eos] - logits.index_fill(2, torch.tensor([eos]), -torch.inf).amax(2)
    before, after = lead[:, length - 1].max(), lead[:, length].min()
    if before >= after:
        raise RuntimeError(f"the length cannot be forced: {before:.2f} before, {after:.2f} after")
    model.final_logits_bias[0, eos] = -(before + after) / 2
