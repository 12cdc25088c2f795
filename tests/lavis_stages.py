"""Compare each stage of PNP-VQA with the reference outputs in assets/lavis.

    python -m tests.lavis_stages    # the table in docs/lavis-preset.md

The weights are random and image tokens small, so that the LayerNorms' epsilon shows.
"""

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from lavis_ext.common.tables import markdown
from lavis_ext.config.typed import typed
from lavis_ext.decoders.fid_reader import FidReader, ReaderConfig, end_to_end
from lavis_ext.encoders.blip.encoder import CLIP_STD, TRAINED_EPS, TRANSFORMERS_EPS
from lavis_ext.models.pnp_vqa.config import PnpVqaFusionConfig
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from lavis_ext.models.pnp_vqa.question_matching import match_questions
from lavis_ext.processors.image import StreamImagesConfig, StreamImagesProcessor
from lavis_ext.processors.text import QuestionConfig, QuestionProcessor
from tests import lavis_references as about
from tests.lavis_formulas import Sizes

DELETED = '.!"()*#:;~'
"""In LAVIS, blip_processors.py, and in gqa_lavis_eval.yaml."""
STAGES = {
    "questions without LAVIS's deleted characters": "questions",
    "pixels of a resized picture, of 255 levels": "pixels",
    "image tokens, matching": "image_tokens",
    "matching scores": "scores",
    **{f"heat at block {block}, over its maximum": f"heat_{block}" for block in about.BLOCKS},
    "probabilities of patches, times their number": "patch_probabilities",
    "image tokens, captions": "caption_image_tokens",
    "logits of captions' words": "caption_logits",
    "the reader's passages": "passages",
    "logits of answers' words": "answer_logits",
    "greedy answers": "answers",
}
"""The outputs of each row, by the beginning of their names."""


def blip_section(sizes: Sizes, eps: float | None) -> dict[str, Any]:
    return {
        "image_size": sizes.grid * sizes.patch,
        "patch_size": sizes.patch,
        "vision_width": sizes.vision,
        "vision_layers": sizes.vision_layers,
        "vision_heads": sizes.heads,
        "vision_mlp": sizes.vision_mlp,
        "vision_layer_norm_eps": eps,
        "text_width": sizes.text,
        "text_layers": sizes.text_layers,
        "text_heads": sizes.heads,
        "text_mlp": sizes.text_mlp,
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": sizes.positions,
        "tokenizer": "packaged:miniature/vocabulary.txt",
    }


def build(folder: Path, eps: float | None = None) -> PnpVqaFusion:
    """The model type ``pnp_vqa_base`` at the references' sizes, with their weights."""
    torch.save({"model": about.matching_state()}, folder / "matching.pth")
    torch.save({"model": about.captioning_state()}, folder / "captioning.pth")
    reader = {
        **about.T5,
        "tokenizer": str(about.PIECES),
        "clean_answers": False,
        "count_start_token": True,
        "max_answer_tokens": about.ANSWER_LENGTH,
    }
    t5 = FidReader(typed(ReaderConfig, {**reader, "weights": None}, "model.reader")).t5
    shapes = {name: tensor.shape for name, tensor in t5.state_dict().items()}
    torch.save(about.reader_state(shapes), folder / "reader.pth")
    section = {
        "arch": "pnp_vqa_fusion",
        "model_type": "pnp_vqa_base",
        "streams": {
            "grid": {
                "encoder": "blip",
                **blip_section(about.MATCHING, eps),
                "projection_dim": about.MATCHING.projection,
                "weights": str(folder / "matching.pth"),
            }
        },
        "captioner": {
            **blip_section(about.SIZES, eps),
            "weights": str(folder / "captioning.pth"),
        },
        "reader": {**reader, "weights": str(folder / "reader.pth")},
        "fusion": {"name": "first_only", "gate": False},
        "question_matching": {"block_num": about.BLOCK, "strip_question_marks": True},
        "refined_heat": {"weight": 0.0},
    }
    return PnpVqaFusion(typed(PnpVqaFusionConfig, section, "model"), answering=True).eval()


