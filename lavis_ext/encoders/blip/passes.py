"""BLIP's transformers with fused attention, and text that reads each image once.

The modules and their weights are ``transformers``' ``BlipVisionModel`` and ``BlipTextModel``, whose
own passes (version 5.23) write every attention matrix down, and compute keys and values of an image
anew for each of its questions. The passes here are theirs (Li et al., ICML 2022) without either.

I images of 1+N tokens, R rows of P places (see ``packed_questions``).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from lavis_ext.encoders.attention import attend, attention_probabilities, by_head


class AttentionProbe(NamedTuple):
    """Shows the cross-attention of one block of the text encoder to ``look``."""

    block: int
    look: Callable[[Tensor], None]
    """Called with probabilities [R, H, P, 1+N] before they are used."""


def encode_pixels(vision: Any, pixels: Tensor) -> Tensor:
    """Tokens [I, 1+N, D] of normalised pixels [I, 3, S, S], through a BlipVisionModel."""
    states: Tensor = vision.embeddings(pixels)
    for layer in vision.encoder.layers:
        own = layer.self_attn
        queries, keys, values = own.qkv(layer.layer_norm1(states)).chunk(3, dim=-1)
        mixed = attend(queries, keys, values, own.num_heads, dropout=_dropout(own))
        states = states + own.projection(mixed)
        states = states + layer.mlp(layer.layer_norm2(states))
    normalised: Tensor = vision.post_layernorm(states)
    return normalised


def read_text(
    text: Any,
    input_ids: Tensor,
    question: Tensor,
    position: Tensor,
    tokens: Tensor | None = None,
    row_image: Tensor | None = None,
    seen: Tensor | None = None,
    probe: AttentionProbe | None = None,
) -> Tensor:
    """States [R, P, W] of packed questions, through a BlipTextModel.

    Args:
        text: the model.
        input_ids, question, position: of ``PackedQuestions``, [R, P].
        tokens: the images' [I, 1+N, D]; None reads the text alone.
        row_image: the image of each row [R]; None where row i is about image i.
        seen: bool [R, P, 1+N], the image tokens that each may look at; None is all of them.
        probe: shows the attention to the image in one block.
    """
    # Padding counts as one more question: a place that sees nothing would have no softmax.
    together = (question[:, :, None] == question[:, None, :])[:, None]
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
    """The attention dropout that applies in the module's present mode."""
    dropout: Any = attention.dropout
    return float(dropout.p) if attention.training else 0.0
