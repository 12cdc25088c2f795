"""Forward passes of BLIP's transformers with fused attention, once per image.

Modules and weights are ``transformers``' ``BlipVisionModel`` and ``BlipTextModel``. Their own
forward passes (version 5.23) materialize every attention matrix, and recompute an image's keys and
values for each of its questions. These have the same result (Li et al., ICML 2022).

I images of 1+N tokens, R rows of P positions (see ``packed_questions``).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from lavis_ext.encoders.attention import attend, attention_probabilities, by_head


class AttentionProbe(NamedTuple):
    """Passes the cross-attention of one block of the text encoder to ``look``."""

    block: int
    look: Callable[[Tensor], None]
    """Called with probabilities [R, H, P, 1+N] before they are used."""


def encode_pixels(vision: Any, pixels: Tensor) -> Tensor:
    """Tokens [I, 1+N, D] of normalized pixels [I, 3, S, S] by a BlipVisionModel."""
    states: Tensor = vision.embeddings(pixels)
    for layer in vision.encoder.layers:
        own = layer.self_attn
        queries, keys, values = own.qkv(layer.layer_norm1(states)).chunk(3, dim=-1)
        mixed = attend(queries, keys, values, own.num_heads, dropout=_dropout(own))
        states = states + own.projection(mixed)
        states = states + layer.mlp(layer.layer_norm2(states))
    normalized: Tensor = vision.post_layernorm(states)
    return normalized


def read_text(
    text: Any,
    input_ids: Tensor,
    question: Tensor,
    position: Tensor,
    tokens: Tensor | None = None,
    row_image: Tensor | None = None,
    seen: Tensor | None = None,
    probe: AttentionProbe | None = None,
    *,
    causal: bool = False,
) -> Tensor:
    """Hidden states [R, P, W] of packed questions by a BlipTextModel.

    Args:
        text: the model.
        input_ids, question, position: of ``PackedQuestions``, [R, P].
        tokens: image tokens [I, 1+N, D]; None reads the text alone.
        row_image: the image of each row [R]; None if row i is about image i.
        seen: bool [R, P, 1+N], the image tokens that each attends to; None is all of them.
        probe: gets the attention to the image in one block.
        causal: a token attends to no later one, as in BLIP's text decoder.
    """
    # Padding attends to padding, since a softmax over nothing would be NaN.
    together = (question[:, :, None] == question[:, None, :])[:, None]
    if causal:
        together = together & (position[:, :, None] >= position[:, None, :])[:, None]
    seen = None if seen is None else seen[:, None]
    states: Tensor = text.embeddings(input_ids=input_ids, position_ids=position)
    for block, layer in enumerate(text.encoder.layer):
        states = _attended(layer.attention, states, states, None, together)
        if tokens is not None:
            look = probe.look if probe is not None and probe.block == block else None
            states = _attended(layer.crossattention, states, tokens, row_image, seen, look)
        states = layer.output(layer.intermediate(states), states)
    return states


def _attended(
    block: Any,
    states: Tensor,
    source: Tensor,
    row_source: Tensor | None,
    seen: Tensor | None,
    look: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """``states`` [R, P, W] after attention to ``source``, residual and norm."""
    own = block.self
    heads = own.num_attention_heads
    queries, keys, values = own.query(states), own.key(source), own.value(source)
    if row_source is not None:
        keys, values = keys[row_source], values[row_source]
    if look is None:
        mixed = attend(queries, keys, values, heads, seen=seen, dropout=_dropout(own))
    else:
        probabilities = attention_probabilities(queries, keys, heads, seen)
        look(probabilities)
        mixed = own.dropout(probabilities) @ by_head(values, heads)
        mixed = mixed.transpose(1, 2).flatten(2)
    attended: Tensor = block.output(mixed, states)
    return attended


def _dropout(attention: nn.Module) -> float:
    """The attention dropout in the module's current mode."""
    dropout: Any = attention.dropout
    return float(dropout.p) if attention.training else 0.0