@torch.no_grad()
def outputs(model: PnpVqaFusion) -> dict[str, Any]:
    """What the model computes for each reference, by the references' names."""
    references, told = about.arrays(), about.texts()
    found: dict[str, Any] = {}
    side = model.streams["grid"].image_size
    processor = StreamImagesProcessor(StreamImagesConfig(sizes={"grid": side}))
    image, resized = (
        processor(each)["grid"][None] for each in (about.picture(), about.picture(*about.PICTURE))
    )
    questions = [QuestionProcessor(QuestionConfig(delete=DELETED))(each) for each in about.ASKED]
    found["questions"] = questions
    pixels = model.blip.normalize(resized)[0]
    found["pixels"] = pixels[:, :: about.EVERY_PIXEL, :: about.EVERY_PIXEL]
    tokens = model.blip.encode(image)
    found["image_tokens"] = tokens[0, :: about.EVERY_TOKEN]
    index = torch.zeros(len(questions), dtype=torch.int64)
    short = [row for row in range(len(questions)) if row != about.LONGEST]
    order = [*short, about.LONGEST]
    for block in about.BLOCKS:
        config = model.config.question_matching
        matched = match_questions(
            model.blip, tokens, index, questions, replace(config, block_num=block)
        )
        found["scores"] = matched.scores
        found[f"heat_{block}"] = matched.heat[order]
        if block == about.BLOCK:
            drawn = matched.heat[about.READ]
            found["patch_probabilities"] = drawn / drawn.sum(dim=1, keepdim=True)
    captioner = model.captioner
    tokens = captioner.encode_image(image)
    found["caption_image_tokens"] = tokens[0, :: about.EVERY_TOKEN]
    patches = torch.from_numpy(references["patches"])
    ids = torch.from_numpy(references["caption_ids"])
    found["caption_logits"] = captioner.blip.text_decoder(
        input_ids=ids[:, :-1], encoder_hidden_states=tokens[0, 1 + patches]
    ).logits[:, len(captioner.prompt_ids) - 1 :]
    asked = [questions[row] for row in about.READ]
    for together in about.TOGETHER:
        captions = told["captions"]
        found[f"passages_{together}"] = [
            model.reader.passages(question, texts, together)
            for question, texts in zip(asked, captions, strict=True)
        ]
        for row, said in enumerate(told[f"answer_ids_{together}"]):
            states, seen = end_to_end(model.reader.encode([asked[row]], [captions[row]], together))
            found[f"answer_logits_{together}_{row}"] = model.reader.t5(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=seen,
                decoder_input_ids=torch.tensor([said[:-1]]),
            ).logits[0]
        samples = {"text_input": asked, "captions": captions}
        found[f"answers_{together}"] = model.forward_qa(samples, num_captions_fid=together)
    return found


def differences(found: Mapping[str, Any]) -> dict[str, float]:
    """Largest difference of each stage from LAVIS; of texts, the number that differ.

    Rows without heat in LAVIS are left out.
    """
    references = about.arrays() | about.texts()
    return {
        stage: max(
            _difference(name, found[name], reference)
            for name, reference in references.items()
            if name.startswith(beginning) and name in found
        )
        for stage, beginning in STAGES.items()
    }


def _difference(name: str, ours: Any, reference: Any) -> float:
    if not isinstance(ours, Tensor):
        pairs = zip(ours, reference, strict=True)
        return sum(one != other for one, other in pairs)
    theirs = torch.from_numpy(reference)
    assert ours.shape == theirs.shape, name
    known = ~theirs.isnan()
    off = (ours - theirs).abs()
    if name.startswith("heat"):
        off = off / theirs.amax(dim=1, keepdim=True)
    if name == "pixels":
        off = off * torch.tensor(CLIP_STD).view(3, 1, 1) * 255
    if name == "patch_probabilities":
        off = off * theirs.shape[1]
    return float(off[known].max())


def main() -> None:
    """Print the differences with transformers' epsilon, and with LAVIS's."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    columns = []
    for eps in (TRANSFORMERS_EPS, TRAINED_EPS):
        with tempfile.TemporaryDirectory() as folder:
            columns.append(differences(outputs(build(Path(folder), eps))))
    rows = [(stage, *(f"{each[stage]:.2g}" for each in columns)) for stage in STAGES]
    print(markdown(rows, ("stage", f"epsilon {TRANSFORMERS_EPS:g}", f"epsilon {TRAINED_EPS:g}")))


if __name__ == "__main__":
    main()
