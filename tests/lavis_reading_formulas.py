"""PNP-VQA's reading as LAVIS computes it, in plain torch, over a T5's state dict.

After LAVIS 1.0.2, models/pnp_vqa_models, and T5 (Raffel et al., JMLR 2020) in its first release:
ReLU, tied embeddings, no scaling of attention scores. Nothing of this library is used.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

State = Mapping[str, Tensor]
BUCKETS, FARTHEST = 32, 128
HIDDEN = torch.finfo(torch.float32).min
START, PAD, END = 0, 0, 1


@dataclass(frozen=True)
class T5Sizes:
    """Of the networks."""

    heads: int = 4
    layers: int = 1
    decoder_layers: int = 1
    width: int = 32


def passages(question: str, captions: list[str], num_captions_fid: int) -> list[str]:
    """The texts that are read (models/pnp_vqa_models/__init__.py: prepare_qa_input)."""
    found, together = [], ""
    for number, caption in enumerate(captions, start=1):
        together += caption.strip() + ". "
        if number % num_captions_fid == 0 or number == len(captions):
            found.append(question.lower().strip() + " \\n " + together.lower().strip())
            together = ""
    return found


def encoded(state: State, sizes: T5Sizes, input_ids: Tensor, mask: Tensor) -> Tensor:
    """States [P, L, D] of P passages, each read by itself."""
    hidden = torch.where(mask[:, None, None, :].bool(), 0.0, HIDDEN)
    length = input_ids.shape[1]
    bias = _bias(state, "encoder", length, both_ways=True) + hidden
    x = state["shared.weight"][input_ids]
    for layer in range(sizes.layers):
        block = f"encoder.block.{layer}.layer"
        normed = _normalized(state, f"{block}.0.layer_norm", x)
        x = x + _attended(state, f"{block}.0.SelfAttention", normed, normed, bias, sizes.heads)
        x = x + _feed_forward(state, f"{block}.1", x)
    return _normalized(state, "encoder.final_layer_norm", x)


def next_word_logits(
    state: State, sizes: T5Sizes, said: Tensor, states: Tensor, mask: Tensor
) -> Tensor:
    """Logits [1, T, V] after each of the words ``said`` [1, T]; ``states`` [1, P * L, D]."""
    length = said.shape[1]
    later = torch.ones(length, length).triu(1).bool()
    own = _bias(state, "decoder", length, both_ways=False) + later * HIDDEN
    hidden = torch.where(mask[:, None, None, :].bool(), 0.0, HIDDEN)
    x = state["shared.weight"][said]
    for layer in range(sizes.decoder_layers):
        block = f"decoder.block.{layer}.layer"
        normed = _normalized(state, f"{block}.0.layer_norm", x)
        x = x + _attended(state, f"{block}.0.SelfAttention", normed, normed, own, sizes.heads)
        normed = _normalized(state, f"{block}.1.layer_norm", x)
        x = x + _attended(state, f"{block}.1.EncDecAttention", normed, states, hidden, sizes.heads)
        x = x + _feed_forward(state, f"{block}.2", x)
    x = _normalized(state, "decoder.final_layer_norm", x)
    return F.linear(x * sizes.width**-0.5, state["shared.weight"])


def greedy_answer(
    state: State,
    sizes: T5Sizes,
    texts: list[str],
    tokenize: Callable[[str], list[int]],
    max_length: int,
    min_length: int = 0,
) -> list[int]:
    """Words of the answer without start and end (pnp_vqa.py: forward_qa, one question).

    Passages are padded to the longest and their states concatenated, padding too. The start token
    counts in both lengths, as in transformers' ``generate``.
    """
    ids = [tokenize(text) for text in texts]
    longest = max(map(len, ids))
    padded = torch.tensor([each + [PAD] * (longest - len(each)) for each in ids])
    mask = torch.tensor([[1] * len(each) + [0] * (longest - len(each)) for each in ids])
    states = encoded(state, sizes, padded, mask).flatten(0, 1)[None]
    said = [START]
    while len(said) < max_length:
        logits = next_word_logits(state, sizes, torch.tensor([said]), states, mask.flatten()[None])
        if len(said) < min_length:
            logits[..., END] = -torch.inf
        said.append(int(logits[0, -1].argmax()))
        if said[-1] == END:
            break
    return [word for word in said[1:] if word != END]


def _bias(state: State, side: str, length: int, *, both_ways: bool) -> Tensor:
    """Relative position bias [1, H, L, L]."""
    table = state[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    buckets = [
        [_bucket(key - query, both_ways=both_ways) for key in range(length)]
        for query in range(length)
    ]
    return table[torch.tensor(buckets)].permute(2, 0, 1)[None]


def _bucket(offset: int, *, both_ways: bool) -> int:
    """The bucket of a key's position minus the query's."""
    half = BUCKETS // 2 if both_ways else BUCKETS
    first = half if both_ways and offset > 0 else 0
    distance = abs(offset) if both_ways else max(-offset, 0)
    exact = half // 2
    if distance < exact:
        return first + distance
    share = math.log(distance / exact) / math.log(FARTHEST / exact)
    return first + min(exact + int(share * (half - exact)), half - 1)


def _attended(
    state: State, name: str, x: Tensor, source: Tensor, bias: Tensor, heads: int
) -> Tensor:
    q, k, v = (
        F.linear(each, state[f"{name}.{which}.weight"]).unflatten(-1, (heads, -1)).transpose(1, 2)
        for each, which in ((x, "q"), (source, "k"), (source, "v"))
    )
    weights = (q @ k.transpose(-1, -2) + bias).softmax(dim=-1)
    return F.linear((weights @ v).transpose(1, 2).flatten(2), state[f"{name}.o.weight"])


def _feed_forward(state: State, block: str, x: Tensor) -> Tensor:
    inner = _normalized(state, f"{block}.layer_norm", x)
    inner = F.linear(inner, state[f"{block}.DenseReluDense.wi.weight"]).relu()
    return F.linear(inner, state[f"{block}.DenseReluDense.wo.weight"])


def _normalized(state: State, name: str, x: Tensor) -> Tensor:
    return x * x.pow(2).mean(dim=-1, keepdim=True).add(1e-6).rsqrt() * state[f"{name}.weight"]
