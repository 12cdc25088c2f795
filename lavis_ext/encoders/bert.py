"""BERT (Devlin et al., 2019) as question encoder, such as the sentence encoder MiniLM."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lavis_ext.checkpoints.reading import (
    ALLOW_UNEXPECTED_HELP,
    WEIGHTS_HELP,
    PretrainedConfig,
    load_pretrained,
)
from lavis_ext.checkpoints.sources import WEIGHT_FILES, on_this_machine
from lavis_ext.checkpoints.tokenizers import BERT_FILES, read_bert_tokenizer
from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import check, option
from lavis_ext.encoders.blip.encoder import MINI_VOCABULARY
from lavis_ext.encoders.blip.packed_questions import send
from lavis_ext.encoders.questions import QuestionEncoderConfig, QuestionReader
from lavis_ext.registry import registry

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass
class BertConfig(PretrainedConfig, QuestionEncoderConfig):
    """Sizes, tokenizer and weights. The defaults are sentence-transformers/all-MiniLM-L6-v2."""

    encoder: str = option("bert", "The question encoder's name in the registry.")
    width: int = option(384, "width of the transformer", at_least=1)
    layers: int = option(6, "layers of the transformer", at_least=1)
    heads: int = option(12, "attention heads", at_least=1)
    mlp: int = option(1536, "inner width of its feed-forward layers", at_least=1)
    vocab_size: int = option(30522, "word embeddings", at_least=1)
    max_position_embeddings: int = option(512, "position embeddings", at_least=3)
    tokenizer: str = option(
        MINILM,
        "hub name, local folder, or vocab.txt file of an uncased BERT tokenizer",
        files=BERT_FILES,
    )
    remembered: int = option(
        10_000,
        "Number of questions whose states stay in memory while the encoder is frozen, about 20 KB "
        "each at this width; 0 encodes each question anew in every batch.",
        at_least=0,
    )
    weights: str | None = option(MINILM, WEIGHTS_HELP, files=WEIGHT_FILES)
    allow_unexpected: list[str] = option(
        lambda: ["pooler.*", "*.position_ids"], ALLOW_UNEXPECTED_HELP
    )

    def unloaded(self) -> Self:
        """Also without the tokenizer, if it isn't on this machine: the miniature's splits texts."""
        here = on_this_machine(self.tokenizer, BERT_FILES)
        return replace(super().unloaded(), tokenizer=self.tokenizer if here else MINI_VOCABULARY)

    def check_together(self, where: str) -> None:
        """Raise UserError for inconsistent sizes."""
        if self.width % self.heads:
            raise UserError(f"{where}.heads is {self.heads}; it must divide width {self.width}.")
        if self.max_question_tokens > self.max_position_embeddings:
            raise UserError(
                f"{where}.max_question_tokens is {self.max_question_tokens}, but there are only "
                f"{self.max_position_embeddings} position embeddings (max_position_embeddings)."
            )


@registry.register_question_encoder("bert")
class BertQuestionEncoder(QuestionReader):
    """The last layer's states of ``transformers``' BertModel, without its pooler.

    Parameters are under ``bert.``, by transformers' names.

    Raises UserError for sizes that don't fit, and for a tokenizer or weights that can't be found,
    read or matched.
    """

    Config = BertConfig
    config: BertConfig

    def __init__(self, config: BertConfig, where: str = "bert") -> None:
        super().__init__()
        check(config, where)
        self.config = config
        self.tokenizer = read_bert_tokenizer(config.tokenizer, f"{where}.tokenizer")
        words = max(self.tokenizer.get_vocab().values()) + 1
        if words > config.vocab_size:
            raise UserError(
                f"{where}.vocab_size is {config.vocab_size}; {where}.tokenizer needs {words}."
            )
        self.bert = transformers.BertModel(
            transformers.BertConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                intermediate_size=config.mlp,
                max_position_embeddings=config.max_position_embeddings,
                pad_token_id=self.tokenizer.pad_token_id,
            ),
            add_pooling_layer=False,
        )
        self.load_report = load_pretrained(self.bert, config, name="BERT", key=f"{where}.weights")
        self._known: dict[str, Tensor] = {}

    @property
    def text_layers(self) -> int:
        """Number of blocks."""
        return self.config.layers

    @property
    def text_width(self) -> int:
        """W."""
        return self.config.width

    @property
    def device(self) -> torch.device:
        """Device of the word embeddings."""
        return self.bert.embeddings.word_embeddings.weight.device

    def read(self, texts: Sequence[str], rows: int) -> Tensor:
        """States [T, L, W] of texts, padded with zeros to the longest."""
        if any(parameter.requires_grad for parameter in self.parameters()):
            return self._encoded(*self.tokenize(texts))
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        found: dict[str, Tensor] = {}
        if new:
            input_ids, mask = self.tokenize(new)
            with torch.no_grad():
                states = self._encoded(input_ids, mask)
            lengths = mask.sum(dim=1).tolist()
            # Copies, because a slice would keep the whole batch in memory.
            found = {
                text: each[:length].clone()
                for text, each, length in zip(new, states, lengths, strict=True)
            }
            free = max(self.config.remembered - len(self._known), 0)
            self._known |= dict([*found.items()][:free])
        each_state = (found[text] if text in found else self._known[text] for text in texts)
        return pad_sequence([*each_state], batch_first=True)

    def _encoded(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        # transformers reads a mask of two dimensions on the host, to leave it out if it can.
        seen = send(mask, self.device).bool()[:, None, None, :]
        output = self.bert(input_ids=send(input_ids, self.device), attention_mask=seen)
        states: Tensor = output.last_hidden_state
        return states
