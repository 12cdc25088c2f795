"""The reader: T5 reads captions and answers (fusion in decoder, Izacard and Grave, EACL 2021).

PNP-VQA's reader is UnifiedQA-v2 (Khashabi et al., 2022). Passages of a question, each the question
with some of its captions, are encoded apart; the decoder attends to all of them together. The
network and its ``generate`` are ``transformers``' own.

Q questions, P passages of all of them, L tokens of a passage, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutput

from lavis_ext.checkpoints.sources import resolve
from lavis_ext.checkpoints.weights import LoadReport, load_into, read_state_dict
from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import check, option

UNIFIED_QA_BASE = "allenai/unifiedqa-v2-t5-base-1363200"
SEPARATOR = " \\n "
"""Between question and context, backslash and n as two characters (UnifiedQA's format)."""
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Read with ``spiece.model`` where they lie beside it; ``tokenizer.json`` has all in itself."""
NO_TARGET = -100


@dataclass
class ReaderConfig:
    """Sizes, tokenizer, weights and how answers are read. The defaults are UNIFIED_QA_BASE.

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
    )
    weights: str | None = option(
        UNIFIED_QA_BASE, "hub name, local path or URL; null starts from random weights"
    )
    allow_missing: list[str] = option(list, "patterns of names the checkpoint may lack")
    allow_unexpected: list[str] = option(
        # Old checkpoints of T5 carry a bias that is computed nowhere.
        lambda: ["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"],
        "patterns of names the checkpoint may have in excess",
    )
    num_captions_fid: int = option(5, "captions in a passage", at_least=1)
    max_passage_tokens: int = option(512, "longer passages are cut", at_least=4)
    num_beams: int = option(1, "beams of the search; 1 is greedy", at_least=1)
    min_answer_tokens: int = option(0, "tokens of the shortest answer", at_least=0)
    max_answer_tokens: int = option(20, "tokens of the longest answer", at_least=1)
    questions_per_pass: int = option(
        16, "questions answered together; bounds memory, changes no answer", at_least=1
    )

    def check_together(self, where: str) -> None:
        """Raise UserError for a shortest answer longer than the longest."""
        if self.min_answer_tokens > self.max_answer_tokens:
            raise UserError(
                f"{where}.min_answer_tokens is {self.min_answer_tokens}; it must be at most "
                f"{where}.max_answer_tokens, which is {self.max_answer_tokens}."
            )


class EncodedPassages(NamedTuple):
    """Passages of several questions, P in all, in order, after the encoder."""

    ids: Tensor
    """Token ids, int64 [P, L]."""
    mask: Tensor
    """bool [P, L], False for padding."""
    states: Tensor
    """float [P, L, D]."""
    counts: list[int]
    """Passages of each question."""


