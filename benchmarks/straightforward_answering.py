"""LAVIS's way of answering, the reference for the pipeline's speed and answers.

The steps and their cost are those of LAVIS 1.0.2 (models/pnp_vqa_models/pnp_vqa.py, models/med.py
and blip_models/blip_image_text_matching.py), on this library's weights: every question has a copy
of its image; GradCAM's backward pass runs through the whole matching model, weights included;
attention is a softmax of a product; the keys and values of a caption's patches are computed for
every word; each question's passages are padded and read by a ``generate`` of their own.

Two things are this library's, so that answers can be compared. Patches and words are drawn with its
keys, and a caption that repeats another is drawn again alone, where LAVIS draws all of them again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple, cast

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.t5.modeling_t5 import T5Attention

from lavis_ext.common.packed_linears import PackedLinear
from lavis_ext.datasets.questions.dataset import QuestionBatch
from lavis_ext.decoders.blip_captioner import BlipCaptioner
from lavis_ext.decoders.fid_reader import FidReader
from lavis_ext.decoders.keyed_noise import KeyedSampling, fold_in, text_keys
from lavis_ext.decoders.patches import draw_patches
from lavis_ext.decoders.unprojected_attention import UnprojectedAttention
from lavis_ext.models.pnp_vqa.answering import SegmentedImages, masks_of_points
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from lavis_ext.models.pnp_vqa.points import point_prompts
from lavis_ext.models.pnp_vqa.refined_heat import refine
from lavis_ext.objectives.matching import MATCH

Past = dict[int, tuple[Tensor, Tensor]]
"""Keys and values of the words so far [B, H, L, C], by block."""


@dataclass(frozen=True)
class Ways:
    """Ways of generating captions.

    Attributes:
        keeps_keys: keep the keys and values of the words so far. As published, LAVIS computes them
            again for every word: ``prepare_inputs_for_generation`` takes ``past``, which the
            required release of transformers (4.26) calls ``past_key_values``. The keys and values
            of the image's patches are computed for every word either way (med.py,
            BertSelfAttention).
    """

    keeps_keys: bool


PLAIN: dict[type, type] = {PackedLinear: nn.Linear, UnprojectedAttention: T5Attention}
AS_PUBLISHED = Ways(keeps_keys=False)
MENDED = Ways(keeps_keys=True)


class Answered(NamedTuple):
    """Results of Q questions."""

    answers: list[str]
    captions: list[list[str]]
    heat: Tensor
    """float [Q, N], the heat maps that patches were drawn by."""


@torch.no_grad()
def answer(model: PnpVqaFusion, samples: QuestionBatch, ways: Ways) -> Answered:
    """Answer Q questions in LAVIS's way; equals the model's ``answer``."""
    index = samples["image_index"]
    alone: QuestionBatch = {
        **samples,
        "images": {name: images[index] for name, images in samples["images"].items()},
        "image_index": torch.arange(len(index)),
    }
    with plain_layers(model):
        heat = heat_maps(model, alone)
        said = captions(model, alone, heat, ways)
        return Answered(read(model.reader, alone["text_input"], said), said, heat)


@contextmanager
def plain_layers(model: nn.Module) -> Iterator[None]:
    """Context manager: torch's linear layers and transformers' attention, not the library's."""
    swapped = [(m, type(m)) for m in model.modules() if type(m) in PLAIN]
    for module, kind in swapped:
        module.__class__ = PLAIN[kind]
    try:
        yield
    finally:
        for module, kind in swapped:
            module.__class__ = kind


