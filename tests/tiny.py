"""The smallest model with every part, and batches for it."""

from typing import Any

import torch

from lavis_ext.config.typed import typed
from lavis_ext.datasets.questions.dataset import QuestionBatch
from lavis_ext.datasets.questions.vocabulary import AnswerVocabulary
from lavis_ext.models.pnp_vqa.config import PnpVqaFusionConfig
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion

SIDE = 32
ANSWERS = ("red", "blue", "circle", "square", "yes", "no")
QUESTIONS = [
    "what color is the circle?",
    "what color is the square?",
    "which shape is red?",
    "which shape is blue?",
    "is there a circle?",
    "is there a square?",
    "is the circle red?",
    "is the square blue?",
]
BLIP_SIZES = {
    "weights": None,
    "tokenizer": "packaged:miniature/vocabulary.txt",
    "image_size": SIDE,
    "patch_size": 8,
    "vision_width": 32,
    "vision_layers": 1,
    "vision_heads": 2,
    "vision_mlp": 64,
    "text_width": 32,
    "text_layers": 2,
    "text_heads": 2,
    "text_mlp": 64,
    "vocab_size": 660,
    "max_position_embeddings": 48,
}
BLIP = {
    **BLIP_SIZES,
    "projection_dim": 8,
    "initializer_range": 0.1,  # with 0.02 some seeds hardly look at the image in 300 steps
}
EFFICIENT_SAM = {
    "weights": None,
    "image_size": SIDE,
    "patch_size": 16,
    "width": 24,
    "depth": 1,
    "heads": 2,
    "neck_width": 16,
}
EFFICIENT_SAM_DECODER = {
    "decoder_heads": 2,
    "decoder_mlp": 32,
    "decoder_upscaling": [8, 4],
    "iou_head_width": 16,
}
STREAMS = {
    "grid": {"encoder": "blip", **BLIP},
    "segmentation": {"encoder": "efficient_sam", **EFFICIENT_SAM, **EFFICIENT_SAM_DECODER},
}
THIRD = {"encoder": "timm", "model": "resnet18", "image_size": 2 * SIDE}
CAPTIONER = {
    **BLIP_SIZES,
    "max_caption_tokens": 24,
    "sampling": {
        "num_captions": 3,
        "top_k": 0,
        "min_length": 0,
        "max_length": 9,
        "patches": {"num_patches": 4},
    },
}
READER = {
    "weights": None,
    "tokenizer": "packaged:miniature/reader_tokenizer.json",
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 4,
    "vocab_size": 660,
    "num_captions_fid": 2,
    "max_answer_tokens": 4,
}
DIFNET = {"name": "difnet", "lf": 1, "t": 2, "n": 2, "heads": 2, "d_ff": 64, "dropout": 0.0}
HEAD = {"width": 32, "heads": 2, "layers": 1, "dropout": 0.0}


def vocabulary() -> AnswerVocabulary:
    return AnswerVocabulary(ANSWERS, overall="yes", by_form={})


def model_section(
    objectives: dict[str, Any],
    fusion: dict[str, Any] | None = None,
    streams: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "arch": "pnp_vqa_fusion",
        "model_type": "mini",
        "streams": streams or STREAMS,
        "question_matching": {"block_num": 0},
        "captioner": CAPTIONER,
        "reader": READER,
        "fusion": fusion or DIFNET,
        "objectives": objectives,
    }


def make_model(
    objectives: dict[str, Any],
    fusion: dict[str, Any] | None = None,
    seed: int = 0,
    streams: dict[str, Any] | None = None,
) -> PnpVqaFusion:
    torch.manual_seed(seed)
    section = model_section(objectives, fusion, streams)
    return PnpVqaFusion(typed(PnpVqaFusionConfig, section, "model"), vocabulary())


def make_answering_model(
    fusion: dict[str, Any] | None = None, seed: int = 0, **options: Any
) -> PnpVqaFusion:
    """The whole pipeline with random weights; ``options`` are further ones of the section."""
    torch.manual_seed(seed)
    section = {**model_section({"itm": None}, fusion), **options}
    config = typed(PnpVqaFusionConfig, section, "model")
    return PnpVqaFusion(config, vocabulary(), load_weights=False, answering=True).eval()


def make_samples(images: int = 4, seed: int = 0) -> QuestionBatch:
    """Two questions an image, each with one mismatched question and an answer."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (images, 3, SIDE, SIDE), generator=generator).byte()
    count = 2 * images
    asked = [QUESTIONS[i % len(QUESTIONS)] for i in range(count)]
    return {
        "images": {"grid": pictures, "segmentation": pictures.flip(-1)},
        "image_index": torch.arange(images).repeat_interleave(2),
        "text_input": asked,
        "mismatched_input": asked[3:] + asked[:3],
        "answer": [ANSWERS[(i + seed) % len(ANSWERS)] for i in range(count)],
        "ids": [f"{i:08d}" for i in range(count)],
        "global_size": count,
    }
