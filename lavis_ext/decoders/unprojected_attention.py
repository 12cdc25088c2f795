"""T5's cross-attention for short answers, without projecting the passages to keys and values.

With query q, key projection K and token x, the score q · (K x) is also (Kᵀ q) · x, and a weighted
sum of V x is V times that of x. Projecting the query costs as much as projecting one token, and a
question has thousands of tokens, but its answer a few words. So passages are read as they are.

Q questions of T tokens, H heads of C channels, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5Attention


class UnprojectedAttention(T5Attention):
    """``T5Attention`` over encoder states, with the same result up to rounding.

    Calls with gradients or several words, as in training, are ``T5Attention``'s.
    """

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        position_bias: Tensor | None = None,
        *more: Any,
        **others: Any,
    ) -> Any:
        """Output [Q, 1, D], the bias, which is 0, and no attention weights.

        ``mask`` [Q, 1, 1, T] is bool or is added to the scores.
        """
        projections = (self.k, self.v)
        if (
            key_value_states is None
            or hidden_states.shape[1] != 1
            or torch.is_grad_enabled()
            or not all(isinstance(each, nn.Linear) for each in projections)  # LoRA's aren't
        ):
            return super().forward(
                hidden_states, mask, key_value_states, position_bias, *more, **others
            )
        to_key, to_value = (each.weight.unflatten(0, (self.n_heads, -1)) for each in projections)
        query = self.q(hidden_states)[:, 0].unflatten(-1, (self.n_heads, -1))
        scores = torch.einsum("qhc,hcd->qhd", query, to_key) @ key_value_states.mT  # [Q, H, T]
        if mask is not None:
            seen = mask[:, 0]
            scores = (
                scores.masked_fill(~seen, -torch.inf)
                if seen.dtype == torch.bool
                else (scores + seen)
            )
        mixed = scores.float().softmax(dim=-1).to(scores.dtype) @ key_value_states
        values = torch.einsum("qhd,hcd->qhc", mixed, to_value)
        return self.o(values.flatten(1))[:, None], position_bias, None


def attend_unprojected(t5: Any) -> None:
    """Make the cross-attention of a T5's decoder ``UnprojectedAttention``, in place."""
    for block in t5.decoder.block:
        block.layer[1].EncDecAttention.__class__ = UnprojectedAttention