def heat_maps(model: PnpVqaFusion, samples: QuestionBatch) -> Tensor:
    """Heat maps [Q, N] (compute_gradcam), refined by masks if the model has them."""
    network = model.blip.blip
    before = [(each, each.requires_grad) for each in network.parameters()]
    network.requires_grad_(True)
    tokens = None
    if len(model.streams) > 1:
        # LAVIS has no fusion; its backward pass reaches the fused tokens.
        tokens = model.encode(samples)
    try:
        with torch.enable_grad():
            if tokens is None:
                pixels = model.blip.normalize(samples["images"][model.first])
                image = network.vision_model(pixels).last_hidden_state
            else:
                image = model.fusion(tokens).detach().requires_grad_()
            raw = gradcams(model, image, samples["text_input"])
    finally:
        network.zero_grad()
        for each, required in before:
            each.requires_grad_(required)
    if tokens is None or not model.segmenting:
        return raw
    (name,) = model.segmenting
    segmenter: Any = model.streams[name]
    height, width = samples["images"][name].shape[-2:]
    segmented = SegmentedImages(segmenter, tokens[name].values, tokens[name].grid, (height, width))
    prompts = point_prompts(raw, model.blip.grid, segmented.size, model.config.points)
    valid = prompts.labels == 1
    masks = masks_of_points(segmented, prompts.points, valid, samples["image_index"])
    return refine(raw, model.blip.grid, masks, valid, model.config.refined_heat).patches


def gradcams(model: PnpVqaFusion, image: Tensor, questions: Sequence[str]) -> Tensor:
    """GradCAM [Q, N] of each question's words in one block's attention to the image."""
    config = model.config.question_matching
    texts = [each.strip("?") for each in questions] if config.strip_question_marks else questions
    ids, mask = model.blip.tokenize(texts)
    if model.blip.config.first_token == "enc":
        ids[:, 0] = model.blip.enc_token_id
    looks: dict[int, Tensor] = {}
    hidden = torch.where(mask[:, None, None, :].bool(), 0.0, -10000.0)
    states = _text_states(model.blip.blip.text_encoder, ids, image, hidden, looks=looks)
    look = looks[config.block_num]
    look.retain_grad()
    model.blip.blip.itm_head(states[:, 0])[:, MATCH].sum().backward()
    assert look.grad is not None
    cams = look.detach()[..., 1:] * look.grad[..., 1:].clamp(min=0)
    per_word = cams.mean(dim=1) * mask[..., None]
    words = mask.sum(dim=1) - 2
    return torch.stack(
        [
            each[1 : count + 1].sum(dim=0) / count
            for each, count in zip(per_word, words.tolist(), strict=True)
        ]
    )


def captions(
    model: PnpVqaFusion, samples: QuestionBatch, heat: Tensor, ways: Ways
) -> list[list[str]]:
    """Captions of each question from patches drawn by its heat (forward_cap)."""
    captioner: BlipCaptioner = model.captioner
    sampling = captioner.config.sampling
    vision: Any = captioner.blip.vision_model
    tokens = vision(captioner.normalize(samples["images"][model.first])).last_hidden_state
    keys = text_keys(samples["ids"], sampling.seed, "captions")
    found: list[dict[str, int]] = [{} for _ in samples["ids"]]
    wanted = [(q, c) for q in range(len(found)) for c in range(sampling.num_captions)]
    for attempt in range(sampling.max_tries):
        if not wanted:
            break
        question, number = torch.tensor(wanted).unbind(dim=1)
        sample_keys = fold_in(fold_in(keys[question], number), attempt)
        patches = draw_patches(heat[question], fold_in(sample_keys, 0), sampling.patches)
        states = tokens[question[:, None], 1 + patches]
        texts = _generated(captioner, states, fold_in(sample_keys, 1), ways)
        again = []
        for (q, c), text in zip(wanted, texts, strict=True):
            said = found[q]
            repeats = (
                any(text in each for each in said) if sampling.drop_contained else text in said
            )
            if text and not repeats:
                said[text] = c
            else:
                again.append((q, c))
        wanted = again
    return [sorted(said, key=said.__getitem__) for said in found]


def read(reader: FidReader, questions: Sequence[str], said: Sequence[Sequence[str]]) -> list[str]:
    """Each question's answer from its captions (forward_qa)."""
    config = reader.config
    start = int(config.count_start_token)
    answers = []
    for question, texts in zip(questions, said, strict=True):
        passages = reader.passages(question, texts)
        tokens = reader.tokenizer(
            passages,
            padding="longest",
            truncation=True,
            max_length=config.max_passage_tokens,
            return_tensors="pt",
        )
        states = reader.t5.encoder(**tokens).last_hidden_state.flatten(0, 1)[None]
        words = cast(Any, reader.t5).generate(
            encoder_outputs=BaseModelOutput(states),
            attention_mask=tokens["attention_mask"].flatten()[None],
            do_sample=False,
            num_beams=config.num_beams,
            min_new_tokens=max(config.min_answer_tokens - start, 0),
            max_new_tokens=config.max_answer_tokens - start,
        )
        answers += reader.tokenizer.batch_decode(words, skip_special_tokens=True)
    return answers


