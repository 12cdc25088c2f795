"""BLIP's question answering (Li et al., ICML 2022, section 4.4): answers are texts.

A text encoder reads the question with cross-attention to image tokens, and a decoder answers from
the question's states. The network is ``transformers``' ``BlipForQuestionAnswering``. Answers are
generated, or ranked: of the candidates with the likeliest first words, the likeliest one (as in
salesforce/BLIP, models/blip_vqa.py: rank_answer, without its label smoothing).

Q questions of up to L tokens, I images, A candidates, W text width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from lavis_ext.checkpoints.reading import (
    ALLOW_UNEXPECTED_HELP,
    WEIGHTS_HELP,
    PretrainedConfig,
    load_pretrained,
)
from lavis_ext.checkpoints.sources import WEIGHT_FILES
from lavis_ext.checkpoints.tokenizers import BERT_FILES, read_bert_tokenizer
from lavis_ext.common.errors import UserError
from lavis_ext.common.files import check_regular, parse_json
from lavis_ext.config.schema import check, option
from lavis_ext.decoders.fid_reader import normalize_answer
from lavis_ext.encoders.blip.encoder import (
    CLIP_MEAN,
    CLIP_STD,
    OLD_BUFFERS,
    BlipSizesConfig,
    added_token_id,
    mask_cross_attention,
    transformers_config,
)
from lavis_ext.encoders.blip.names import ANSWERING_NAMES
from lavis_ext.encoders.blip.packed_questions import pack_questions, send
from lavis_ext.encoders.blip.passes import read_text
from lavis_ext.encoders.blip.tower import BlipTower
from lavis_ext.encoders.pixels import PixelNormalization
from lavis_ext.encoders.questions import tokenized

VQA_BASE = "Salesforce/blip-vqa-base"
GENERATE, RANK = "generate", "rank"


@dataclass
class BlipVqaConfig(BlipSizesConfig, PretrainedConfig):
    """Sizes, tokenizer, weights and inference. The defaults are VQA_BASE."""

    tokenizer: str = option(
        VQA_BASE,
        "hub name, local folder, or vocab.txt file of an uncased BERT tokenizer",
        files=BERT_FILES,
    )
    weights: str | None = option(VQA_BASE, WEIGHTS_HELP, files=WEIGHT_FILES)
    allow_unexpected: list[str] = option(lambda: [*OLD_BUFFERS], ALLOW_UNEXPECTED_HELP)
    first_token: str = option(
        "enc",
        "first token of a question: enc, as BLIP was trained, or cls, as transformers has it",
        choices=("enc", "cls"),
    )
    max_question_tokens: int = option(
        35, "longer questions are cut, [CLS] and [SEP] counted", at_least=3
    )
    max_answer_tokens: int = option(
        10, "longer answers are cut, [DEC] and [SEP] counted", at_least=3
    )
    inference: str = option(
        GENERATE,
        "generate writes answers freely; rank chooses among given ones",
        choices=(GENERATE, RANK),
    )
    num_beams: int = option(3, "beams of generated answers; 1 is greedy", at_least=1)
    answers: str | None = option(
        None,
        "file with a JSON list of the answers to rank, such as LAVIS's answer_list.json; by "
        "default the training split's, which trained weights have",
    )
    candidates: int = option(
        128, "answers with the likeliest first words, which are ranked", at_least=1
    )
    questions_per_pass: int = option(
        16, "questions answered together; bounds memory, changes no answer", at_least=1
    )

    def check_together(self, where: str) -> None:
        """Raise UserError for inconsistent sizes."""
        super().check_together(where)
        for name in ("max_question_tokens", "max_answer_tokens"):
            if getattr(self, name) > self.max_position_embeddings:
                raise UserError(
                    f"{where}.{name} is {getattr(self, name)}, but there are only "
                    f"{self.max_position_embeddings} position embeddings "
                    "(max_position_embeddings)."
                )


class ReadQuestions(NamedTuple):
    """Q questions, read with their images."""

    states: Tensor
    """float [Q, L, W]."""
    mask: Tensor
    """bool [Q, L], False for padding."""


class Candidates(NamedTuple):
    """A answers to choose from. Tensors are on the host."""

    texts: Sequence[str]
    ids: Tensor
    """int64 [A, T]: [DEC], the answer's words, [SEP], padding."""
    mask: Tensor
    """int64 [A, T], 1 for a token and 0 for padding."""


