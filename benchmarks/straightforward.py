"""A straightforward loss, the reference for the library's speed and losses.

It processes one question at a time: its matched pair, then each of its mismatched pairs, passes
both encoders, the fusion and the text encoder. Attention is a softmax of a product, as in eager
mode of ``transformers`` and DIFNet's authors; DIFNet's two streams take two passes. Weights, loss
and gradients are the library's; only dropout, if any, differs.

    imports: [benchmarks.straightforward]
    run: {task: straightforward, batch_size_train: 1, accum_grad_iters: 128}

trains this way, with 128 questions per step.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lavis_ext.datasets.questions.dataset import QuestionBatch
from lavis_ext.datasets.questions.vocabulary import OUTSIDE
from lavis_ext.encoders.base import Tokens
from lavis_ext.encoders.efficient_sam.encoder import EfficientSam
from lavis_ext.fusion.difnet import Attention, DifnetEncoder, Layer
from lavis_ext.models.base import StepOutput, no_grad_if_constant
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from lavis_ext.objectives.matching import MATCH
from lavis_ext.objectives.question_head import QuestionHead
from lavis_ext.registry import registry
from lavis_ext.tasks.gqa import GqaFusionTask

AS_MEASURED = (
    "datasets.gqa_fusion.mismatched.text=question",
    "model.objectives.itm.distillation=0",
)
"""Options of the recipes that the loop is compared with: it has no distillation."""


@dataclass(frozen=True)
class Ways:
    """Optimizations added to the straightforward way.

    Attributes:
        fused_attention: use the library's passes with fused attention, both streams in one.
        seen_once: encode and fuse the image once for all pairs of a question.
    """

    fused_attention: bool = False
    seen_once: bool = False


STRAIGHTFORWARD = Ways()


@registry.register_task("straightforward")
class StraightforwardTask(GqaFusionTask):
    """``gqa_fusion`` with straightforward training steps."""

    takes_features = False
    ways = STRAIGHTFORWARD

    def train_step(self, model: Any, samples: QuestionBatch) -> StepOutput:
        """Sum of all losses under one name."""
        loss = straightforward_loss(model, samples, self.ways)
        return StepOutput({"all": loss}, {}, len(samples["text_input"]))


def straightforward_loss(
    model: PnpVqaFusion, samples: QuestionBatch, ways: Ways = STRAIGHTFORWARD
) -> Tensor:
    """Sum of a batch's losses, one question at a time; equals the model's ``forward``."""
    losses = [question_loss(model, samples, q, ways) for q in range(len(samples["text_input"]))]
    return torch.stack(losses).sum()


def question_loss(model: PnpVqaFusion, samples: QuestionBatch, question: int, ways: Ways) -> Tensor:
    """Sum of the weighted losses of one question."""
    per_question = len(samples["mismatched_input"]) // len(samples["text_input"])
    texts = [
        samples["text_input"][question],
        *samples["mismatched_input"][question * per_question :][:per_question],
    ]
    image = int(samples["image_index"][question])
    total = torch.zeros((), device=model.device)
    with ExitStack() as contexts:
        if not ways.fused_attention:
            contexts.enter_context(unfused(model))
        for place, text in enumerate(texts):
            if place == 0 or not ways.seen_once:
                fused = _fused(model, samples, image, ways)
            share = 0.5 if place == 0 else 0.5 / per_question
            for name, objective in model.objectives.items():
                known: Any = objective
                weight = known.config.weight
                head: Any = known.head
                if name == "itm":
                    scores = _matched(model, fused, text, ways)
                    scores = scores if head is None else head(scores)
                elif name == "head" or place == 0:
                    scores = _asked(model, head, fused, text, ways)
                else:
                    continue
                if name == "answer":
                    total = total + weight * _answer_loss(
                        model, scores, samples["answer"][question]
                    )
                else:
                    label = torch.tensor([MATCH if place == 0 else 1 - MATCH], device=scores.device)
                    total = total + weight * share * F.cross_entropy(scores, label)
    return total


def _fused(model: PnpVqaFusion, samples: QuestionBatch, image: int, ways: Ways) -> Tensor:
    """Fused tokens [1, 1+N, D]; runs both encoders."""
    grid_image = samples["images"]["grid"][image : image + 1]
    segmentation_image = samples["images"]["segmentation"][image : image + 1]
    with no_grad_if_constant([model.blip.blip.vision_model]):
        if ways.fused_attention:
            grid_tokens = model.blip.encode(grid_image)
        else:
            pixels = model.blip.normalize(grid_image)
            grid_tokens = model.blip.blip.vision_model(pixels).last_hidden_state
    second = model.streams["segmentation"]
    with no_grad_if_constant([second]):
        segmentation = second(segmentation_image)
    fused: Tensor = model.fusion(
        {"grid": Tokens(grid_tokens, model.blip.grid, 1), "segmentation": segmentation}
    )
    return fused


def _matched(model: PnpVqaFusion, fused: Tensor, text: str, ways: Ways) -> Tensor:
    """BLIP's scores [1, 2] for one pair."""
    if ways.fused_attention:
        return model.blip.match(fused, model.blip.pack([text]))
    ids, mask = (tensor.to(fused.device) for tensor in model.blip.tokenize([text]))
    if model.blip.config.first_token == "enc":
        ids[:, 0] = model.blip.enc_token_id
    output = model.blip.blip.text_encoder(
        input_ids=ids, attention_mask=mask, encoder_hidden_states=fused
    )
    scores: Tensor = model.blip.blip.itm_head(output.last_hidden_state[:, 0])
    return scores


