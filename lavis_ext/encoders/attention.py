"""Multi-head attention between the projections of other libraries' modules."""

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
    """Attention of projected ``queries`` [B, L, W] to ``keys`` and ``values`` [B, M, W]: [B, L, W].

    ``seen``, bool and broadcastable to [B, heads, L, M], is True where a query may attend; None is
    everywhere. ``dropout`` is the dropout of attention probabilities in training.
    """
    query, key, value = (by_head(states, heads) for states in (queries, keys, values))
    return attend_by_head(query, key, value, seen=seen, dropout=dropout)


def attend_by_head(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    seen: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """``attend`` for ``query`` [B, heads, L, C], and ``key`` and ``value`` [B, heads, M, C].

    With ``causal`` and L = M, a query attends to no later key.
    """
    mixed = F.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, dropout_p=dropout, is_causal=causal
    )
    return mixed.transpose(1, 2).flatten(2)


def attention_probabilities(
    queries: Tensor, keys: Tensor, heads: int, seen: Tensor | None = None
) -> Tensor:
    """The probabilities [B, heads, L, M], which ``attend`` doesn't materialize."""
    query, key = by_head(queries, heads), by_head(keys, heads)
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf"))
    return scores.softmax(dim=-1)


def by_head(states: Tensor, heads: int) -> Tensor:
    """[B, L, heads * C] to [B, heads, L, C]."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)
