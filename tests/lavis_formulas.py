"""BLIP as LAVIS computes it, in plain torch, over a state dict by LAVIS's names.

After LAVIS 1.0.2, models/vit.py and models/med.py, in evaluation mode. Nothing of this library is
used, so that names, order and epsilons are checked against something else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

State = Mapping[str, Tensor]
VISION_EPS = 1e-6
TEXT_EPS = 1e-12


@dataclass(frozen=True)
class Sizes:
    """Of the networks; the images are squares of ``grid`` patches a side."""

    grid: int = 4
    patch: int = 8
    vision: int = 32
    vision_mlp: int = 64
    text: int = 32
    text_mlp: int = 64
    heads: int = 2
    vision_layers: int = 2
    text_layers: int = 2
    vocabulary: int = 660
    positions: int = 48
    projection: int = 8


SIZES = Sizes()


def checkpoint(kind: str, seed: int = 0, sizes: Sizes = SIZES) -> dict[str, Tensor]:
    """Random weights as LAVIS saves them.

    ``kind`` is ``retrieval`` (with momentum encoder and queues), ``caption``, ``vqa`` or
    ``pretrain``.
    """
    generator = np.random.RandomState(seed)  # torch's may draw otherwise in another release

    def normal(*shape: int, scale: float = 0.15) -> Tensor:
        return torch.from_numpy(generator.standard_normal(shape).astype(np.float32)) * scale

    def linear(out: int, width: int) -> dict[str, Tensor]:
        return {"weight": normal(out, width), "bias": normal(out)}

    def norm(width: int) -> dict[str, Tensor]:
        return {"weight": 1 + normal(width), "bias": normal(width)}

    def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}

    def vision() -> dict[str, Tensor]:
        width, found = sizes.vision, {}
        # Tokens so small that their variance is near the LayerNorms' epsilon.
        found["cls_token"] = normal(1, 1, width, scale=3e-3)
        found["pos_embed"] = normal(1, 1 + sizes.grid**2, width, scale=3e-3)
        found["patch_embed.proj.weight"] = normal(width, 3, sizes.patch, sizes.patch, scale=2e-4)
        found["patch_embed.proj.bias"] = normal(width, scale=1e-3)
        for layer in range(sizes.vision_layers):
            block = f"blocks.{layer}"
            found |= under(f"{block}.norm1", norm(width))
            found |= under(f"{block}.attn.qkv", linear(3 * width, width))
            found |= under(f"{block}.attn.proj", linear(width, width))
            found |= under(f"{block}.norm2", norm(width))
            found |= under(f"{block}.mlp.fc1", linear(sizes.vision_mlp, width))
            found |= under(f"{block}.mlp.fc2", linear(width, sizes.vision_mlp))
        return found | under("norm", norm(width))

    def attention(source: int) -> dict[str, Tensor]:
        width = sizes.text
        found = under("self.query", linear(width, width))
        found |= under("self.key", linear(width, source)) | under(
            "self.value", linear(width, source)
        )
        found |= under("output.dense", linear(width, width))
        return found | under("output.LayerNorm", norm(width))

    def text() -> dict[str, Tensor]:
        width = sizes.text
        found = {
            "embeddings.position_ids": torch.arange(sizes.positions)[None],
            "embeddings.word_embeddings.weight": normal(sizes.vocabulary, width),
            "embeddings.position_embeddings.weight": normal(sizes.positions, width),
        }
        found |= under("embeddings.LayerNorm", norm(width))
        for layer in range(sizes.text_layers):
            block = f"encoder.layer.{layer}"
            found |= under(f"{block}.attention", attention(width))
            found |= under(f"{block}.crossattention", attention(sizes.vision))
            found |= under(f"{block}.intermediate.dense", linear(sizes.text_mlp, width))
            found |= under(f"{block}.output.dense", linear(width, sizes.text_mlp))
            found |= under(f"{block}.output.LayerNorm", norm(width))
        return found

    def decoder() -> dict[str, Tensor]:
        found = under("bert", text())
        head = "cls.predictions"
        found |= under(f"{head}.transform.dense", linear(sizes.text, sizes.text))
        found |= under(f"{head}.transform.LayerNorm", norm(sizes.text))
        found[f"{head}.decoder.weight"] = found["bert.embeddings.word_embeddings.weight"]
        found[f"{head}.decoder.bias"] = found[f"{head}.bias"] = normal(sizes.vocabulary)
        return found

    state = under("visual_encoder", vision())
    if kind != "caption":
        state |= under("text_encoder", text())
    if kind != "retrieval":
        state |= under("text_decoder", decoder())
    if kind in ("retrieval", "pretrain"):
        state |= under("itm_head", linear(2, sizes.text))
        state |= under("vision_proj", linear(sizes.projection, sizes.vision))
        state |= under("text_proj", linear(sizes.projection, sizes.text))
        state |= under("visual_encoder_m", vision()) | under("text_encoder_m", text())
        state |= under("vision_proj_m", linear(sizes.projection, sizes.vision))
        state |= under("text_proj_m", linear(sizes.projection, sizes.text))
        state |= {"image_queue": normal(sizes.projection, 6), "text_queue": normal(8, 6)}
        state |= {"idx_queue": torch.full((1, 6), -100), "queue_ptr": torch.zeros(1).long()}
        state["temp"] = torch.tensor(0.07)
    return state


def image_tokens(state: State, pixels: Tensor, sizes: Sizes = SIZES) -> Tensor:
    """Tokens [B, 1+N, D] of normalized pixels [B, 3, S, S] (vit.py: VisionTransformer)."""

    def part(name: str) -> Tensor:
        return state[f"visual_encoder.{name}"]

    def normalized(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(
            x, x.shape[-1:], part(f"{name}.weight"), part(f"{name}.bias"), VISION_EPS
        )

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, part(f"{name}.weight"), part(f"{name}.bias"))

    patches = F.conv2d(
        pixels, part("patch_embed.proj.weight"), part("patch_embed.proj.bias"), stride=sizes.patch
    )
    x = patches.flatten(2).transpose(1, 2)
    x = torch.cat((part("cls_token").expand(len(x), -1, -1), x), dim=1)
    x = x + part("pos_embed")
    for layer in range(sizes.vision_layers):
        block = f"blocks.{layer}"
        batch, length, width = x.shape
        qkv = linear(normalized(x, f"{block}.norm1"), f"{block}.attn.qkv")
        qkv = qkv.reshape(batch, length, 3, sizes.heads, width // sizes.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (width // sizes.heads) ** -0.5).softmax(dim=-1)
        mixed = (weights @ v).transpose(1, 2).reshape(batch, length, width)
        x = x + linear(mixed, f"{block}.attn.proj")
        inner = F.gelu(linear(normalized(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + linear(inner, f"{block}.mlp.fc2")
    return normalized(x, "norm")


def text_states(
    state: State,
    prefix: str,
    input_ids: Tensor,
    mask: Tensor,
    image: Tensor,
    *,
    causal: bool,
    sizes: Sizes = SIZES,
    looks: list[Tensor] | None = None,
) -> Tensor:
    """Last states [B, L, W] of a text with an image to look at (med.py: BertModel).

    ``looks`` gets each block's attention to the image [B, H, L, 1+N].
    """

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{prefix}.{name}.weight"], state[f"{prefix}.{name}.bias"])

    def normalized(x: Tensor, name: str) -> Tensor:
        weight, bias = (state[f"{prefix}.{name}.{each}"] for each in ("weight", "bias"))
        return F.layer_norm(x, x.shape[-1:], weight, bias, TEXT_EPS)

    def by_head(x: Tensor) -> Tensor:
        return x.unflatten(-1, (sizes.heads, -1)).transpose(1, 2)

    def attended(x: Tensor, source: Tensor, name: str, hidden: Tensor | None) -> Tensor:
        q, k, v = (
            by_head(linear(each, f"{name}.self.{which}"))
            for each, which in ((x, "query"), (source, "key"), (source, "value"))
        )
        scores = q @ k.transpose(-1, -2) / sqrt(q.shape[-1])
        if hidden is not None:
            scores = scores + hidden
        weights = scores.softmax(dim=-1)
        if looks is not None and source is image:
            looks.append(weights)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        return normalized(linear(mixed, f"{name}.output.dense") + x, f"{name}.output.LayerNorm")

    length = input_ids.shape[1]
    seen = mask[:, None, None, :].bool()
    if causal:
        seen = seen & torch.ones(length, length).tril().bool()
    hidden = torch.where(seen, 0.0, -10000.0)
    x = state[f"{prefix}.embeddings.word_embeddings.weight"][input_ids]
    x = x + state[f"{prefix}.embeddings.position_embeddings.weight"][:length]
    x = normalized(x, "embeddings.LayerNorm")
    for layer in range(sizes.text_layers):
        block = f"encoder.layer.{layer}"
        x = attended(x, x, f"{block}.attention", hidden)
        x = attended(x, image, f"{block}.crossattention", None)
        inner = F.gelu(linear(x, f"{block}.intermediate.dense"))
        x = normalized(linear(inner, f"{block}.output.dense") + x, f"{block}.output.LayerNorm")
    return x


def matching_logits(
    state: State,
    input_ids: Tensor,
    mask: Tensor,
    image: Tensor,
    sizes: Sizes = SIZES,
    looks: list[Tensor] | None = None,
) -> Tensor:
    """Logits [B, 2] (blip_image_text_matching.py); the first token is [ENC] already."""
    states = text_states(
        state, "text_encoder", input_ids, mask, image, causal=False, sizes=sizes, looks=looks
    )
    return F.linear(states[:, 0], state["itm_head.weight"], state["itm_head.bias"])


def gradcams(
    state: State, input_ids: Tensor, mask: Tensor, image: Tensor, block: int, sizes: Sizes = SIZES
) -> Tensor:
    """Heat maps [B, N] (blip_image_text_matching.py: compute_gradcam, ``gradcam[1]`` of each).

    NaN for a question without words, as in LAVIS.
    """
    looks: list[Tensor] = []
    with torch.enable_grad():
        # A leaf, since none of the weights needs gradients.
        logits = matching_logits(
            state, input_ids, mask, image.clone().requires_grad_(), sizes, looks
        )
        (gradient,) = torch.autograd.grad(logits[:, 1].sum(), looks[block])
    seen = mask[:, None, :, None]
    cams = looks[block].detach()[..., 1:] * seen
    maps = (cams * (gradient[..., 1:].clamp(0) * seen)).mean(dim=1)
    words = mask.sum(dim=1) - 2
    return torch.stack(
        [
            each[1 : count + 1].sum(dim=0) / count
            for each, count in zip(maps, words.tolist(), strict=True)
        ]
    )


def word_logits(state: State, input_ids: Tensor, mask: Tensor, image: Tensor) -> Tensor:
    """Logits of each next word, [B, L, V] (med.py: BertLMHeadModel)."""
    states = text_states(state, "text_decoder.bert", input_ids, mask, image, causal=True)
    head = {name: state[f"text_decoder.cls.predictions.{name}"] for name in HEAD}
    states = F.gelu(F.linear(states, head["transform.dense.weight"], head["transform.dense.bias"]))
    weight, bias = head["transform.LayerNorm.weight"], head["transform.LayerNorm.bias"]
    states = F.layer_norm(states, states.shape[-1:], weight, bias, TEXT_EPS)
    return F.linear(states, head["decoder.weight"], head["bias"])


HEAD = (
    "transform.dense.weight",
    "transform.dense.bias",
    "transform.LayerNorm.weight",
    "transform.LayerNorm.bias",
    "decoder.weight",
    "bias",
)
