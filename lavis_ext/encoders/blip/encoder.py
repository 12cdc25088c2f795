"""BLIP (Li et al., ICML 2022) as image encoder, question encoder and matching model.

The network is ``transformers``' ``BlipForImageTextRetrieval``, so published weights load
unchanged. Its parts are called separately, since fused tokens are inserted between them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from torch import Tensor, nn

from lavis_ext.checkpoints.reading import (
    ALLOW_UNEXPECTED_HELP,
    WEIGHTS_HELP,
    PretrainedConfig,
    load_pretrained,
)
from lavis_ext.checkpoints.sources import (
    FILE_SUFFIXES,
    WEIGHT_FILES,
    is_hub_name,
    on_this_machine,
    resolve,
    settings_beside,
)
from lavis_ext.checkpoints.tokenizers import BERT_FILES, read_bert_tokenizer
from lavis_ext.common.errors import UserError
from lavis_ext.common.files import folder_aside
from lavis_ext.config.schema import check, option
from lavis_ext.encoders.base import Encoder, EncoderConfig
from lavis_ext.encoders.blip.names import MATCHING_NAMES
from lavis_ext.encoders.blip.packed_questions import PackedQuestions
from lavis_ext.encoders.blip.passes import AttentionProbe, encode_pixels, read_text
from lavis_ext.encoders.blip.stem import GROUPS, ConvolutionalStem
from lavis_ext.encoders.pixels import PixelNormalization
from lavis_ext.encoders.questions import QuestionReader
from lavis_ext.registry import registry

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BASE_COCO = "Salesforce/blip-itm-base-coco"
MINI_VOCABULARY = "packaged:miniature/vocabulary.txt"
TRAINED_EPS = 1e-6
"""Epsilon of the image transformer's LayerNorms in BLIP's training (LAVIS, models/vit.py)."""
TRANSFORMERS_EPS = 1e-5
"""transformers' default epsilon, which version 0.1 always used."""
OLD_BUFFERS = ("*.position_ids",)
"""Buffers with 0, 1, 2, ... in old checkpoints."""
COMPILED_MULTIPLE_OF_TOKENS = 64
"""16 questions with 16 mismatched ones are about 400 tokens, plus or minus 50."""


@dataclass
class BlipSizesConfig:
    """Sizes of every BLIP model. The defaults are those of the published base models.

    The large ones differ in vision_width 1024, vision_layers 24, vision_heads 16 and vision_mlp
    4096.
    """

    image_size: int = option(384, "side of the input image in pixels", at_least=1)
    patch_size: int = option(16, "side of a patch in pixels", at_least=1)
    vision_width: int = option(768, "width of the image transformer", at_least=1)
    vision_layers: int = option(12, "layers of the image transformer", at_least=1)
    vision_heads: int = option(12, "attention heads of the image transformer", at_least=1)
    vision_mlp: int = option(3072, "inner width of its feed-forward layers", at_least=1)
    text_width: int = option(768, "width of the text transformer", at_least=1)
    text_layers: int = option(12, "layers of the text transformer", at_least=1)
    # transformers' own default is 8, with which the published weights give wrong scores
    # (huggingface/transformers, issue 22625).
    text_heads: int = option(12, "attention heads of the text transformer", at_least=1)
    text_mlp: int = option(3072, "inner width of its feed-forward layers", at_least=1)
    vocab_size: int = option(
        30524, "word embeddings: the tokenizer's, then [DEC], then [ENC]", at_least=3
    )
    max_position_embeddings: int = option(512, "position embeddings of the text", at_least=2)
    vision_layer_norm_eps: float | None = option(
        None,
        "epsilon of the image transformer's LayerNorms; null is that of the weights' config.json "
        "or, without one, 1e-6, as in BLIP's training",
        above=0,
    )
    # With 0.02, a narrow transformer hardly uses the image in its first thousand steps.
    initializer_range: float = option(
        0.02, "standard deviation of random weights; about 0.55 / sqrt(width)", above=0
    )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.image_size // self.patch_size
        return side, side

    def check_together(self, where: str) -> None:
        """Raise UserError for inconsistent sizes."""
        if self.image_size % self.patch_size:
            raise UserError(
                f"{where}.image_size is {self.image_size}; it must be a multiple of "
                f"{where}.patch_size, which is {self.patch_size}."
            )
        for tower, width, heads in (
            ("vision", self.vision_width, self.vision_heads),
            ("text", self.text_width, self.text_heads),
        ):
            if width % heads:
                raise UserError(
                    f"{where}.{tower}_heads is {heads}; it must divide {tower}_width {width}."
                )


