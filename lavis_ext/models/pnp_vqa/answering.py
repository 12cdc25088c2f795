"""PNP-VQA (Tiong et al., Findings of EMNLP 2022) with masks, from fused tokens to answers.

Question matching gives a heat map, and its peaks are point prompts. EfficientSAM's masks for them
refine the heat map. Patches sampled by it are captioned, and a reader answers from the captions.

Shapes: Q questions, I images, N = h * w patches, P points of a question.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lavis_ext.common.errors import UserError
from lavis_ext.datasets.questions.dataset import QuestionBatch
from lavis_ext.decoders.blip_captioner import BlipCaptioner, SamplingConfig
from lavis_ext.decoders.blip_vqa import BlipVqa
from lavis_ext.decoders.fid_reader import PASSAGES, QUESTIONS, FidReader, ReaderConfig
from lavis_ext.encoders.blip.encoder import BlipEncoder
from lavis_ext.encoders.efficient_sam.encoder import EfficientSam
from lavis_ext.encoders.efficient_sam.mask_decoder import best_mask
from lavis_ext.encoders.efficient_sam.prompt_encoder import POINT
from lavis_ext.models.pnp_vqa.points import PointsConfig, point_prompts
from lavis_ext.models.pnp_vqa.question_matching import QuestionMatchingConfig, match_questions
from lavis_ext.models.pnp_vqa.refined_heat import RefinedHeatConfig, refine


class SegmentedImages(NamedTuple):
    """I images encoded by EfficientSAM."""

    segmenter: EfficientSam
    tokens: Tensor
    """float [I, h'*w', C], patches row by row."""
    grid: tuple[int, int]
    """(h', w') of the patches."""
    size: tuple[int, int]
    """Height and width of the images in pixels."""


@dataclass(frozen=True)
class Located:
    """Heat maps, points and masks of Q questions."""

    matching: Tensor
    """float [Q], probability that question and image belong together."""
    heat: Tensor
    """float [Q, N], the raw heat maps, patches row by row."""
    grid: tuple[int, int]
    """(h, w) of the patches."""
    points: Tensor
    """float [Q, P, 2], (x, y) in pixels at ``image_size``."""
    labels: Tensor
    """int64 [Q, P]: 1 for a point, -1 for padding."""
    masks: Tensor
    """bool [Q, H', W'], union of the points' masks; all False without points or segmenter.
    Without a segmenter the resolution is that of the patches."""
    refined: Tensor
    """float [Q, H', W'], the refined heat maps at the masks' resolution."""
    patch_heat: Tensor
    """float [Q, N], the refined heat maps on the patches."""
    image_size: tuple[int, int]
    """Height and width in pixels of EfficientSAM's image; of BLIP's without a segmenter."""


@dataclass(frozen=True)
class PipelineOutput(Located):
    """Answers, captions and heat maps of Q questions."""

    answers: list[str]
    """[Q]."""
    captions: list[list[str]]
    """Captions of each question, [Q] lists."""
    repeated: list[int]
    """Number of repeated or empty captions dropped for each question, [Q]."""


@dataclass(frozen=True)
class LocatingConfig:
    """Options of ``locate``."""

    question_matching: QuestionMatchingConfig
    points: PointsConfig
    refined_heat: RefinedHeatConfig


def locate(
    blip: BlipEncoder,
    fused: Tensor,
    images: SegmentedImages | None,
    samples: QuestionBatch,
    config: LocatingConfig,
) -> Located:
    """Heat maps, points and masks of a batch of questions.

    Args:
        blip: BLIP in evaluation mode.
        fused: float [I, 1+N, D], fused tokens, which replace BLIP's.
        images: the images encoded by EfficientSAM. Without them there are no masks, and refined
            heat maps equal the raw ones.
        samples: the questions.
        config: options.

    Raises UserError as ``match_questions`` and ``point_prompts`` do.
    """
    index = samples["image_index"]
    matched = match_questions(blip, fused, index, samples["text_input"], config.question_matching)
    grid, side = blip.grid, blip.config.image_size
    size = (side, side) if images is None else images.size
    prompts = point_prompts(matched.heat, grid, size, config.points)
    valid = prompts.labels == POINT
    if images is None:
        masks = torch.zeros((*valid.shape, *grid), dtype=torch.bool, device=valid.device)
    else:
        masks = masks_of_points(images, prompts.points, valid, index.to(valid.device))
    refined = refine(matched.heat, grid, masks, valid, config.refined_heat)
    return Located(
        matching=matched.scores,
        heat=matched.heat,
        grid=grid,
        points=prompts.points,
        labels=prompts.labels,
        masks=(masks & valid[..., None, None]).any(dim=1),
        refined=refined.pixels,
        patch_heat=refined.patches,
        image_size=size,
    )


