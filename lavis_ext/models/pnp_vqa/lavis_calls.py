"""The interface of LAVIS's PNP-VQA, with LAVIS's samples, arguments and results.

LAVIS's samples have ``image``, float [Q, 3, H, W] as normalized by its processor
``blip_image_eval``, one image for each question, and ``text_input``, a question or a list of Q.
LAVIS's tasks add ``question_id`` [Q] (LAVIS 1.0.2, models/pnp_vqa_models/pnp_vqa.py).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from lavis_ext.common.errors import UserError
from lavis_ext.datasets.questions.dataset import QuestionBatch
from lavis_ext.encoders.base import Encoder
from lavis_ext.processors.image import square

if TYPE_CHECKING:
    from lavis_ext.models.pnp_vqa.model import PnpVqaFusion

DECODING = (
    "num_beams",
    "max_len",
    "min_len",
    "internal_bsz_fid",
    "num_captions",
    "num_captions_fid",
    "cap_max_length",
    "cap_min_length",
    "top_k",
    "top_p",
    "repetition_penalty",
    "num_patches",
    "block_num",
)
"""Arguments of ``predict_answers`` that ``generate`` accepts in ``decoding``."""
REQUIRED = ("images", "image_index", "text_input", "ids")


class LavisCalls:
    """``predict_answers`` and its three steps, for a model built for answering.

    The config replaces arguments that are None: ``model.reader`` (beams, lengths of answers,
    captions in a passage, unit of ``internal_bsz_fid``), ``model.captioner.sampling`` and
    ``model.question_matching``.
    """

    @property
    def _model(self) -> "PnpVqaFusion":
        return cast("PnpVqaFusion", self)

    def predict_answers(
        self,
        samples: Any,
        num_beams: int | None = None,
        inference_method: str = "generate",
        max_len: int | None = None,
        min_len: int | None = None,
        internal_bsz_fid: int | None = None,
        num_captions: int | None = None,
        num_captions_fid: int | None = None,
        cap_max_length: int | None = None,
        cap_min_length: int | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        num_patches: int | None = None,
        block_num: int | None = None,
    ) -> tuple[list[str], list[list[str]], Tensor]:
        """Answer questions, with LAVIS's arguments in LAVIS's order.

        ``samples`` are LAVIS's, or a ``QuestionBatch`` with images.

        Returns:
            Answers [Q], captions of each question, and the heat maps float [Q, N] that patches were
            sampled by. These are refined; they are raw, as LAVIS's, if
            ``model.refined_heat.weight`` is 0.

        Raises:
            UserError: for an ``inference_method`` other than ``generate``, for incomplete samples,
                and as the steps do.
        """
        if inference_method != "generate":
            raise UserError(
                f"inference_method is '{inference_method}'; PNP-VQA's reader has only 'generate'."
            )
        output = self._model.answer(
            question_batch(samples, self._model.streams),
            num_beams=num_beams,
            max_len=max_len,
            min_len=min_len,
            internal_bsz_fid=internal_bsz_fid,
            num_captions=num_captions,
            num_captions_fid=num_captions_fid,
            cap_max_length=cap_max_length,
            cap_min_length=cap_min_length,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            num_patches=num_patches,
            block_num=block_num,
        )
        return output.answers, output.captions, output.patch_heat

    def forward_itm(self, samples: dict[str, Any], block_num: int | None = None) -> dict[str, Any]:
        """Add ``gradcams``, float [Q, N], to the samples: the heat maps to sample patches by."""
        batch = question_batch(samples, self._model.streams)
        samples["gradcams"] = self._model.locate(batch, block_num).patch_heat
        return samples

    @torch.no_grad()
    def forward_cap(
        self,
        samples: dict[str, Any],
        cap_max_length: int | None = None,
        cap_min_length: int | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        repetition_penalty: float | None = None,
        num_captions: int | None = None,
        num_patches: int | None = None,
    ) -> dict[str, Any]:
        """Add ``captions``, a list for each question, to the samples of ``forward_itm``."""
        from lavis_ext.models.pnp_vqa.answering import override

        model = self._model
        sampling, _ = override(
            model.config.captioner.sampling,
            model.config.reader,
            {
                "cap_max_length": cap_max_length,
                "cap_min_length": cap_min_length,
                "top_p": top_p,
                "top_k": top_k,
                "repetition_penalty": repetition_penalty,
                "num_captions": num_captions,
                "num_patches": num_patches,
            },
        )
        batch = question_batch(samples, model.streams)
        tokens = model.part_tokens("captioner", batch)
        heat = _required(samples, "gradcams", "call forward_itm first")
        index = batch["image_index"].to(tokens.device)
        found = model.captioner.caption(tokens, index, heat, batch["ids"], sampling)
        samples["captions"] = found.texts
        return samples

    def forward_qa(
        self,
        samples: dict[str, Any],
        num_beams: int | None = None,
        max_len: int | None = None,
        min_len: int | None = None,
        internal_bsz_fid: int | None = None,
        num_captions: int | None = None,
        num_captions_fid: int | None = None,
    ) -> list[str]:
        """Answers [Q] from the first ``num_captions`` captions of ``forward_cap``."""
        from lavis_ext.models.pnp_vqa.answering import override

        model = self._model
        _, reading = override(
            model.config.captioner.sampling,
            model.config.reader,
            {
                "num_beams": num_beams,
                "max_len": max_len,
                "min_len": min_len,
                "internal_bsz_fid": internal_bsz_fid,
                "num_captions_fid": num_captions_fid,
            },
        )
        captions = _required(samples, "captions", "call forward_cap first")
        captions = [texts[:num_captions] for texts in captions]
        return model.reader.read(_questions(samples), captions, reading)


def question_batch(samples: Any, streams: Mapping[str, Encoder]) -> QuestionBatch:
    """Convert LAVIS's samples to a batch for ``streams``; this library's batches are unchanged.

    Images are rescaled to 0..1 and resized for each stream. The ids, which seed the captions, are
    the question ids, or the questions if there are none. Raises UserError for samples that are
    incomplete or don't fit together.
    """
    if "image" not in samples or "images" in samples:
        return cast(QuestionBatch, samples)
    images, questions = samples["image"], _questions(samples)
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
        found = f"{images.dtype} {[*images.shape]}" if isinstance(images, Tensor) else type(images)
        raise UserError(
            f"samples['image'] is {found}; it must be a float tensor [questions, 3, height, width],"
            " normalized as LAVIS's processor blip_image_eval does."
        )
    if len(questions) != len(images):
        raise UserError(
            f"samples['text_input'] has {len(questions)} questions and samples['image'] "
            f"{len(images)} images; give each question its image."
        )
    pixels = _denormalize(images)
    ids = samples.get("question_id", questions)
    return {
        "images": {name: square(pixels, each.image_size) for name, each in streams.items()},
        "image_index": torch.arange(len(images)),
        "text_input": questions,
        "ids": [str(each) for each in (ids.tolist() if isinstance(ids, Tensor) else ids)],
    }


def check_images(samples: Any) -> None:
    """Raise UserError for a batch without images or another of ``REQUIRED``."""
    if "tokens" in samples and "images" not in samples:
        raise UserError(
            "Masks and captions are made from images, and the samples have only stored "
            "features; leave run.features out."
        )
    missing = [name for name in REQUIRED if name not in samples]
    if missing:
        raise UserError(
            f"The samples have no {', '.join(missing)}. Answering needs image and text_input, as in"
            f" LAVIS, or {', '.join(REQUIRED)}."
        )


def _questions(samples: Any) -> list[str]:
    questions = _required(samples, "text_input", "it has the questions")
    return [questions] if isinstance(questions, str) else list(questions)


def _required(samples: Any, name: str, advice: str) -> Any:
    if name not in samples:
        raise UserError(f"The samples have no '{name}'; {advice}.")
    return samples[name]


def _denormalize(images: Tensor) -> Tensor:
    from lavis_ext.encoders.blip.encoder import CLIP_MEAN, CLIP_STD

    mean, std = (images.new_tensor(each).view(3, 1, 1) for each in (CLIP_MEAN, CLIP_STD))
    return images * std + mean
