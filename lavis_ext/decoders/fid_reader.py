"""The reader: T5 answers from captions (fusion in decoder, Izacard and Grave, EACL 2021).

PNP-VQA's reader is UnifiedQA-v2 (Khashabi et al., 2022). A passage is the question with some
of its captions. Passages are encoded separately, and the decoder attends to all of them. The
network and its ``generate`` are ``transformers``' own.

Q questions, P passages in total, L tokens of a passage, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutput

from lavis_ext.checkpoints.reading import (
    ALLOW_UNEXPECTED_HELP,
    WEIGHTS_HELP,
    PretrainedConfig,
    load_pretrained,
)
from lavis_ext.checkpoints.sources import WEIGHT_FILES
from lavis_ext.checkpoints.tokenizers import T5_FILES, read_t5_tokenizer
from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import check, option
from lavis_ext.decoders.fid_names import READER_NAMES
from lavis_ext.decoders.unprojected_attention import attend_unprojected

UNIFIED_QA_BASE = "allenai/unifiedqa-v2-t5-base-1363200"
SEPARATOR = " \\n "
"""Separator of question and context: a backslash and an n (UnifiedQA's format)."""
NO_TARGET = -100
QUESTIONS, PASSAGES = "questions", "passages"


@dataclass
class ReaderConfig(PretrainedConfig):
    """Sizes, tokenizer, weights and decoding. The defaults are UNIFIED_QA_BASE.

    The large one has d_model 1024, d_ff 4096, 16 heads and 24 layers; 3b d_model 1024, d_kv 128,
    d_ff 16384, 32 heads and 24 layers.
    """

    d_model: int = option(768, "width", at_least=1)
    d_kv: int = option(64, "width of an attention head", at_least=1)
    d_ff: int = option(3072, "inner width of the feed-forward layers", at_least=1)
    num_layers: int = option(12, "layers of the encoder", at_least=1)
    num_decoder_layers: int = option(12, "layers of the decoder", at_least=1)
    num_heads: int = option(12, "attention heads", at_least=1)
    vocab_size: int = option(32128, "word embeddings", at_least=1)
    tokenizer: str = option(
        UNIFIED_QA_BASE,
        "hub name or local folder of a T5 tokenizer, a tokenizer.json or a spiece.model",
        files=T5_FILES,
    )
    weights: str | None = option(UNIFIED_QA_BASE, WEIGHTS_HELP, files=WEIGHT_FILES)
    allow_unexpected: list[str] = option(
        # Old checkpoints of T5 have this bias, which is unused.
        lambda: ["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"],
        ALLOW_UNEXPECTED_HELP,
    )
    num_captions_fid: int = option(5, "captions in a passage", at_least=1)
    max_passage_tokens: int = option(512, "longer passages are truncated", at_least=4)
    num_beams: int = option(1, "beams of the search; 1 is greedy", at_least=1)
    min_answer_tokens: int = option(0, "tokens of the shortest answer", at_least=0)
    max_answer_tokens: int = option(20, "tokens of the longest answer", at_least=1)
    count_start_token: bool = option(
        False,
        "count the decoder's start token in min_ and max_answer_tokens, as LAVIS's min_len and "
        "max_len do",
    )
    clean_answers: bool = option(
        True,
        "bring answers into GQA's format: lower case, single spaces, no punctuation around; false "
        "leaves the reader's own text, as LAVIS does",
    )
    questions_per_pass: int = option(
        16, "questions answered together; bounds memory, changes no answer", at_least=1
    )
    internal_bsz_fid: str = option(
        QUESTIONS,
        "what predict_answers' argument of this name counts: questions answered together, or, as "
        "in LAVIS, groups that a question's passages are divided into, of which only 1 is allowed",
        choices=(QUESTIONS, PASSAGES),
    )

    def check_together(self, where: str) -> None:
        """Raise UserError if ``min_answer_tokens`` exceeds ``max_answer_tokens``."""
        if self.min_answer_tokens > self.max_answer_tokens:
            raise UserError(
                f"{where}.min_answer_tokens is {self.min_answer_tokens}; it must be at most "
                f"{where}.max_answer_tokens, which is {self.max_answer_tokens}."
            )
        if self.count_start_token and self.max_answer_tokens < 2:
            raise UserError(
                f"{where}.max_answer_tokens is {self.max_answer_tokens}, and the start token takes "
                f"one ({where}.count_start_token); it must be at least 2."
            )


class EncodedPassages(NamedTuple):
    """Encoder states of P passages, in the order of their questions."""

    ids: Tensor
    """Token ids, int64 [P, L]."""
    mask: Tensor
    """bool [P, L], False for padding."""
    states: Tensor
    """float [P, L, D]."""
    counts: list[int]
    """Number of passages of each question."""


class FidReader(nn.Module):
    """``read``, and ``loss`` to train it.

    Parameters are under ``t5.``, by transformers' names. ``where`` is the config's key, for errors.
    ``load_report`` is the result of loading weights, None for random ones. ``truncated_passages``
    counts the passages truncated so far.

    Raises UserError for a tokenizer or weights that can't be found, read or matched.
    """

    def __init__(self, config: ReaderConfig, where: str = "model.reader") -> None:
        super().__init__()
        check(config, where)
        self.config = config
        self._where = where
        self.tokenizer = read_t5_tokenizer(config.tokenizer, f"{where}.tokenizer")
        if len(self.tokenizer) > config.vocab_size:
            raise UserError(
                f"{where}.vocab_size is {config.vocab_size}; the tokenizer {config.tokenizer} "
                f"needs {len(self.tokenizer)}."
            )
        self.truncated_passages = 0
        self.t5 = transformers.T5ForConditionalGeneration(self._transformers_config())
        attend_unprojected(self.t5)
        self.load_report = load_pretrained(
            self.t5, config, name="reader", key=f"{where}.weights", foreign=READER_NAMES
        )

    def passages(
        self, question: str, captions: Sequence[str], num_captions_fid: int | None = None
    ) -> list[str]:
        """The question with each group of up to ``num_captions_fid`` captions.

        ``question \\n caption. caption. ...`` in lower case (LAVIS, prepare_qa_input). Raises
        UserError for a question without captions.
        """
        if not captions:
            raise UserError(
                f"The reader got no captions for the question '{question}'. Check the captioner's "
                "weights, or allow more attempts (model.captioner.sampling.max_tries)."
            )
        size = num_captions_fid or self.config.num_captions_fid
        groups = [captions[start : start + size] for start in range(0, len(captions), size)]
        asked = question.strip()
        return [
            (asked + SEPARATOR + " ".join(f"{text.strip()}." for text in group)).lower()
            for group in groups
        ]

    @torch.no_grad()
    def read(
        self,
        questions: Sequence[str],
        captions: Sequence[Sequence[str]],
        config: ReaderConfig | None = None,
    ) -> list[str]:
        """Answer Q questions from their captions.

        ``config`` overrides the reader's beams, lengths, captions per passage, questions per pass,
        and whether answers are normalized by ``normalize_answer``. Raises UserError for a question
        without captions.
        """
        config = config or self.config
        check(config, self._where)
        answers: list[str] = []
        start_token = int(config.count_start_token)
        for start in range(0, len(questions), config.questions_per_pass):
            some = slice(start, start + config.questions_per_pass)
            states, mask = end_to_end(
                self.encode(questions[some], captions[some], config.num_captions_fid)
            )
            # The type of ``generate`` differs between releases.
            generated = cast(Any, self.t5).generate(
                encoder_outputs=_encoder_output(states),
                attention_mask=mask,
                do_sample=False,
                num_beams=config.num_beams,
                min_new_tokens=max(config.min_answer_tokens - start_token, 0),
                max_new_tokens=config.max_answer_tokens - start_token,
            )
            assert isinstance(generated, Tensor)
            answers += self.tokenizer.batch_decode(generated, skip_special_tokens=True)
        return [normalize_answer(answer) for answer in answers] if config.clean_answers else answers

    def loss(self, encoded: EncodedPassages, answers: Sequence[str]) -> Tensor:
        """Cross-entropy of each answer, float [Q]: the mean over its tokens and </s>."""
        states, mask = end_to_end(encoded)
        targets = [torch.tensor(ids) for ids in self.tokenizer(list(answers))["input_ids"]]
        labels = pad_sequence(targets, batch_first=True, padding_value=NO_TARGET).to(states.device)
        logits = self.t5(
            encoder_outputs=_encoder_output(states),
            attention_mask=mask,
            labels=labels,
        ).logits
        per_token = F.cross_entropy(
            logits.transpose(1, 2), labels, ignore_index=NO_TARGET, reduction="none"
        )
        return per_token.sum(dim=1) / (labels != NO_TARGET).sum(dim=1)

    def encode(
        self,
        questions: Sequence[str],
        captions: Sequence[Sequence[str]],
        num_captions_fid: int | None = None,
    ) -> EncodedPassages:
        """Encode the questions' passages. Raises UserError as ``passages`` does."""
        grouped = [
            self.passages(question, texts, num_captions_fid)
            for question, texts in zip(questions, captions, strict=True)
        ]
        ids = self._token_ids([passage for group in grouped for passage in group])
        padding = self.tokenizer.pad_token_id
        input_ids = pad_sequence(ids, batch_first=True, padding_value=padding).to(self.t5.device)
        lengths = torch.tensor([len(each) for each in ids], device=self.t5.device)
        mask = torch.arange(input_ids.shape[1], device=self.t5.device) < lengths[:, None]
        states = self.t5.encoder(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state
        return EncodedPassages(input_ids, mask, states, [len(group) for group in grouped])

    def _token_ids(self, passages: list[str]) -> list[Tensor]:
        limit = self.config.max_passage_tokens
        sequences = self.tokenizer(passages, verbose=False)["input_ids"]
        self.truncated_passages += sum(len(ids) > limit for ids in sequences)
        return [
            torch.tensor(ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]])
            for ids in sequences
        ]

    def _transformers_config(self) -> transformers.T5Config:
        config = self.config
        made: transformers.T5Config = cast(Any, transformers.T5Config)(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            d_kv=config.d_kv,
            d_ff=config.d_ff,
            num_layers=config.num_layers,
            num_decoder_layers=config.num_decoder_layers,
            num_heads=config.num_heads,
            # As in T5's first release, from which UnifiedQA-v2 was trained.
            feed_forward_proj="relu",
            tie_word_embeddings=True,
            dropout_rate=0.0,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            decoder_start_token_id=self.tokenizer.pad_token_id,
        )
        return made


def end_to_end(encoded: EncodedPassages) -> tuple[Tensor, Tensor]:
    """Concatenate the passages of each question: states [Q, T, D] and their mask [Q, T].

    Padding within passages is removed; only the end of a question's states is padding.
    """
    tokens = [
        states[mask]
        for states, mask in zip(
            encoded.states.split(encoded.counts), encoded.mask.split(encoded.counts), strict=True
        )
    ]
    together = pad_sequence(tokens, batch_first=True)
    lengths = torch.tensor([len(each) for each in tokens], device=together.device)
    positions = torch.arange(together.shape[1], device=together.device)
    return together, (positions < lengths[:, None]).long()


def _encoder_output(states: Tensor) -> BaseModelOutput:
    # Some releases of transformers declare it as a subclass of Tensor.
    return BaseModelOutput(last_hidden_state=cast(Any, states))


def normalize_answer(answer: str) -> str:
    """A generated answer in GQA's format: lower case, single spaces, no punctuation around it.

    GQA's authors compare answers exactly (evaluation script of Hudson and Manning, 2019), so only
    additions of a generator are removed.
    """
    return " ".join(answer.lower().split()).strip(" .,!?\"'")