def answer(
    located: Located,
    tokens: Tensor,
    captioner: BlipCaptioner,
    reader: FidReader,
    samples: QuestionBatch,
    sampling: SamplingConfig,
    reading: ReaderConfig,
) -> PipelineOutput:
    """Caption patches sampled by the refined heat maps, and read answers from the captions.

    ``tokens`` are the captioner's image tokens, its own or fused, float [I, 1+N, D]. Raises
    UserError as ``BlipCaptioner.caption`` and ``FidReader.read`` do.
    """
    captions = captioner.caption(
        tokens,
        samples["image_index"].to(tokens.device),
        located.patch_heat,
        samples["ids"],
        sampling,
    )
    answers = reader.read(samples["text_input"], captions.texts, reading)
    return PipelineOutput(
        **vars(located), answers=answers, captions=captions.texts, repeated=captions.repeated
    )


def answer_directly(
    located: Located,
    tokens: Tensor,
    vqa: BlipVqa,
    samples: QuestionBatch,
    answers: Sequence[str] | None,
) -> PipelineOutput:
    """Answer by BLIP's question answering, without captions.

    ``tokens`` are its image tokens, its own or fused, float [I, 1+N, D]; ``answers`` are those to
    rank. Raises UserError as ``BlipVqa.answer`` does.
    """
    texts = samples["text_input"]
    found = vqa.answer(vqa.read(tokens, samples["image_index"], texts), answers)
    nothing = [0] * len(texts)
    return PipelineOutput(
        **vars(located), answers=found, captions=[[] for _ in texts], repeated=nothing
    )


def masks_of_points(
    images: SegmentedImages,
    points: Tensor,
    valid: Tensor,
    image_index: Tensor,
) -> Tensor:
    """The mask with the highest predicted IoU for each point, bool [Q, P, H', W'].

    Points are on different objects (see ``find_points``), so each is a separate prompt. Padding
    has an empty mask.
    """
    question, _ = valid.nonzero(as_tuple=True)
    prediction = images.segmenter.predict_masks(
        images.tokens,
        images.grid,
        images.size,
        points[valid][:, None],
        torch.full((len(question), 1), POINT, device=points.device),
        image_index[question],
    )
    logits, _ = best_mask(prediction)
    masks = torch.zeros((*valid.shape, *logits.shape[-2:]), dtype=torch.bool, device=points.device)
    masks[valid] = logits > 0
    return masks


def override(
    sampling: SamplingConfig, reading: ReaderConfig, given: dict[str, Any]
) -> tuple[SamplingConfig, ReaderConfig]:
    """Override options by arguments of LAVIS's ``predict_answers``.

    ``given`` has LAVIS's names; None and absent ones override nothing. Raises UserError for an
    ``internal_bsz_fid`` above 1 if the config counts it in passages.
    """
    passages = given.get("internal_bsz_fid")
    if reading.internal_bsz_fid == PASSAGES and passages not in (None, 1):
        raise UserError(
            f"internal_bsz_fid is {passages}. As LAVIS counts it (model.reader.internal_bsz_fid: "
            f"{PASSAGES}), a question's passages would be divided into {passages} groups and each "
            "give an answer, so that answers no longer belong to questions. Give 1, or set "
            f"model.reader.internal_bsz_fid to {QUESTIONS}, which counts questions."
        )

    def pick(**theirs: str) -> dict[str, Any]:
        named = {ours: given.get(name) for ours, name in theirs.items()}
        return {ours: value for ours, value in named.items() if value is not None}

    sampling = replace(
        sampling,
        patches=replace(sampling.patches, **pick(num_patches="num_patches")),
        **pick(
            num_captions="num_captions",
            max_length="cap_max_length",
            min_length="cap_min_length",
            top_k="top_k",
            top_p="top_p",
            repetition_penalty="repetition_penalty",
        ),
    )
    reading = replace(
        reading,
        **pick(
            num_beams="num_beams",
            max_answer_tokens="max_len",
            min_answer_tokens="min_len",
            num_captions_fid="num_captions_fid",
            questions_per_pass="internal_bsz_fid",
        ),
    )
    return sampling, reading
