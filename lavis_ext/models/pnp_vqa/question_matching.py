"""Heat map of a question: GradCAM in BLIP's text encoder (PNP-VQA, Tiong et al. 2022).

GradCAM (Selvaraju et al., ICCV 2017) weights a layer's maps by the gradient of a score. Here the
maps are the cross-attention of one block and the score is the logit for "question and image belong
together".

Shapes: I images, Q questions, H heads, L text tokens, N patches, D image width; R rows of P
positions, in which the questions of an image are packed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import option
from lavis_ext.encoders.blip.encoder import BlipEncoder, BlipSizesConfig
from lavis_ext.encoders.blip.passes import AttentionProbe
from lavis_ext.objectives.matching import MATCH


@dataclass
class QuestionMatchingConfig:
    """Options of ``match_questions``."""

    block_num: int = option(
        7,
        "Block of the text encoder whose cross-attention gives the heat map, from 0; not the last.",
        at_least=0,
    )
    strip_question_marks: bool = option(
        False,
        "Match questions without the question marks at their ends, as LAVIS's PNP-VQA does; false "
        "matches the same text as in training.",
    )


class MatchedQuestions(NamedTuple):
    """Scores and heat maps of Q questions, detached."""

    scores: Tensor
    """float32 [Q], probability that question and image belong together."""
    heat: Tensor
    """float32 [Q, N], at least 0, patches row by row. A question without positive attention has 0
    everywhere; it has no points, and its patches are sampled uniformly."""


def check_block_num(config: QuestionMatchingConfig, sizes: BlipSizesConfig, where: str) -> None:
    """Raise UserError unless ``block_num`` is a block of the text encoder before its last.

    The score depends only on the class token's cross-attention in the last block, so the words have
    gradients of 0 there. ``where`` is the key of ``config``.
    """
    last = sizes.text_layers - 2
    if last < 0:
        raise UserError(
            f"{where} needs a text encoder of at least 2 blocks, and text_layers is "
            f"{sizes.text_layers}: a word reaches the score only through a later block."
        )
    if not 0 <= config.block_num <= last:
        raise UserError(
            f"{where}.block_num is {config.block_num}; with text_layers {sizes.text_layers} it must"
            f" be in 0 to {last}: a word reaches the score only through a later block."
        )


def match_questions(
    encoder: BlipEncoder,
    tokens: Tensor,
    image_index: Tensor,
    questions: Sequence[str],
    config: QuestionMatchingConfig,
    where: str = "model.question_matching",
) -> MatchedQuestions:
    """Score and heat map of each question.

    Heat is attention times the positive part of its gradient, averaged over heads, then over the
    question's words. [ENC] (or [CLS]), [SEP], padding and the image's class token are excluded
    (LAVIS, blip_image_text_matching.py: compute_gradcam).

    The graph starts at that block's attention, so neither ``tokens`` nor parameters get a gradient.
    The result doesn't depend on the caller's grad mode.

    Args:
        encoder: BLIP, in evaluation mode.
        tokens: float [I, 1+N, D], fused or of the encoder, the class token first.
        image_index: int64 [Q], the image of each question.
        questions: Q texts.
        config: options.
        where: the key of ``config``, for errors.

    Raises UserError for a ``block_num`` out of range and a heat map with non-finite values.
    """
    check_block_num(config, encoder.config, where)
    with torch.inference_mode(False), torch.no_grad():
        texts = (
            [each.strip("?") for each in questions] if config.strip_question_marks else questions
        )
        packed = encoder.pack(texts, image_index, len(tokens))
        start = _GraphStart()
        probe = AttentionProbe(config.block_num, start.look)
        # Tensors created in inference mode can't be part of a graph; copies can.
        logits = encoder.match(tokens.clone(), packed, probe=probe)
        (gradient,) = torch.autograd.grad(logits[:, MATCH].sum(), start.attention)

    attention = start.attention.detach()[..., 1:].float()
    packed_heat = (attention * gradient[..., 1:].float().clamp(min=0)).mean(dim=1)  # [R, P, N]
    is_word = _is_word(packed.mask)
    heat = (packed.unpack(packed_heat) * is_word[..., None]).sum(dim=1)  # [Q, N]
    heat = heat / is_word.sum(dim=1, keepdim=True).clamp(min=1)
    _check_finite(heat, questions)
    return MatchedQuestions(logits.detach().float().softmax(dim=-1)[:, MATCH], heat)


class _GraphStart:
    """Probe that makes the attention a leaf of the graph, and enables gradients from there.

    They stay enabled until the surrounding grad mode ends.
    """

    attention: Tensor
    """float [R, H, P, 1+N]."""

    def look(self, probabilities: Tensor) -> None:
        torch.set_grad_enabled(True)
        self.attention = probabilities.requires_grad_()


def _is_word(mask: Tensor) -> Tensor:
    """bool [Q, L], True for tokens between the first and the last of each question."""
    position = torch.arange(mask.shape[1], device=mask.device)
    return (position > 0) & (position < mask.sum(dim=1, keepdim=True) - 1)


def _check_finite(heat: Tensor, questions: Sequence[str]) -> None:
    wrong = ~torch.isfinite(heat).all(dim=1)
    if wrong.any():
        question = questions[int(wrong.nonzero()[0])]
        raise UserError(
            f"The heat map of the question '{question}' has values that are not finite. Check the "
            "weights of the fusion and of BLIP, or run in float32."
        )