@dataclass
class BlipEncoderConfig(BlipSizesConfig, PretrainedConfig, EncoderConfig):
    """Sizes, tokenizer and weights. The defaults are Salesforce/blip-itm-base-coco."""

    encoder: str = option("blip", "The encoder's name in the registry.")
    projection_dim: int = option(256, "width of the image-text contrastive space", at_least=1)
    tokenizer: str = option(
        BASE_COCO,
        "hub name, local folder, or vocab.txt file of an uncased BERT tokenizer",
        files=BERT_FILES,
    )
    max_question_tokens: int = option(
        35, "longer questions are cut, [CLS] and [SEP] counted", at_least=3
    )
    first_token: str = option(
        "enc",
        "first token of a question in matching: enc, as BLIP was trained, or cls, as transformers",
        choices=("enc", "cls"),
    )
    stem: str = option(
        "patches",
        "How pixels become patches: patches is BLIP's linear layer; convolutions learn faster when "
        "all is trained from scratch (weights: null).",
        choices=("patches", "convolutions"),
    )
    weights: str | None = option(BASE_COCO, WEIGHTS_HELP, files=WEIGHT_FILES)
    allow_unexpected: list[str] = option(lambda: [*OLD_BUFFERS], ALLOW_UNEXPECTED_HELP)

    def unloaded(self) -> Self:
        """Also without the tokenizer, if it isn't on this machine: the miniature's splits texts."""
        here = on_this_machine(self.tokenizer, BERT_FILES)
        return replace(super().unloaded(), tokenizer=self.tokenizer if here else MINI_VOCABULARY)

    def check_together(self, where: str) -> None:
        """Raise UserError for inconsistent sizes."""
        super().check_together(where)
        if self.max_question_tokens > self.max_position_embeddings:
            raise UserError(
                f"{where}.max_question_tokens is {self.max_question_tokens}, but there are only "
                f"{self.max_position_embeddings} position embeddings (max_position_embeddings)."
            )
        if self.stem == "patches":
            return
        if self.weights is not None:
            raise UserError(
                f"{where}.stem is {self.stem}, but {where}.weights has a linear layer there. Set "
                f"{where}.weights=null to train from scratch, or {where}.stem=patches."
            )
        if self.patch_size & (self.patch_size - 1) or self.vision_width % GROUPS:
            raise UserError(
                f"{where}.stem is {self.stem}, which needs a {where}.patch_size that is a power of "
                f"two, not {self.patch_size}, and a {where}.vision_width that is a multiple of "
                f"{GROUPS}, not {self.vision_width}."
            )


class BlipImageEncoder(Encoder):
    """An encoder whose tokens are those of BLIP's image transformer."""

    config: BlipSizesConfig

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.config.vision_width

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.config.grid

    @property
    def prefix(self) -> int:
        """1, the class token."""
        return 1


