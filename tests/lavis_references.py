"""Inputs, weights and sizes of the reference outputs in assets/lavis, which LAVIS itself computed.

``make_lavis_references`` reads this where LAVIS 1.0.2 runs, so nothing of this library is imported.
LAVIS's heat maps have 24 x 24 patches and 12 heads, whatever the model.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.lavis_formulas import Sizes, checkpoint
from tests.parity import normal

ASSETS = Path(__file__).parent / "assets" / "lavis"
ARRAYS, TEXTS = ASSETS / "references.npz", ASSETS / "references.json"
PIECES = ASSETS / "spiece.model"
VOCABULARY = Path(__file__).parents[1] / "lavis_ext" / "miniature" / "vocabulary.txt"
PROMPT = "a picture of "
MAX_TXT_LEN = 35
"""In LAVIS, blip_image_text_matching.py."""

SIZES = Sizes(grid=24, patch=4, vision=48, vision_mlp=96, text=48, text_mlp=96, heads=12)
MATCHING = Sizes(**{**vars(SIZES), "text_layers": 12})
BLOCKS = (0, 3, 7, 10)
BLOCK = 7
"""LAVIS's default, of whose heat patches are drawn."""
PICTURE = (130, 90)
"""Width and height of a picture that is resized."""
EVERY_TOKEN, EVERY_PIXEL = 24, 4
"""Of image tokens and pixels, each so-manieth is kept."""

ASKED = [
    "What color is the (large) circle?",
    "...",  # nothing is left of it
    "is the circle red",
    "is there a star??",
    "?is the square: blue!?",
    "is the large red circle left of the small blue square " * 4,
]
EMPTY, LONGEST = 1, 5
READ = [0, 2, 3, 4]
"""Questions that LAVIS answers to the end."""
CAPTIONS, PATCHES, CAPTION_LENGTH = 3, 20, 9
TOGETHER = (1, 2)
"""Captions in a passage."""
ANSWER_LENGTH = 6

T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "vocab_size": 220,
}
T5_PIECES = {
    "pad_id": 0,
    "eos_id": 1,
    "unk_id": 2,
    "bos_id": -1,
    "pad_piece": "<pad>",
    "eos_piece": "</s>",
    "unk_piece": "<unk>",
    "minloglevel": 2,
}
"""Options with which sentencepiece trains a vocabulary with T5's special tokens."""


def picture(width: int = SIZES.grid * SIZES.patch, height: int | None = None) -> Image.Image:
    """RGB; by default of the models' size, so that nothing is resized."""
    row, column = np.mgrid[0 : height or width, 0:width]
    waves = [np.sin(column / 9 + n) * np.cos(row / (5 + n)) for n in range(3)]
    return Image.fromarray(np.uint8(127 * (np.stack(waves, axis=-1) + 1)))


def matching_state() -> dict[str, Tensor]:
    """Of BLIP's retrieval model."""
    return _attentive(checkpoint("retrieval", seed=11, sizes=MATCHING))


def captioning_state() -> dict[str, Tensor]:
    """Of BLIP's captioner."""
    return _attentive(checkpoint("caption", seed=12, sizes=SIZES))


def _attentive(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sharpen the attention of the text, so that scores and words depend on what is read."""
    read = ".attention.self.", ".attention.output.dense.weight", "itm_head.weight"
    return {
        name: (3 if any(part in name for part in read) else 1) * each
        for name, each in state.items()
    }


def reader_state(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Of a T5 whose tensors have these ``shapes``, by transformers' names."""
    tied = {name: "shared.weight" for name in shapes if "embed_tokens" in name}
    tied["lm_head.weight"] = "shared.weight"
    return {
        name: (1.0 if "layer_norm" in name else 0.0)
        + (0.5 if name in tied or name == "shared.weight" else 0.4)
        * normal(f"lavis.{tied.get(name, name)}", tuple(shape))
        for name, shape in shapes.items()
    }


def arrays() -> Mapping[str, np.ndarray]:
    """The reference outputs that are numbers."""
    return dict(np.load(ARRAYS))


def texts() -> dict[str, Any]:
    """The reference outputs that are texts, and the versions that wrote them."""
    found: dict[str, Any] = json.loads(TEXTS.read_text(encoding="utf-8"))
    return found


def write_texts(told: dict[str, Any]) -> None:
    """Write ``TEXTS``."""
    TEXTS.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
