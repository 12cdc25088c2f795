"""Interface of question encoders, and the section ``model.question_encoder``.

T texts or Q questions of up to L tokens, W channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from lavis_ext.checkpoints.sources import WEIGHT_FILES
from lavis_ext.checkpoints.weights import LoadReport
from lavis_ext.config.schema import option
from lavis_ext.encoders.blip.packed_questions import PackedQuestions, pack_questions


@dataclass
class QuestionEncoderConfig:
    """Common options of question encoders."""

    encoder: str = option("bert", "The question encoder's name in the registry.")
    max_question_tokens: int = option(
        35, "longer questions are cut, [CLS] and [SEP] counted", at_least=3
    )
    weights: str | None = option(
        None, "Pretrained checkpoint; null is random weights.", files=WEIGHT_FILES
    )

    def unloaded(self) -> Self:
        """The config of the same encoder with random weights, for which nothing is downloaded."""
        return replace(self, weights=None)


class QuestionReader(nn.Module, ABC):
    """Splits questions into tokens, packs them by image and encodes them without an image.

    ``model.question_encoder`` selects one that is registered with
    ``registry.register_question_encoder``; without it, BLIP's text encoder reads the questions.
    The constructor takes the config and ``where``, its config key for error messages.

    Attributes:
        tokenizer: the uncased BERT tokenizer.
        truncated_questions: number of questions that ``tokenize`` has truncated so far.
        multiple_of_tokens: rows of packed questions are padded to a multiple of this.
    """

    Config: ClassVar[type[Any]] = QuestionEncoderConfig
    config: Any
    tokenizer: Any
    load_report: LoadReport | None = None
    truncated_questions = 0
    multiple_of_tokens = 1

    @property
    @abstractmethod
    def text_width(self) -> int:
        """W."""

    @property
    @abstractmethod
    def text_layers(self) -> int:
        """Number of blocks."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the packed questions."""

    @abstractmethod
    def read(self, texts: Sequence[str], rows: int) -> Tensor:
        """States [T, L, W] of texts, padded to the longest.

        ``rows`` is the number of images of the batch, for readers whose cost depends on how texts
        are packed.
        """

    def tokenize(self, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, both [Q, L] int64 on the host, padded to the longest.

        Questions are truncated to ``max_question_tokens`` and counted in ``truncated_questions``.
        """
        input_ids, mask, truncated = tokenized(
            self.tokenizer, questions, self.config.max_question_tokens
        )
        self.truncated_questions += truncated
        return input_ids, mask

    def pack(
        self, questions: Sequence[str], image_index: Tensor | None = None, images: int | None = None
    ) -> PackedQuestions:
        """Questions, packed by image.

        ``image_index`` [Q] is the image of each question, out of ``images``; None is one question
        for each image.
        """
        index = list(range(len(questions))) if image_index is None else image_index.tolist()
        return pack_questions(
            *self.tokenize(questions),
            index,
            len(questions) if images is None else images,
            self.device,
            self.multiple_of_tokens,
        )


def tokenized(tokenizer: Any, texts: Sequence[str], limit: int) -> tuple[Tensor, Tensor, int]:
    """Token ids and mask of texts, both [Q, L] int64 on the host, padded to the longest.

    Texts of more than ``limit`` tokens are truncated; the third value is their number.
    """
    sequences = tokenizer(list(texts), verbose=False)["input_ids"]
    truncated = sum(len(ids) > limit for ids in sequences)
    sequences = [ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in sequences]
    longest = max(map(len, sequences))
    padding = tokenizer.pad_token_id
    input_ids = torch.tensor([ids + [padding] * (longest - len(ids)) for ids in sequences])
    lengths = torch.tensor([len(ids) for ids in sequences])
    mask = torch.arange(longest) < lengths[:, None]
    return input_ids, mask.long(), truncated