@registry.register_encoder("blip")
class BlipEncoder(BlipImageEncoder, QuestionReader):
    """BLIP's parts: ``encode``, ``tokenize``, ``encode_questions``, ``pack`` and ``match``.

    Parameters are under ``blip.``, by transformers' names.

    Raises UserError for sizes that don't fit, and for a tokenizer or weights that can't be found,
    read or matched.
    """

    Config = BlipEncoderConfig
    config: BlipEncoderConfig

    def __init__(self, config: BlipEncoderConfig, where: str = "blip") -> None:
        super().__init__()
        check(config, where)
        self.config = config
        self.tokenizer = read_bert_tokenizer(config.tokenizer, f"{where}.tokenizer")
        self.enc_token_id = added_token_id("[ENC]", config, self.tokenizer, where)
        self.normalize = PixelNormalization(CLIP_MEAN, CLIP_STD)
        self.blip = transformers.BlipForImageTextRetrieval(
            transformers_config(
                config,
                self.tokenizer,
                config.weights,
                where,
                image_text_hidden_size=config.projection_dim,
            )
        )
        if config.stem == "convolutions":
            vision: Any = self.blip.vision_model
            vision.embeddings.patch_embedding = ConvolutionalStem(
                config.patch_size, config.vision_width
            )
        self._encode_pixels: Callable[..., Tensor] = encode_pixels
        self._read_text: Callable[..., Tensor] = read_text
        self.load_report = load_pretrained(
            self.blip, config, name="BLIP", key=f"{where}.weights", foreign=MATCHING_NAMES
        )

    @property
    def text_width(self) -> int:
        """Channels of a question's token."""
        return self.config.text_width

    @property
    def text_layers(self) -> int:
        """Number of blocks of the text encoder."""
        return self.config.text_layers

    @property
    def device(self) -> torch.device:
        """Device of the packed questions."""
        return self.blip.itm_head.weight.device

    def token_modules(self) -> Sequence[nn.Module]:
        """Normalization and image encoder."""
        return self.normalize, self.blip.vision_model

    def fingerprint_options(self) -> dict[str, Any]:
        """Image size, heads and epsilon, which can differ between equal weights."""
        options = {"image_size": self.config.image_size, "heads": self.config.vision_heads}
        vision: Any = self.blip.config.vision_config
        eps = vision.layer_norm_eps
        # The only one of version 0.1; keep its stores valid.
        return options if eps == TRANSFORMERS_EPS else {**options, "layer_norm_eps": eps}

    def save_for_transformers(self, folder: Path) -> None:
        """Write a folder for transformers' ``BlipForImageTextRetrieval`` and processor.

        There, questions begin with [CLS]; in this encoder, by default with [ENC]. Raises OSError
        if it can't be written, and UserError for a stem that transformers doesn't have.
        """
        if self.config.stem != "patches":
            raise UserError(
                f"An image encoder with stem: {self.config.stem} can't be written for transformers,"
                " whose BLIP has a linear layer there."
            )
        side = self.config.image_size
        processor = transformers.BlipProcessor(
            transformers.BlipImageProcessor(
                size={"height": side, "width": side},
                image_mean=list(CLIP_MEAN),
                image_std=list(CLIP_STD),
            ),
            self.tokenizer,
        )
        with folder_aside(folder) as aside:
            self.blip.save_pretrained(aside)
            processor.save_pretrained(aside)

    def encode(self, images: Tensor) -> Tensor:
        """Tokens [B, 1+N, vision_width]: the class token, then the patches row by row.

        ``images`` [B, 3, image_size, image_size] are uint8 in 0..255 or floating point in [0, 1].
        Raises UserError for images of another size.
        """
        check_image_size(images, self.config)
        return self._encode_pixels(self.blip.vision_model, self.normalize(images))

    def compile_parts(self, **options: Any) -> None:
        """Compile both encoders, with options of ``torch.compile``.

        Rows of questions are then padded to few lengths, since each is compiled separately.
        """
        self._encode_pixels = torch.compile(encode_pixels, **options)
        self._read_text = torch.compile(read_text, **options)
        self.multiple_of_tokens = COMPILED_MULTIPLE_OF_TOKENS

    def read(self, texts: Sequence[str], rows: int) -> Tensor:
        """States [T, L, text_width] of texts, from the text alone.

        They are packed into ``rows`` rows, with the shapes of the batch's questions.
        """
        packed = self.pack(texts, torch.arange(len(texts)) % rows, rows)
        return packed.unpack(self.encode_questions(packed))

    def encode_questions(self, packed: PackedQuestions) -> Tensor:
        """Question tokens [R, P, text_width] from the text alone, without cross-attention."""
        return self._read_text(
            self.blip.text_encoder, packed.input_ids, packed.question, packed.position
        )

    def match(
        self,
        tokens: Tensor,
        packed: PackedQuestions,
        token_mask: Tensor | None = None,
        probe: AttentionProbe | None = None,
    ) -> Tensor:
        """Logits [Q, 2] of question matching; index 1 is "question and image belong together".

        Arguments are those of ``read_with_image``.
        """
        states = self.read_with_image(tokens, packed, token_mask, probe)
        return self.blip.itm_head(states.flatten(0, 1)[packed.first])

    def read_with_image(
        self,
        tokens: Tensor,
        packed: PackedQuestions,
        token_mask: Tensor | None = None,
        probe: AttentionProbe | None = None,
    ) -> Tensor:
        """Question tokens [R, P, text_width] that have attended to their images.

        ``tokens`` [I, 1+N, vision_width] are image tokens, or fused tokens in their place;
        gradients reach them through cross-attention. With ``first_token: enc`` the first token is
        [ENC] instead of [CLS], as this part of BLIP was trained (salesforce/BLIP,
        models/blip_retrieval.py; LAVIS, blip_image_text_matching.py); transformers keeps [CLS].
        ``token_mask`` [Q, 1+N] is 1 for the tokens to attend to; None is all of them.
        """
        input_ids = packed.input_ids
        if self.config.first_token == "enc":
            input_ids = input_ids.flatten().index_fill(0, packed.first, self.enc_token_id)
            input_ids = input_ids.view_as(packed.input_ids)
        return self._read_text(
            self.blip.text_encoder,
            input_ids,
            packed.question,
            packed.position,
            tokens,
            packed.row_image,
            None if token_mask is None else packed.spread(token_mask.bool()),
            probe,
        )