class FidReader(nn.Module):
    """``read``, and ``loss`` to train it.

    Parameters are under ``t5.``, by transformers' names. ``where`` is the config's own key, named
    in errors. ``load_report`` says what was loaded, and is None for random weights.
    ``truncated_passages`` counts the passages that were cut so far.

    Raises UserError for a tokenizer or weights that cannot be had, read or matched.
    """

    def __init__(self, config: ReaderConfig, where: str = "model.reader") -> None:
        super().__init__()
        check(config, where)
        self.config = config
        self._where = where
        self.tokenizer = read_tokenizer(config.tokenizer, f"{where}.tokenizer")
        if len(self.tokenizer) > config.vocab_size:
            raise UserError(
                f"{where}.vocab_size is {config.vocab_size}; the tokenizer {config.tokenizer} "
                f"needs {len(self.tokenizer)}."
            )
        self.truncated_passages = 0
        self.t5 = transformers.T5ForConditionalGeneration(self._transformers_config())
        self.load_report: LoadReport | None = None
        if config.weights is not None:
            state = read_state_dict(resolve(config.weights, key=f"{where}.weights"))
            # Weights that transformers saves leave out the names of tied parameters.
            for name, source in self.t5.all_tied_weights_keys.items():
                if source in state:
                    state.setdefault(name, state[source])
            self.load_report = load_into(
                self.t5,
                state,
                name=f"reader from {config.weights}",
                allow_missing=config.allow_missing,
                allow_unexpected=config.allow_unexpected,
            )

    def passages(
        self, question: str, captions: Sequence[str], num_captions_fid: int | None = None
    ) -> list[str]:
        """The question with each group of ``num_captions_fid`` captions, the last maybe smaller.

        ``question \\n caption. caption. ...`` in lower case (LAVIS, prepare_qa_input). Raises
        UserError for a question without captions: there is nothing to read.
        """
        if not captions:
            raise UserError(
                f"The reader got no captions for the question '{question}'. Check the captioner's "
                "weights, or let it try more often (model.captioner.sampling.max_tries)."
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
        """The answer to each of Q questions from its captions.

        ``config`` stands in place of the reader's own for what concerns reading: beams, lengths,
        captions in a passage, questions in a pass. Answers are ``normalise_answer``d. Raises
        UserError for a question without captions.
        """
        config = config or self.config
        check(config, self._where)
        answers: list[str] = []
        for start in range(0, len(questions), config.questions_per_pass):
            some = slice(start, start + config.questions_per_pass)
            states, mask = end_to_end(
                self.encode(questions[some], captions[some], config.num_captions_fid)
            )
            # How ``generate`` is typed differs between releases.
            said = cast(Any, self.t5).generate(
                encoder_outputs=_encoder_output(states),
                attention_mask=mask,
                do_sample=False,
                num_beams=config.num_beams,
                # The token that decoding starts with is not part of an answer.
                min_new_tokens=config.min_answer_tokens,
                max_new_tokens=config.max_answer_tokens,
            )
            assert isinstance(said, Tensor)
            answers += self.tokenizer.batch_decode(said, skip_special_tokens=True)
        return [normalise_answer(answer) for answer in answers]

    def loss(self, encoded: EncodedPassages, answers: Sequence[str]) -> Tensor:
        """Cross-entropy of each answer, float [Q]: the mean over its tokens and the end's."""
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
        """The questions' passages, each encoded apart. Raises UserError as ``passages`` does."""
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
            # What T5's first release has, and UnifiedQA-v2 with it.
            feed_forward_proj="relu",
            tie_word_embeddings=True,
            dropout_rate=0.0,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            decoder_start_token_id=self.tokenizer.pad_token_id,
        )
        return made


def end_to_end(encoded: EncodedPassages) -> tuple[Tensor, Tensor]:
    """Passages of a question laid end to end: states [Q, T, D] and their mask [Q, T].

    Padding within a passage is dropped, so that a question's states end with its words.
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
    # transformers names a subclass of Tensor, which no tensor is, in some releases.
    return BaseModelOutput(last_hidden_state=cast(Any, states))


def read_tokenizer(source: str, key: str) -> transformers.PreTrainedTokenizerBase:
    """The T5 tokenizer that ``source``, the value of the config's ``key``, stands for.

    It puts </s> after every text. Raises UserError that names ``key`` for one that cannot be had,
    or is none of T5's kind.
    """
    path = resolve(source, key=key, filenames=TOKENIZER_FILES, beside=TOKENIZER_SETTINGS)
    try:
        tokenizer = _tokenizer(path)
        ids = tokenizer("a")["input_ids"]
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise UserError(f"{key}: {path} is no T5 tokenizer ({error!r:.120}).") from error
    missing = {"<pad>", "</s>", "<unk>"} - set(tokenizer.get_vocab())
    if missing or ids[-1] != tokenizer.eos_token_id:
        raise UserError(
            f"{key}: {path} is no T5 tokenizer; its vocabulary must have <pad>, </s> and <unk>, "
            "and texts must end with </s>."
        )
    return tokenizer


def _tokenizer(path: Path) -> transformers.PreTrainedTokenizerBase:
    if path.suffix == ".model":
        return transformers.T5Tokenizer.from_pretrained(path.parent)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(path), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def normalise_answer(answer: str) -> str:
    """A generated answer as GQA writes answers: lower case, single spaces, no mark at the end.

    GQA's authors compare answers as they stand (evaluation script of Hudson and Manning, 2019);
    only what a generator adds to an answer is taken away.
    """
    return " ".join(answer.lower().split()).strip(" .,!?\"'")