def _generated(captioner: BlipCaptioner, image: Tensor, keys: Tensor, ways: Ways) -> list[str]:
    """A text from each row of patches [B, P, D], word by word."""
    sampling = captioner.config.sampling
    end, padding = captioner.tokenizer.sep_token_id, captioner.tokenizer.pad_token_id
    decoder: Any = captioner.blip.text_decoder
    draw = KeyedSampling(keys)
    filters: list[Any] = []
    if sampling.repetition_penalty != 1:
        filters.append(
            transformers.RepetitionPenaltyLogitsProcessor(penalty=sampling.repetition_penalty)
        )
    if sampling.min_length:
        filters.append(transformers.MinLengthLogitsProcessor(sampling.min_length, end))
    filters.append(transformers.SuppressTokensLogitsProcessor(captioner.not_words))
    if sampling.top_k:
        filters.append(transformers.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        filters.append(transformers.TopPLogitsWarper(sampling.top_p))
    ids = torch.tensor([captioner.prompt_ids]).repeat(len(image), 1)
    prompt = ids.shape[1]
    unfinished = torch.ones(len(ids), dtype=torch.bool)
    past: Past | None = {} if ways.keeps_keys else None
    while ids.shape[1] < sampling.max_length and unfinished.any():
        new = ids if not past else ids[:, -1:]
        length, seen = new.shape[1], ids.shape[1]
        causal = torch.ones(length, seen, dtype=torch.bool).tril(seen - length)
        hidden = torch.where(causal, 0.0, -10000.0)[None, None]
        states = _text_states(decoder.bert, new, image, hidden, past=past)
        scores = decoder.cls(states)[:, -1]
        for each in (*filters, draw):
            scores = each(ids, scores)
        words = torch.where(unfinished, scores.argmax(dim=-1), padding)
        ids = torch.cat([ids, words[:, None]], dim=1)
        unfinished &= words != end
    texts = captioner.tokenizer.batch_decode(ids[:, prompt:], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _text_states(
    text: Any,
    input_ids: Tensor,
    image: Tensor,
    hidden: Tensor,
    *,
    past: Past | None = None,
    looks: dict[int, Tensor] | None = None,
) -> Tensor:
    """Last states [B, L, W] of a text that attends to an image (med.py: BertModel).

    ``hidden`` is added to the scores of self-attention. ``looks`` gets each block's attention to
    the image [B, H, L, 1+N]; ``past`` has the words before ``input_ids``, which are added to it.
    """
    before = past[0][0].shape[2] if past else 0
    positions = torch.arange(before, before + input_ids.shape[1])[None]
    x: Tensor = text.embeddings(input_ids=input_ids, position_ids=positions)
    for block, layer in enumerate(text.encoder.layer):
        for attention, source in ((layer.attention, x), (layer.crossattention, image)):
            own = attention.self
            query, key, value = (
                each.unflatten(-1, (own.num_attention_heads, -1)).transpose(1, 2)
                for each in (own.query(x), own.key(source), own.value(source))
            )
            if source is not image and past is not None:
                if past.get(block):
                    key, value = (
                        torch.cat(both, dim=2)
                        for both in zip(past[block], (key, value), strict=True)
                    )
                past[block] = (key, value)
            scores = query @ key.transpose(-1, -2) / sqrt(query.shape[-1])
            weights = (scores if source is image else scores + hidden).softmax(dim=-1)
            if source is image and looks is not None:
                looks[block] = weights
            mixed = (weights @ value).permute(0, 2, 1, 3).flatten(2)
            x = attention.output(mixed, x)
        x = layer.output(layer.intermediate(x), x)
    return x
