"""From fused tokens to answers: PNP-VQA (Tiong et al., Findings of EMNLP 2022) with masks.

Question matching gives a heat map, its peaks are points, EfficientSAM's masks at the points refine
the heat map, patches drawn by it are captioned, and a reader answers from the captions.

Q questions, I images, N = h * w patches, P points of a question.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lavis_ext.datasets.gqa.dataset import QuestionBatch
from lavis_ext.decoders.blip_captioner import BlipCaptioner, SamplingConfig
from lavis_ext.decoders.fid_reader import FidReader, ReaderConfig
from lavis_ext.encoders.blip.encoder import BlipEncoder
from lavis_ext.encoders.efficient_sam.encoder import EfficientSam
from lavis_ext.encoders.efficient_sam.mask_decoder import best_mask
from lavis_ext.encoders.efficient_sam.prompt_encoder import POINT
from lavis_ext.models.pnp_vqa.points import PointsConfig, point_prompts
from lavis_ext.models.pnp_vqa.question_matching import QuestionMatchingConfig, match_questions
from lavis_ext.models.pnp_vqa.refined_heat import RefinedHeatConfig, refine


class SegmentedImages(NamedTuple):
    """What EfficientSAM sees in I images."""

    tokens: Tensor
    """float [I, h'*w', C]."""
    grid: tuple[int, int]
    """(h', w')."""
    size: tuple[int, int]
    """Height and width of the images in pixels."""


@dataclass(frozen=True)
class Located:
    """Where Q questions look in their images."""

    matching: Tensor
    """float [Q], probability that question and image belong together."""
    heat: Tensor
    """float [Q, N], the raw heat maps, patches row by row."""
    grid: tuple[int, int]
    """(h, w) of the patches."""
    points: Tensor
    """float [Q, P, 2], (x, y) in pixels of EfficientSAM's image."""
    labels: Tensor
    """int64 [Q, P]: 1 for a point, -1 for padding."""
    masks: Tensor
    """bool [Q, H', W'], what the points mean; False everywhere without points."""
    refined: Tensor
    """float [Q, H', W'], the refined heat maps, as finely as the masks."""
    patch_heat: Tensor
    """float [Q, N], the refined heat maps on the patches."""
    image_size: tuple[int, int]
    """Height and width in pixels of EfficientSAM's image."""


@dataclass(frozen=True)
class PipelineOutput(Located):
    """What the pipeline found for Q questions."""

    answers: list[str]
    captions: list[list[str]]
    repeated: list[int]
    """Captions of each question that were dropped because they had been said before."""


@dataclass(frozen=True)
class LocatingConfig:
    """The options of the steps that locate."""

    question_matching: QuestionMatchingConfig
    points: PointsConfig
    refined_heat: RefinedHeatConfig


def locate(
    blip: BlipEncoder,
    efficient_sam: EfficientSam,
    fused: Tensor,
    images: SegmentedImages,
    samples: QuestionBatch,
    config: LocatingConfig,
) -> Located:
    """Heat maps, points and masks of questions, several for one image in one pass.

    ``fused`` [I, 1+N, D] stand in place of BLIP's tokens. Raises UserError as the steps do.
    """
    index = samples["image_index"]
    matched = match_questions(blip, fused, index, samples["text_input"], config.question_matching)
    grid, size = blip.grid, images.size
    prompts = point_prompts(matched.heat, grid, size, config.points)
    valid = prompts.labels == POINT
    masks = _masks_of_points(efficient_sam, images, prompts.points, valid, index.to(valid.device))
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
    images: Tensor,
    captioner: BlipCaptioner,
    reader: FidReader,
    samples: QuestionBatch,
    sampling: SamplingConfig,
    reading: ReaderConfig,
) -> PipelineOutput:
    """Captions of the located patches, and answers read from them. Raises UserError as they do.

    ``images`` [I, 3, S, S] are those whose patches were located.
    """
    tokens = captioner.encode_image(images)
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


def _masks_of_points(
    efficient_sam: EfficientSam,
    images: SegmentedImages,
    points: Tensor,
    valid: Tensor,
    image_index: Tensor,
) -> Tensor:
    """The mask with the best predicted IoU of each point by itself, bool [Q, P, H', W'].

    Points lie on different things (see ``find_points``), so each has a query of its own; padding
    has none, and a mask without any pixel.
    """
    question, _ = valid.nonzero(as_tuple=True)
    prediction = efficient_sam.predict_masks(
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


def overridden(
    sampling: SamplingConfig, reading: ReaderConfig, given: dict[str, Any]
) -> tuple[SamplingConfig, ReaderConfig]:
    """The options with those of LAVIS's ``predict_answers`` that are given in their place.

    ``given`` is by LAVIS's names; what is None or absent stays as it is.
    """

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
