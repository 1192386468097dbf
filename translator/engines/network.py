"""MarianMT's network as decoding wants it: packed weights, and a static key/value cache that a step writes in place.

The weights come from a loaded transformers model; what is computed is what its ``forward`` computes. Shapes: a batch
has S sentences of B beams, S * B rows; T is the length of the source, V the vocabulary, d the width of the model.

On CUDA all shapes are rounded up to powers of two and a step is captured in a CUDA graph for each, after which it is
one launch. **This capture was never run: there was no GPU.** Tests run the same rounded shapes on CPU.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MarianMTModel

# Columns of the output are filled up to a multiple of this; see ``Decoder`` in ``translator.engines.decoding``.
BLOCK = 64
# Positions that a cache has at first; they double when they are used up.
FIRST_STEPS = 32
# Shapes whose buffers and graphs are kept on CUDA.
SHAPES_KEPT = 32


class _Linear:
    """``x W^T + b`` of one or more layers side by side, the weights packed where this CPU gains by it.

    Args:
        multiple: rows of W are filled up to a multiple of this; their outputs are minus infinity.
    """

    def __init__(self, *layers: nn.Linear, bias: Tensor | None = None, multiple: int = 1) -> None:
        weight = torch.cat([layer.weight.detach() for layer in layers])
        given = [
            layer.bias.detach() if layer.bias is not None else weight.new_zeros(len(layer.weight)) for layer in layers
        ]
        bias = torch.cat(given) if bias is None else bias.detach().to(weight)
        if missing := -len(weight) % multiple:
            weight, bias = F.pad(weight, (0, 0, 0, missing)), F.pad(bias, (0, missing), value=-torch.inf)
        self._weight, self._bias = weight, bias
        self._packed = False
        # What torch's own compiler calls for a linear layer on CPU; there is no public name for it.
        ops = torch.ops.mkldnn
        if weight.device.type == "cpu" and torch.backends.mkldnn.enabled and hasattr(ops, "_linear_pointwise"):
            usable = {torch.float32: True, torch.bfloat16: ops._is_mkldnn_bf16_supported()}
            if usable.get(weight.dtype, False):
                # 32 rows to multiply with are a hint; what it gives serves other numbers as well.
                self._weight, self._packed = ops._reorder_linear_weight(weight, 32), True

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed:
            return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return F.linear(x, self._weight, self._bias)


class _Norm:
    """Layer normalisation of a sum: Marian normalises after each block."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self._shape, self._eps = norm.normalized_shape, norm.eps
        self._weight, self._bias = norm.weight.detach(), norm.bias.detach()

    def __call__(self, x: Tensor, change: Tensor) -> Tensor:
        return F.layer_norm(x + change, self._shape, self._weight, self._bias, self._eps)


class _Layer:
    """Weights of one layer; ``encoder_attn`` only in a decoder's."""

    def __init__(self, layer: Any) -> None:
        own = layer.self_attn
        self.heads: int = own.num_heads
        self.qkv, self.out = _Linear(own.q_proj, own.k_proj, own.v_proj), _Linear(own.out_proj)
        self.norm = _Norm(layer.self_attn_layer_norm)
        if hasattr(layer, "encoder_attn"):
            self.source_q, self.source_out = _Linear(layer.encoder_attn.q_proj), _Linear(layer.encoder_attn.out_proj)
            self.source_norm = _Norm(layer.encoder_attn_layer_norm)
        self._fc1, self._fc2, self._final = _Linear(layer.fc1), _Linear(layer.fc2), _Norm(layer.final_layer_norm)
        self._activation = layer.activation_fn

    def feed_forward(self, x: Tensor) -> Tensor:
        return self._final(x, self._fc2(self._activation(self._fc1(x))))


@dataclass
class Cache:
    """Buffers of one batch.

    Args:
        own: keys and values of the target so far (layers, 2, steps, S * B, heads, d / heads); steps lead so that those
            not yet used are not touched.
        source: keys and values of the source (layers, 2, S, heads, T, d / heads).
        mask: true at the source's tokens (S, 1, 1, T).
        tokens: last token of each row (S * B).
        position: where it stands (1).
        graph, logits: on CUDA, the captured step and where it leaves its result.
    """

    own: Tensor
    source: Tensor
    mask: Tensor
    tokens: Tensor
    position: Tensor
    graph: torch.cuda.CUDAGraph | None = None
    logits: Tensor | None = None

    @property
    def sentences(self) -> int:
        return self.mask.shape[0]


