"""Multi-head attention, for networks whose projections are other libraries' modules."""

import torch.nn.functional as F
from torch import Tensor


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    heads: int,
    *,
    seen: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """What projected ``queries`` [B, L, W] find in ``keys`` and ``values`` [B, M, W]: [B, L, W].

    ``seen``, bool and broadcastable to [B, heads, L, M], is True where a query may look; None is
    everywhere. ``dropout`` is that of the attention, for training.
    """
    query, key, value = (by_head(states, heads) for states in (queries, keys, values))
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=dropout)
    return mixed.transpose(1, 2).flatten(2)


def attention_probabilities(
    queries: Tensor, keys: Tensor, heads: int, seen: Tensor | None = None
) -> Tensor:
    """The probabilities [B, heads, L, M] that ``attend`` never writes down."""
    query, key = by_head(queries, heads), by_head(keys, heads)
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf"))
    return scores.softmax(dim=-1)


def by_head(states: Tensor, heads: int) -> Tensor:
    """[B, L, heads * C] to [B, heads, L, C]."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)
