"""Where a question looks in the image: GradCAM in BLIP's text encoder (PNP-VQA, Tiong et al. 2022).

Selvaraju et al. (ICCV 2017) weigh a layer's maps by the gradient of a score. Here the maps are the
cross-attention of one block and the score is the logit for "question and image belong together".

Shapes: I images, Q questions, H heads, L text tokens, N patches, D image width; R rows of P places,
in which the questions of an image are packed.
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
    """Where in the text encoder the heat map is read."""

    block_num: int = option(
        7,
        "block of the text encoder whose cross-attention gives the heat map, from 0; not the last",
        at_least=0,
    )


class MatchedQuestions(NamedTuple):
    """What question matching says of Q questions. Neither tensor has a graph."""

    scores: Tensor
    """float32 [Q], probability that question and image belong together."""
    heat: Tensor
    """float32 [Q, N], at least 0, patches row by row. It is 0 everywhere for a question that no
    attention speaks for: then there are no points, and patches are drawn as if all were alike."""


def check_block_num(config: QuestionMatchingConfig, sizes: BlipSizesConfig, where: str) -> None:
    """Raise UserError for a ``block_num`` that can give no heat map.

    The text encoder's last block is one: of its cross-attention only the class token's reaches the
    score, so that the words' gradients are 0. ``where`` is the key under which ``config`` stands.
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

    Heat is attention times its gradient, the gradient's negative part taken as 0; then the mean
    over heads, then over the question's words. [ENC] (or [CLS]), [SEP] and padding are no words,
    and the image's class token is no patch (LAVIS, blip_image_text_matching.py: compute_gradcam).
    LAVIS cuts the question mark off beforehand; here the text is read as in training.

    Gradients start at that block's attention: what comes before it builds no graph, nothing reaches
    ``tokens`` or a parameter, and no ``.grad`` is written. The caller's grad mode doesn't matter.

    Args:
        encoder: BLIP, in evaluation mode.
        tokens: [I, 1+N, D], fused tokens or an encoder's, the class token first.
        image_index: int64 [Q], which image each question is about.
        questions: Q of them.
        config: where the heat map is read.
        where: the key under which ``config`` stands.

    Raises UserError for a ``block_num`` out of range, and for a heat map that is not finite.
    """
    check_block_num(config, encoder.config, where)
    with torch.inference_mode(False), torch.no_grad():
        packed = encoder.pack(questions, image_index, len(tokens))
        start = _GraphStart()
        probe = AttentionProbe(config.block_num, start.look)
        # A tensor from inference mode may be in no graph; its copy may.
        logits = encoder.match(tokens.clone(), packed, probe=probe)
        (gradient,) = torch.autograd.grad(logits[:, MATCH].sum(), start.attention)

    attention = start.attention.detach()[..., 1:].float()
    per_place = (attention * gradient[..., 1:].float().clamp(min=0)).mean(dim=1)  # [R, P, N]
    word = _words(packed.mask)
    heat = (packed.unpack(per_place) * word[..., None]).sum(dim=1)  # [Q, N]
    heat = heat / word.sum(dim=1, keepdim=True).clamp(min=1)
    _refuse_not_finite(heat, questions)
    return MatchedQuestions(logits.detach().float().softmax(dim=-1)[:, MATCH], heat)


class _GraphStart:
    """Makes the attention that it is shown the leaf of a graph, and turns gradients on.

    They stay on until the grad mode around the call ends.
    """

    attention: Tensor
    """float [R, H, P, 1+N]."""

    def look(self, probabilities: Tensor) -> None:
        torch.set_grad_enabled(True)
        self.attention = probabilities.requires_grad_()


def _words(mask: Tensor) -> Tensor:
    """bool [Q, L]: the tokens between the first and the last of each question."""
    position = torch.arange(mask.shape[1], device=mask.device)
    return (position > 0) & (position < mask.sum(dim=1, keepdim=True) - 1)


def _refuse_not_finite(heat: Tensor, questions: Sequence[str]) -> None:
    wrong = ~torch.isfinite(heat).all(dim=1)
    if wrong.any():
        question = questions[int(wrong.nonzero()[0])]
        raise UserError(
            f"The heat map of the question '{question}' has values that are not finite. Check the "
            "weights of the fusion and of BLIP, or run in float32."
        )