def _asked(model: PnpVqaFusion, head: QuestionHead, fused: Tensor, text: str, ways: Ways) -> Tensor:
    """A head's scores [1, outputs] for one question."""
    if ways.fused_attention:
        packed = model.blip.pack([text])
        return head(fused, packed, model.blip.encode_questions(packed))
    ids, mask = (tensor.to(fused.device) for tensor in model.blip.tokenize([text]))
    with no_grad_if_constant([model.blip.blip.text_encoder]):
        states = model.blip.blip.text_encoder(input_ids=ids, attention_mask=mask)
    states = head.question_projection(states.last_hidden_state)
    for layer in head.layers:
        memory = head.token_projection(fused)
        # torch's forward pass; the library's layer is a subclass.
        states = cast(Any, nn.TransformerDecoderLayer).forward(layer, states, memory)
    scores: Tensor = head.score(head.norm(states.mean(dim=1)))
    return scores


def _answer_loss(model: PnpVqaFusion, scores: Tensor, answer: str | None) -> Tensor:
    assert model.vocabulary is not None
    target = model.vocabulary.targets([answer]).to(scores.device)
    smoothing = model.config.objectives["answer"].label_smoothing
    loss = F.cross_entropy(
        scores, target, ignore_index=OUTSIDE, reduction="none", label_smoothing=smoothing
    )
    return loss.sum()


@contextmanager
def unfused(model: PnpVqaFusion) -> Iterator[None]:
    """Context manager: unfused attention everywhere, and DIFNet's streams in separate passes."""
    encoder = model.fusion.encoder
    attentions = [m for m in model.modules() if isinstance(m, Attention)]
    blocks = [m for s in model.modules() if isinstance(s, EfficientSam) for m in s.modules()]
    timms: list[Any] = [m for m in blocks if hasattr(m, "fused_attn")]
    for attention in attentions:
        attention.__dict__["forward"] = _plain_attention.__get__(attention)
    if isinstance(encoder, DifnetEncoder):
        encoder.__dict__["forward"] = _two_passes.__get__(encoder)
    before = [(m, m.fused_attn) for m in timms]
    for m in timms:
        m.fused_attn = False
    try:
        with sdpa_kernel(SDPBackend.MATH):  # used by torch's decoder layer
            yield
    finally:
        for m, was in before:
            m.fused_attn = was
        for module in [*attentions, encoder]:
            module.__dict__.pop("forward", None)


def _plain_attention(self: Attention, x: Tensor) -> Tensor:
    query, key, value = (
        linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        for linear in (self.fc_q, self.fc_k, self.fc_v)
    )
    weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)
    mixed = F.dropout(weights, self.dropout, self.training) @ value
    out: Tensor = self.fc_o(mixed.transpose(1, 2).flatten(2))
    return out


def _two_passes(self: DifnetEncoder, grid_tokens: Tensor, segmentation_tokens: Tensor) -> Tensor:
    streams = []
    for place, stream in enumerate((grid_tokens, segmentation_tokens)):
        for layer in self.layers[: self.lf]:
            for _ in range(self.repeats):
                stream = _one_stream(layer, stream, segmentation=place == 1)
        streams.append(stream)
    both = streams[0] + streams[1]
    fused = both
    for layer in self.layers[self.lf :]:
        fused = layer(fused)
    return fused + both


def _one_stream(layer: Any, x: Tensor, *, segmentation: bool) -> Tensor:
    """Pass one stream through a two-stream layer with its own norms."""
    assert isinstance(layer, Layer)
    forward = layer.pwff
    norms: Any = (layer.lnorm, forward.layer_norm)
    if segmentation:
        norms = (layer.lnorm1, forward.layer_norm1)
    attended = norms[0](x + layer.dropout(layer.mhatt(x)))
    out = forward.fc2(forward.inner_dropout(F.relu(forward.fc1(attended))))
    normed: Tensor = norms[1](attended + forward.dropout(out))
    return normed
