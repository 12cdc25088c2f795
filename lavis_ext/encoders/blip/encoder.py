"""BLIP (Li et al., ICML 2022) as image encoder, question encoder and judge of a pair.

The network is ``transformers``' ``BlipForImageTextRetrieval``, so published weights load as they
are. Here its parts are called one at a time, because fused tokens go between them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lavis_ext.checkpoints.sources import resolve
from lavis_ext.checkpoints.weights import load_into, read_state_dict
from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import check, option
from lavis_ext.encoders.base import Encoder, EncoderConfig
from lavis_ext.encoders.blip.packed_questions import PackedQuestions, pack_questions
from lavis_ext.encoders.blip.passes import AttentionProbe, encode_pixels, read_text
from lavis_ext.encoders.pixels import PixelNormalisation
from lavis_ext.registry import registry

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BASE_COCO = "Salesforce/blip-itm-base-coco"
COMPILED_MULTIPLE_OF_TOKENS = 64
"""Sixteen questions with as many mismatched ones are about 400 tokens, give or take 50."""


@dataclass
class BlipSizesConfig:
    """Sizes that every BLIP model has. The defaults are those of the published base models.

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
    # A narrow transformer with 0.02 hardly reads its image for its first thousand steps.
    initializer_range: float = option(
        0.02, "standard deviation of random weights; about 0.55 / sqrt(width)", above=0
    )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches; their product is the number of patches."""
        side = self.image_size // self.patch_size
        return side, side

    def check_together(self, where: str) -> None:
        """Raise UserError for sizes that do not fit each other."""
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
class BlipEncoderConfig(BlipSizesConfig, EncoderConfig):
    """Sizes, tokenizer and weights. The defaults are Salesforce/blip-itm-base-coco."""

    encoder: str = option("blip", "The encoder's name in the registry.")
    projection_dim: int = option(256, "width of the image-text contrastive space", at_least=1)
    tokenizer: str = option(
        BASE_COCO, "hub name, local folder, or vocab.txt file of an uncased BERT tokenizer"
    )
    max_question_tokens: int = option(
        35, "longer questions are cut, [CLS] and [SEP] counted", at_least=3
    )
    first_token: str = option(
        "enc",
        "first token of a question in matching: enc, as BLIP was trained, or cls, as transformers",
        choices=("enc", "cls"),
    )
    weights: str | None = option(
        BASE_COCO, "hub name, local path or URL; null starts from random weights"
    )
    allow_missing: list[str] = option(list, "patterns of names the checkpoint may lack")
    allow_unexpected: list[str] = option(
        lambda: ["*.position_ids"],  # a buffer with 0, 1, 2, ... that old checkpoints carry
        "patterns of names the checkpoint may have in excess",
    )

    def check_together(self, where: str) -> None:
        """Raise UserError for sizes that do not fit each other."""
        super().check_together(where)
        if self.max_question_tokens > self.max_position_embeddings:
            raise UserError(
                f"{where}.max_question_tokens is {self.max_question_tokens}, but there are only "
                f"{self.max_position_embeddings} position embeddings (max_position_embeddings)."
            )


@registry.register_encoder("blip")
class BlipEncoder(Encoder):
    """BLIP's parts: ``encode``, ``tokenize``, ``encode_questions``, ``pack`` and ``match``.

    Parameters are under ``blip.``, by transformers' names. ``truncated_questions`` counts the
    questions that ``tokenize`` has cut so far.

    Raises UserError for sizes that do not fit, and for a tokenizer or weights that cannot be had,
    read or matched.
    """

    Config = BlipEncoderConfig
    config: BlipEncoderConfig

    def __init__(self, config: BlipEncoderConfig, where: str = "blip") -> None:
        super().__init__()
        check(config, where)
        self.config = config
        self.tokenizer = read_tokenizer(config.tokenizer, f"{where}.tokenizer")
        self.enc_token_id = added_token_id("[ENC]", config, self.tokenizer, where)
        self.truncated_questions = 0
        self.normalise = PixelNormalisation(CLIP_MEAN, CLIP_STD)
        self.blip = transformers.BlipForImageTextRetrieval(
            transformers_config(
                config, self.tokenizer, image_text_hidden_size=config.projection_dim
            )
        )
        self._encode_pixels: Callable[..., Tensor] = encode_pixels
        self._read_text: Callable[..., Tensor] = read_text
        self._multiple_of_tokens = 1
        if config.weights is not None:
            self.load_report = load_into(
                self.blip,
                read_state_dict(resolve(config.weights, key=f"{where}.weights")),
                name=f"BLIP from {config.weights}",
                allow_missing=config.allow_missing,
                allow_unexpected=config.allow_unexpected,
            )

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.config.vision_width

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches; N of ``encode`` is their product."""
        return self.config.grid

    @property
    def prefix(self) -> int:
        """The class token."""
        return 1

    def token_modules(self) -> Sequence[nn.Module]:
        """The image side."""
        return self.normalise, self.blip.vision_model

    def fingerprint_options(self) -> dict[str, Any]:
        """Size of the images, and heads, which no shape shows."""
        return {"image_size": self.config.image_size, "heads": self.config.vision_heads}

    def encode(self, images: Tensor) -> Tensor:
        """Tokens [B, 1+N, vision_width]: the class token, then the patches row by row.

        ``images`` [B, 3, image_size, image_size] are uint8 in 0..255 or floating point in [0, 1].
        Raises UserError for images of another size.
        """
        refuse_other_size(images, self.config)
        return self._encode_pixels(self.blip.vision_model, self.normalise(images))

    def tokenize(self, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, both [Q, L] int64 on the host, padded to the longest.

        Questions of more than ``max_question_tokens`` tokens lose their end and are counted in
        ``truncated_questions``.
        """
        limit = self.config.max_question_tokens
        sequences = self.tokenizer(list(questions), verbose=False)["input_ids"]
        self.truncated_questions += sum(len(ids) > limit for ids in sequences)
        sequences = [
            ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in sequences
        ]
        longest = max(map(len, sequences))
        padding = self.tokenizer.pad_token_id
        input_ids = torch.tensor([ids + [padding] * (longest - len(ids)) for ids in sequences])
        lengths = torch.tensor([len(ids) for ids in sequences])
        mask = torch.arange(longest) < lengths[:, None]
        return input_ids, mask.long()

    def pack(
        self, questions: Sequence[str], image_index: Tensor | None = None, images: int | None = None
    ) -> PackedQuestions:
        """Questions, packed by image, for ``encode_questions`` and ``match``.

        ``image_index`` [Q] is the image of each of them, of ``images``; None asks a question of
        each image.
        """
        index = list(range(len(questions))) if image_index is None else image_index.tolist()
        return pack_questions(
            *self.tokenize(questions),
            index,
            len(questions) if images is None else images,
            self.blip.itm_head.weight.device,
            self._multiple_of_tokens,
        )

    def compile_parts(self, **options: Any) -> None:
        """Compile what images and texts pass, with options of ``torch.compile``.

        Rows of questions then have few lengths, because each length is compiled anew.
        """
        self._encode_pixels = torch.compile(encode_pixels, **options)
        self._read_text = torch.compile(read_text, **options)
        self._multiple_of_tokens = COMPILED_MULTIPLE_OF_TOKENS

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
        """Logits [Q, 2] of question matching; index 1 says that question and image belong together.

        ``tokens`` [I, 1+N, vision_width] are an image's or fused ones in their place; gradients
        reach them through cross-attention. With ``first_token: enc`` the first token, [CLS], is
        replaced by [ENC], with which this part of BLIP was trained (salesforce/BLIP,
        models/blip_retrieval.py; LAVIS, blip_image_text_matching.py); transformers leaves [CLS].
        ``token_mask`` [Q, 1+N] is 1 for the tokens that may be looked at; None is all of them.
        """
        input_ids = packed.input_ids
        if self.config.first_token == "enc":
            input_ids = input_ids.flatten().index_fill(0, packed.first, self.enc_token_id)
            input_ids = input_ids.view_as(packed.input_ids)
        states = self._read_text(
            self.blip.text_encoder,
            input_ids,
            packed.question,
            packed.position,
            tokens,
            packed.row_image,
            None if token_mask is None else packed.spread(token_mask.bool()),
            probe,
        )
        return self.blip.itm_head(states.flatten(0, 1)[packed.first])


def refuse_other_size(images: Tensor, config: BlipSizesConfig) -> None:
    """Raise UserError for images [B, 3, H, W] of another size than ``image_size``."""
    side = config.image_size
    if images.shape[-2:] != (side, side):
        raise UserError(
            f"BLIP got images of {images.shape[-2]}x{images.shape[-1]} pixels and is built for "
            f"{side}x{side}. Set the image size of its processor to image_size."
        )


def read_tokenizer(source: str, key: str) -> transformers.BertTokenizer:
    """The uncased BERT tokenizer that ``source``, the value of the config's ``key``, stands for.

    Raises UserError that names ``key`` for one that cannot be had, or is no BERT vocabulary.
    """
    path = resolve(source, key=key, filenames=("tokenizer.json", "vocab.txt"))
    try:
        if path.suffix == ".json":
            tokenizer = transformers.BertTokenizer.from_pretrained(path.parent)
        else:
            tokenizer = transformers.BertTokenizer(vocab=str(path))
        tokenizer("a")  # one that lacks [UNK] is made all the same
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise UserError(f"{key}: {path} is no BERT tokenizer ({error!r:.120}).") from error
    missing = {"[PAD]", "[UNK]", "[CLS]", "[SEP]"} - set(tokenizer.get_vocab())
    if missing:
        raise UserError(
            f"{key}: {path} is no BERT vocabulary; it lacks {', '.join(sorted(missing))}."
        )
    return tokenizer


def added_token_id(
    token: str,
    config: BlipSizesConfig,
    tokenizer: transformers.BertTokenizer,
    where: str,
) -> int:
    """The id of [DEC] or [ENC]: the tokenizer's where it knows the word.

    Otherwise they are the last two word embeddings, in this order. Raises UserError for a
    vocab_size that leaves no room for them.
    """
    words = tokenizer.get_vocab()
    needed = max(words.values()) + 1 + (0 if "[ENC]" in words else 2)
    if needed > config.vocab_size:
        raise UserError(
            f"{where}.vocab_size is {config.vocab_size}; {where}.tokenizer, with [DEC] and "
            f"[ENC] after its words, needs {needed}."
        )
    return words.get(token, config.vocab_size - {"[DEC]": 2, "[ENC]": 1}[token])


def transformers_config(
    config: BlipSizesConfig, tokenizer: transformers.BertTokenizer, **others: Any
) -> transformers.BlipConfig:
    """``config`` as transformers writes it; ``others`` are further fields of its BlipConfig."""
    return transformers.BlipConfig(
        **others,
        vision_config={
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "hidden_size": config.vision_width,
            "num_hidden_layers": config.vision_layers,
            "num_attention_heads": config.vision_heads,
            "intermediate_size": config.vision_mlp,
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
    """Let BLIP's text model heed ``encoder_attention_mask``.

    Transformers 5.23 passes it on as ``attention_mask``, and reads ``encoder_attention_mask``.
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