class BlipVqa(nn.Module):
    """``read`` questions, then ``answer`` them; ``losses`` train a fusion of its image tokens.

    Parameters are under ``blip.``, by transformers' names. ``where`` is the config's key, for
    errors. ``load_report`` is the result of loading weights, None for random ones.

    Raises UserError for sizes that don't fit, and for a tokenizer, weights or a list of answers
    that can't be found, read or matched.
    """

    def __init__(self, config: BlipVqaConfig, where: str = "model.vqa") -> None:
        super().__init__()
        check(config, where)
        self.config = config
        self._where = where
        self.tokenizer = read_bert_tokenizer(config.tokenizer, f"{where}.tokenizer")
        self.start_token_id = added_token_id("[DEC]", config, self.tokenizer, where)
        self.enc_token_id = added_token_id("[ENC]", config, self.tokenizer, where)
        words = set(self.tokenizer.get_vocab().values()) - set(self.tokenizer.all_special_ids)
        sayable = words - {self.start_token_id, self.enc_token_id} | {self.tokenizer.sep_token_id}
        self._not_words = sorted(set(range(config.vocab_size)) - sayable)
        self.normalize = PixelNormalization(CLIP_MEAN, CLIP_STD)
        self.blip = transformers.BlipForQuestionAnswering(
            transformers_config(config, self.tokenizer, config.weights, where)
        )
        mask_cross_attention(self.blip.text_decoder)
        self.load_report = load_pretrained(
            self.blip,
            config,
            name="BLIP question answering",
            key=f"{where}.weights",
            foreign=ANSWERING_NAMES,
        )
        self._listed = None if config.answers is None else self._candidates_in(config.answers)
        self._latest: Candidates | None = None

    def tower(self, picture: str) -> BlipTower:
        """The image encoder as a stream, which encodes the image of the stream ``picture``."""
        return BlipTower(self.config, self.normalize, self.blip.vision_model, picture)

    def read(self, tokens: Tensor, image_index: Tensor, questions: Sequence[str]) -> ReadQuestions:
        """Read Q questions about I images.

        Args:
            tokens: image tokens, of ``tower`` or fused, float [I, 1+N, vision_width].
            image_index: int64 [Q] on the host, the image of each question.
            questions: Q texts.
        """
        ids, mask, _ = tokenized(self.tokenizer, questions, self.config.max_question_tokens)
        if self.config.first_token == "enc":
            ids[:, 0] = self.enc_token_id
        packed = pack_questions(ids, mask, image_index.tolist(), len(tokens), tokens.device)
        states = read_text(
            self.blip.text_encoder,
            packed.input_ids,
            packed.question,
            packed.position,
            tokens,
            packed.row_image,
        )
        return ReadQuestions(packed.unpack(states), packed.mask.bool())

    def losses(self, read: ReadQuestions, answers: Sequence[str]) -> Tensor:
        """Cross-entropy of each question's answer, float [Q]: the mean over its words and [SEP]."""
        given = self.candidates(answers)
        sums = self._log_likelihoods(read, given.ids, given.mask, torch.arange(len(answers)))
        return -sums / send(given.mask.sum(dim=1) - 1, sums.device)

    @torch.no_grad()
    def answer(self, read: ReadQuestions, answers: Sequence[str] | None = None) -> list[str]:
        """Answers of Q questions.

        Args:
            read: output of ``read``.
            answers: those to choose from with ``inference: rank``, unless the config names a file.

        Raises UserError for ``inference: rank`` without answers to choose from.
        """
        found: list[str] = []
        for start in range(0, len(read.states), self.config.questions_per_pass):
            some = slice(start, start + self.config.questions_per_pass)
            part = ReadQuestions(read.states[some], read.mask[some])
            if self.config.inference == GENERATE:
                found += self._generate(part)
            else:
                found += self.rank(part, self._choices(answers))
        return found

    def rank(self, read: ReadQuestions, candidates: Candidates) -> list[str]:
        """The likeliest of ``config.candidates`` answers, those with the likeliest first words."""
        count, device = len(read.states), read.states.device
        starts = torch.full((count, 1), self.start_token_id)
        scores = self._next_word_scores(read, starts, torch.ones_like(starts), torch.arange(count))
        likely = min(self.config.candidates, len(candidates.texts))
        first_words = send(candidates.ids[:, 1], device)
        places = scores[:, first_words].topk(likely, dim=1).indices.cpu()
        chosen = places.flatten()
        sums = self._log_likelihoods(
            read,
            candidates.ids[chosen],
            candidates.mask[chosen],
            torch.arange(count).repeat_interleave(likely),
        )
        best = sums.view(count, likely).argmax(dim=1).cpu()
        return [candidates.texts[place] for place in places.gather(1, best[:, None])[:, 0].tolist()]

    def candidates(self, answers: Sequence[str]) -> Candidates:
        """Tokenize answers. Raises UserError for none."""
        if not answers:
            raise UserError(f"{self._where}: there is no answer to choose from.")
        ids, mask, _ = tokenized(self.tokenizer, answers, self.config.max_answer_tokens)
        ids[:, 0] = self.start_token_id
        return Candidates(answers, ids, mask)

    def _choices(self, answers: Sequence[str] | None) -> Candidates:
        if self._listed is not None:
            return self._listed
        if answers is None:
            raise UserError(
                f"{self._where}.inference is {RANK}, and there are no answers to choose from: the "
                f"model has no answer vocabulary of a training. Set {self._where}.answers to a "
                f"file with a JSON list of answers, or {self._where}.inference to {GENERATE}."
            )
        if self._latest is None or self._latest.texts is not answers:
            self._latest = self.candidates(answers)
        return self._latest

    def _generate(self, read: ReadQuestions) -> list[str]:
        start = torch.full((len(read.states), 1), self.start_token_id, device=read.states.device)
        found = cast(Any, self.blip.text_decoder).generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            encoder_hidden_states=read.states,
            encoder_attention_mask=read.mask.long(),
            do_sample=False,
            num_beams=self.config.num_beams,
            max_length=self.config.max_answer_tokens,
            eos_token_id=self.tokenizer.sep_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            suppress_tokens=self._not_words,
        )
        texts = self.tokenizer.batch_decode(found[:, 1:], skip_special_tokens=True)
        return [normalize_answer(text) for text in texts]

    def _log_likelihoods(
        self, read: ReadQuestions, ids: Tensor, mask: Tensor, question: Tensor
    ) -> Tensor:
        """Log likelihood of each of T answers to the questions ``question`` [T], float [T].

        ``ids`` and ``mask`` [T, A], int64 on the host, are answers as in ``Candidates``.
        """
        inputs = mask.clone()
        inputs.scatter_(1, mask.sum(dim=1, keepdim=True) - 1, 0)  # nothing follows [SEP]
        scores = self._next_word_scores(read, ids, inputs, question)
        text, place = inputs.nonzero(as_tuple=True)
        words = send(ids[text, place + 1], scores.device)
        losses = F.cross_entropy(scores, words, reduction="none")
        return -losses.new_zeros(len(ids)).index_add(0, send(text, scores.device), losses)

    def _next_word_scores(
        self, read: ReadQuestions, ids: Tensor, mask: Tensor, question: Tensor
    ) -> Tensor:
        """Scores, float32 [N, V], of the word after each of the N words that ``mask`` counts."""
        device = read.states.device
        packed = pack_questions(ids, mask, question.tolist(), len(read.states), device)
        seen = read.mask if packed.row_image is None else read.mask[packed.row_image]
        decoder: Any = self.blip.text_decoder
        states = read_text(
            decoder.bert,
            packed.input_ids,
            packed.question,
            packed.position,
            read.states,
            packed.row_image,
            seen[:, None].expand(-1, packed.input_ids.shape[1], -1),
            causal=True,
        )
        text, place = (send(each, device) for each in mask.nonzero(as_tuple=True))
        scores: Tensor = decoder.cls(packed.unpack(states)[text, place])
        return scores.float()

    def _candidates_in(self, source: str) -> Candidates:
        path, key = Path(source).expanduser(), f"{self._where}.answers"
        try:
            check_regular(path)
            answers = parse_json(path.read_bytes())
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{key}: {path} can't be read as JSON ({reason}).") from None
        if not isinstance(answers, list) or not all(isinstance(a, str) and a for a in answers):
            raise UserError(f"{key}: {path} isn't a JSON list of texts.")
        return self.candidates(list(dict.fromkeys(answers)))