class Network:
    """A MarianMT model's weights, arranged for decoding. One call at a time.

    The model is not needed afterwards.

    Args:
        model: on its device and in its precision.
        static: round shapes up and attend over whole buffers, as graphs need; by default on CUDA only.
    """

    def __init__(self, model: MarianMTModel, *, static: bool | None = None) -> None:
        encoder, decoder = model.model.encoder, model.model.decoder
        self.device: torch.device = model.device
        self._dtype: torch.dtype = model.dtype
        self._static = self.device.type == "cuda" if static is None else static
        self._pad: Any = model.config.pad_token_id
        self._scales = encoder.embed_scale, decoder.embed_scale
        self._embeddings = encoder.embed_tokens.weight.detach(), decoder.embed_tokens.weight.detach()
        self._positions = encoder.embed_positions.weight.detach(), decoder.embed_positions.weight.detach()
        self._encoder = [_Layer(layer) for layer in encoder.layers]
        self._decoder = [_Layer(layer) for layer in decoder.layers]
        attentions: list[Any] = [layer.encoder_attn for layer in decoder.layers]
        self._source_kv = _Linear(*(projection for a in attentions for projection in (a.k_proj, a.v_proj)))
        self._output = _Linear(model.lm_head, bias=model.final_logits_bias[0], multiple=BLOCK)
        self._kept: OrderedDict[tuple[int, ...], Cache] = OrderedDict()

    def start(self, ids: Tensor, beams: int, token: int) -> Cache:
        """A cache for ``ids`` (S, T), its source part filled."""
        mask = (ids != self._pad)[:, None, None]
        x = F.embedding(ids, self._embeddings[0]) * self._scales[0] + self._positions[0][: ids.shape[1]]
        for layer in self._encoder:
            q, k, v = layer.qkv(x).view(*ids.shape, 3, layer.heads, -1).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v, mask)
            x = layer.feed_forward(layer.norm(x, layer.out(attended.transpose(1, 2).flatten(2))))
            if self._dtype == torch.float16:
                limit = torch.finfo(x.dtype).max - 1000
                x = x.clamp(-limit, limit)
        heads = self._decoder[0].heads
        source = self._source_kv(x).view(*ids.shape, len(self._decoder), 2, heads, -1).permute(2, 3, 0, 4, 1, 5)
        cache = self._cache(ids.shape[0], beams, ids.shape[1], FIRST_STEPS)
        cache.source.copy_(source)
        cache.mask.copy_(mask)
        cache.tokens.fill_(token)
        return cache

    def next_logits(self, cache: Cache, step: int) -> Tensor:
        """Logits (S * B, V rounded up) of ``cache.tokens``, which stand at position ``step``, in float32.

        The caller may change them; the next call may write over them.
        """
        cache.position.fill_(step)
        if self.device.type != "cuda":
            return self._step(cache, cache.own.shape[2] if self._static else step + 1)
        if cache.graph is None:
            # Never run so far; see above. A graph needs one step outside it, which sets up the libraries.
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._step(cache, cache.own.shape[2])
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                cache.logits = self._step(cache, cache.own.shape[2])
            cache.graph = graph
        cache.graph.replay()
        assert cache.logits is not None
        return cache.logits

    def _step(self, cache: Cache, span: int) -> Tensor:
        """One step of the decoder, which looks at ``span`` positions."""
        x = F.embedding(cache.tokens, self._embeddings[1]) * self._scales[1]
        x = x + self._positions[1].index_select(0, cache.position)
        rows, sentences = len(x), cache.sentences
        # Unused positions hold whatever memory held; a graph's shapes do not change, so it masks them.
        past = (torch.arange(span, device=x.device) <= cache.position).view(1, 1, 1, -1) if self._static else None
        for layer, own, source in zip(self._decoder, cache.own, cache.source, strict=True):
            qkv = layer.qkv(x).view(rows, 3, layer.heads, -1)
            own.index_copy_(1, cache.position, qkv[:, 1:].transpose(0, 1).unsqueeze(1))
            k, v = own[:, :span].permute(0, 2, 3, 1, 4)
            attended = F.scaled_dot_product_attention(qkv[:, 0].unsqueeze(2), k, v, past)
            x = layer.norm(x, layer.out(attended.flatten(1)))
            q = layer.source_q(x).view(sentences, -1, layer.heads, qkv.shape[-1]).transpose(1, 2)
            attended = F.scaled_dot_product_attention(q, source[0], source[1], cache.mask)
            x = layer.source_norm(x, layer.source_out(attended.transpose(1, 2).reshape(rows, -1)))
            x = layer.feed_forward(x)
        return self._output(x).float()

    def rounded(self, size: int) -> int:
        """Sentences or tokens for which there is a shape."""
        return 1 << (size - 1).bit_length() if self._static else size

    def _cache(self, sentences: int, beams: int, source: int, steps: int) -> Cache:
        """Buffers of a shape: new ones on CPU, kept ones, with their graph, on CUDA."""
        shape = (sentences, beams, source, steps)
        if cache := self._kept.pop(shape, None):
            self._kept[shape] = cache
            return cache
        layers, heads = len(self._decoder), self._decoder[0].heads
        width = self._embeddings[1].shape[1] // heads
        rows = sentences * beams

        def empty(*shape: int, dtype: torch.dtype = self._dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=self.device)

        cache = Cache(
            own=empty(layers, 2, steps, rows, heads, width),
            source=empty(layers, 2, sentences, heads, source, width),
            mask=empty(sentences, 1, 1, source, dtype=torch.bool),
            tokens=empty(rows, dtype=torch.long),
            position=empty(1, dtype=torch.long),
        )
        if self._static:
            cache.own.zero_()  # masked positions are multiplied by zero: they must not hold NaN
            self._kept[shape] = cache
            if len(self._kept) > SHAPES_KEPT:
                self._kept.popitem(last=False)
        return cache

    def moved(self, cache: Cache, step: int, rows: Tensor | None, sentences: Tensor | None) -> Cache:
        """The cache before ``step``, with these rows of these sentences (None: as they are), and room for the step."""
        steps = cache.own.shape[2]
        if rows is None and step < steps:
            return cache
        own = cache.own[:, :, :step]
        if rows is not None:
            own = own.index_select(3, rows)
        target = cache
        if sentences is not None or step >= steps:
            count = cache.sentences if sentences is None else len(sentences)
            beams = len(cache.tokens) // cache.sentences
            target = self._cache(count, beams, cache.source.shape[4], 2 * steps if step >= steps else steps)
            target.source.copy_(cache.source if sentences is None else cache.source.index_select(2, sentences))
            target.mask.copy_(cache.mask if sentences is None else cache.mask.index_select(0, sentences))
        target.own[:, :, :step] = own
        return target
