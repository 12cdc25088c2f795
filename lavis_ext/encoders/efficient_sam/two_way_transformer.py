"""Transformer of EfficientSAM's mask decoder: prompts and image attend to each other.

Xiong et al., CVPR 2024, after SAM (Kirillov et al., ICCV 2023, appendix A). Parameter names are
those of the authors' checkpoints. LayerNorms come after the residual, with torch's default eps.

Shapes: Q queries, T prompt tokens, N image tokens, C width.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Perceptron(nn.Module):
    """``hidden`` linear layers with GELU, then one without."""

    def __init__(self, width: int, inner: int, out: int, hidden: int) -> None:
        super().__init__()
        widths = [width] + [inner] * hidden
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(before, inner), nn.GELU()) for before in widths[:-1]
        )
        self.fc = nn.Linear(inner, out)

    def forward(self, states: Tensor) -> Tensor:
        """States [..., width] to [..., out]."""
        for layer in self.layers:
            states = layer(states)
        return self.fc(states)


class Attention(nn.Module):
    """Multi-head attention with an inner width that may be less than that of the tokens."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)
        self._initialize(width, inner)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention of ``queries`` [Q, A, C] to ``keys`` and ``values`` [Q, B, C]: [Q, A, C]."""
        q, k, v = (
            states.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for states in (self.q_proj(queries), self.k_proj(keys), self.v_proj(values))
        )
        found = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(found.transpose(1, 2).flatten(2))

    def _initialize(self, width: int, inner: int) -> None:
        """As torch's MultiheadAttention, where the three projections are one matrix."""
        bound = (6 / (width + 3 * inner)) ** 0.5
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.uniform_(projection.weight, -bound, bound)
            nn.init.zeros_(projection.bias)
        nn.init.zeros_(self.out_proj.bias)


class TwoWayBlock(nn.Module):
    """Self-attention of prompts, prompts to image, feed-forward, image to prompts."""

    def __init__(self, width: int, heads: int, mlp: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(width, width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = Attention(width, width // 2, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Perceptron(width, mlp, width, hidden=1)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = Attention(width, width // 2, heads)

    def forward(
        self, prompts: Tensor, image: Tensor, prompts_given: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Prompt tokens [Q, T, C] and image tokens [Q, N, C] after this block.

        ``prompts_given`` [Q, T, C], the prompts as they entered the transformer, and ``positions``
        [N, C] are added to queries and keys.
        """
        # Unlike in SAM, the values and the residual contain this sum too. The first block starts
        # from the prompts as given.
        if not self.first:
            prompts = prompts + prompts_given
        prompts = self.norm1(prompts + self.self_attn(prompts, prompts, prompts))

        placed = image + positions
        found = self.cross_attn_token_to_image(prompts + prompts_given, placed, image)
        prompts = self.norm2(prompts + found)
        prompts = self.norm3(prompts + self.mlp(prompts))

        found = self.cross_attn_image_to_token(placed, prompts + prompts_given, prompts)
        return prompts, self.norm4(image + found)


class TwoWayTransformer(nn.Module):
    """Two-way blocks, then a final attention of the prompts to the image."""

    def __init__(self, width: int, depth: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(width, heads, mlp, first=index == 0) for index in range(depth)
        )
        self.final_attn_token_to_image = Attention(width, width // 2, heads)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(self, prompts: Tensor, image: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Prompt tokens [Q, T, C] and image tokens [Q, N, C]; ``positions`` is [N, C]."""
        prompts_given = prompts
        for layer in self.layers:
            prompts, image = layer(prompts, image, prompts_given, positions)
        found = self.final_attn_token_to_image(prompts + prompts_given, image + positions, image)
        return self.norm_final_attn(prompts + found), image