def check_image_size(images: Tensor, config: BlipSizesConfig) -> None:
    """Raise UserError for images [B, 3, H, W] of another size than ``image_size``."""
    side = config.image_size
    if images.shape[-2:] != (side, side):
        raise UserError(
            f"BLIP got images of {images.shape[-2]}x{images.shape[-1]} pixels and is built for "
            f"{side}x{side}. Set its processor's image size to image_size."
        )


def added_token_id(
    token: str,
    config: BlipSizesConfig,
    tokenizer: transformers.BertTokenizer,
    where: str,
) -> int:
    """The id of [DEC] or [ENC]: the tokenizer's own, if it has them.

    Otherwise they are the last two word embeddings, in this order. Raises UserError for a
    vocab_size too small for them.
    """
    words = tokenizer.get_vocab()
    needed = max(words.values()) + 1 + (0 if "[ENC]" in words else 2)
    if needed > config.vocab_size:
        raise UserError(
            f"{where}.vocab_size is {config.vocab_size}; {where}.tokenizer, with [DEC] and "
            f"[ENC] after its words, needs {needed}."
        )
    return words.get(token, config.vocab_size - {"[DEC]": 2, "[ENC]": 1}[token])


def layer_norm_eps(config: BlipSizesConfig, weights: str | None, where: str) -> float:
    """Epsilon of the image transformer's LayerNorms for the checkpoint ``weights``."""
    if config.vision_layer_norm_eps is not None:
        return config.vision_layer_norm_eps
    if weights is None:
        return TRAINED_EPS
    path = resolve(weights, key=f"{where}.weights")
    settings = settings_beside(path)
    if settings is None:
        # Caches of version 0.1 have the hub's weights without their config.json.
        return TRANSFORMERS_EPS if is_hub_name(weights) else TRAINED_EPS
    vision = settings.get("vision_config")
    eps = vision.get("layer_norm_eps", TRANSFORMERS_EPS) if isinstance(vision, dict) else None
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise UserError(
            f"{where}.weights: {path.parent / 'config.json'} has no vision_config of BLIP with a "
            f"layer_norm_eps; set {where}.vision_layer_norm_eps."
        )
    return eps


def complete_saved_sizes(section: dict[str, Any]) -> None:
    """Add the epsilon used by version 0.1 to BLIP's section of a config saved by it.

    For folders and hub names, ``config.json`` has it.
    """
    weights = section.get("weights")
    if weights is None or str(weights).endswith(FILE_SUFFIXES):
        section.setdefault("vision_layer_norm_eps", TRANSFORMERS_EPS)


def transformers_config(
    config: BlipSizesConfig,
    tokenizer: transformers.BertTokenizer,
    weights: str | None,
    where: str,
    **others: Any,
) -> transformers.BlipConfig:
    """Convert ``config`` to a config of transformers with additional fields ``others``."""
    return transformers.BlipConfig(
        **others,
        vision_config={
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "hidden_size": config.vision_width,
            "num_hidden_layers": config.vision_layers,
            "num_attention_heads": config.vision_heads,
            "intermediate_size": config.vision_mlp,
            "layer_norm_eps": layer_norm_eps(config, weights, where),
            # transformers' default of 1e-10 would make an untrained image encoder constant.
            "initializer_range": config.initializer_range,
        },
        text_config={
            "vocab_size": config.vocab_size,
            "hidden_size": config.text_width,
            "num_hidden_layers": config.text_layers,
            "num_attention_heads": config.text_heads,
            "intermediate_size": config.text_mlp,
            "max_position_embeddings": config.max_position_embeddings,
            "initializer_range": config.initializer_range,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": config.vocab_size - 2,
            "sep_token_id": tokenizer.sep_token_id,
        },
    )


def mask_cross_attention(text_model: nn.Module) -> None:
    """Make BLIP's text model apply ``encoder_attention_mask``.

    Transformers 5.23 passes it to cross-attention as ``attention_mask``, which it doesn't read.
    """
    for name, module in text_model.named_modules():
        if name.endswith("crossattention.self"):
            module.register_forward_pre_hook(_mask_by_its_other_name, with_kwargs=True)


def _mask_by_its_other_name(
    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if kwargs.get("encoder_attention_mask") is None:
        kwargs = kwargs | {"encoder_attention_mask": kwargs.get("attention_mask")}
    return args, kwargs
