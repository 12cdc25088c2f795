"""BLIP's captioner (Li et al., ICML 2022) on selected patches, as in PNP-VQA.

The network is ``transformers``' own, and so is ``generate`` for whole images. Q questions, I
images, N patches, P patches of a caption, R samples generated together, D image width.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
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
from lavis_ext.config.schema import check, option
from lavis_ext.config.typed import typed
from lavis_ext.decoders.base import GenerativeModel, TargetScores
from lavis_ext.decoders.keyed_noise import KeyedSampling, fold_in, text_keys
from lavis_ext.decoders.patches import PatchConfig, check_heat, draw_patches
from lavis_ext.decoders.word_by_word import generate_words
from lavis_ext.encoders.blip.encoder import (
    CLIP_MEAN,
    CLIP_STD,
    OLD_BUFFERS,
    BlipSizesConfig,
    added_token_id,
    check_image_size,
    mask_cross_attention,
    transformers_config,
)
from lavis_ext.encoders.blip.names import CAPTIONING_NAMES
from lavis_ext.encoders.blip.packed_questions import pack_questions, send
from lavis_ext.encoders.blip.passes import encode_pixels, read_text
from lavis_ext.encoders.blip.tower import BlipTower
from lavis_ext.encoders.pixels import PixelNormalization

CAPTIONING_BASE = "Salesforce/blip-image-captioning-base"


@dataclass
class SamplingConfig:
    """Sampling of captions. The defaults are from LAVIS's projects/pnp-vqa/eval/gqa_eval.yaml."""

    num_captions: int = option(100, "distinct captions of a question", at_least=1)
    drop_contained: bool = option(
        False,
        "drop a caption that is part of an earlier one too, as LAVIS does, not only an equal one",
    )
    max_tries: int = option(5, "attempts at a caption that differs from the others", at_least=1)
    top_k: int = option(50, "sample from this many of the likeliest words; 0 is all", at_least=0)
    top_p: float = option(
        1.0, "sample from the fewest words with this share of probability", above=0, at_most=1
    )
    repetition_penalty: float = option(
        1.0, "above 1, repeated words become less likely (CTRL)", above=0
    )
    min_length: int = option(10, "tokens of the shortest caption, prompt included", at_least=0)
    max_length: int = option(20, "tokens of the longest caption, prompt included", at_least=2)
    samples_per_pass: int = option(
        256, "captions generated together; bounds memory, changes no caption", at_least=1
    )
    seed: int = option(0, "seed of the patches and words that are drawn")
    patches: PatchConfig = option(PatchConfig, "the patches that a caption is generated from")

    def check_together(self, where: str) -> None:
        """Raise UserError if ``min_length`` exceeds ``max_length``."""
        if self.min_length > self.max_length:
            raise UserError(
                f"{where}.min_length is {self.min_length}; it must be at most {where}.max_length, "
                f"which is {self.max_length}."
            )


@dataclass
class CaptionerConfig(BlipSizesConfig, PretrainedConfig):
    """Sizes, tokenizer, weights and sampling. The defaults are CAPTIONING_BASE."""

    tokenizer: str = option(
        CAPTIONING_BASE,
        "hub name, local folder, or vocab.txt file of an uncased BERT tokenizer",
        files=BERT_FILES,
    )
    prompt: str = option("a picture of ", "beginning of every caption; not part of its text")
    max_caption_tokens: int = option(
        40,
        "longer captions are truncated in training; prompt, [DEC] and [SEP] included",
        at_least=3,
    )
    weights: str | None = option(CAPTIONING_BASE, WEIGHTS_HELP, files=WEIGHT_FILES)
    allow_unexpected: list[str] = option(lambda: [*OLD_BUFFERS], ALLOW_UNEXPECTED_HELP)
    sampling: SamplingConfig = option(SamplingConfig, "how captions are sampled")

    def check_together(self, where: str) -> None:
        """Raise UserError for inconsistent sizes."""
        super().check_together(where)
        for name, tokens in (
            ("max_caption_tokens", self.max_caption_tokens),
            ("sampling.max_length", self.sampling.max_length),
        ):
            if tokens > self.max_position_embeddings:
                raise UserError(
                    f"{where}.{name} is {tokens}, but there are only "
                    f"{self.max_position_embeddings} position embeddings "
                    "(max_position_embeddings)."
                )


@dataclass
class CaptionDecoding:
    """Decoding of ``BlipCaptioner.generate``, by default as in salesforce/BLIP, blip.py."""

    num_beams: int = option(3, "beams; 1 is greedy, or sampling", at_least=1)
    sample: bool = option(False, "sample words instead of taking the likeliest")
    top_p: float = option(
        0.9, "sample from the fewest words with this share of probability", above=0, at_most=1
    )
    min_length: int = option(10, "tokens of the shortest caption, prompt included", at_least=0)
    max_length: int = option(30, "tokens of the longest caption, prompt included", at_least=2)
    repetition_penalty: float = option(
        1.0, "above 1, repeated words become less likely (CTRL)", above=0
    )


@dataclass(frozen=True)
class Captions:
    """Captions of Q questions."""

    texts: list[list[str]]
    """Distinct captions of each question, at most ``num_captions``, without the prompt."""
    repeated: list[int]
    """Number of each question's samples that were dropped as repeated or empty."""


class SentenceScores(NamedTuple):
    """Scores of Q given sentences (teacher forcing): means over their words and [SEP]."""

    losses: Tensor
    """Cross-entropy of each sentence, float32 [Q]."""
    accuracies: Tensor
    """Share of each sentence's words that are the likeliest ones, float32 [Q], detached."""


class BlipCaptioner(nn.Module, GenerativeModel):
    """``encode_image``, ``caption``, ``generate``, ``score_targets``, and ``loss`` to train it.

    ``score_sentences`` trains a fusion of its image tokens through it.

    Parameters are under ``blip.``, by transformers' names. ``where`` is the config's key, for
    errors. ``load_report`` is the result of loading weights, None for random ones.

    Raises UserError for sizes that don't fit, and for a tokenizer or weights that can't be found,
    read or matched.
    """

    def __init__(self, config: CaptionerConfig, where: str = "model.captioner") -> None:
        super().__init__()
        check(config, where)
        self.config = config
        self._where = where
        self.tokenizer = read_bert_tokenizer(config.tokenizer, f"{where}.tokenizer")
        first = added_token_id("[DEC]", config, self.tokenizer, where)
        self.prompt_ids = [first, *self._words(config.prompt)]
        self._check_prompt_length(config)
        words = set(self.tokenizer.get_vocab().values()) - set(self.tokenizer.all_special_ids)
        # [SEP] ends a caption; other special tokens, [DEC] and [ENC] never occur in one.
        sayable = words - {first} | {self.tokenizer.sep_token_id}
        self.not_words = sorted(set(range(config.vocab_size)) - sayable)
        self.normalize = PixelNormalization(CLIP_MEAN, CLIP_STD)
        self.blip = transformers.BlipForConditionalGeneration(
            transformers_config(config, self.tokenizer, config.weights, where)
        )
        mask_cross_attention(self.blip.text_decoder)
        self.load_report = load_pretrained(
            self.blip,
            config,
            name="BLIP captioner",
            key=f"{where}.weights",
            foreign=CAPTIONING_NAMES,
        )

    def encode_image(self, images: Tensor) -> Tensor:
        """Image tokens [I, 1+N, D]: the class token, then the patches row by row.

        ``images`` [I, 3, image_size, image_size] are uint8 in 0..255 or floating point in [0, 1].
        Raises UserError for images of another size.
        """
        check_image_size(images, self.config)
        return encode_pixels(self.blip.vision_model, self.normalize(images))

    def tower(self, picture: str) -> BlipTower:
        """The image encoder as a stream, which encodes the image of the stream ``picture``."""
        return BlipTower(self.config, self.normalize, self.blip.vision_model, picture)

    @torch.no_grad()
    def generate(
        self, images: Tensor, prompts: Sequence[str], decoding: Mapping[str, Any] | None = None
    ) -> list[str]:
        """A caption of each whole image that continues its prompt, without the prompt.

        ``decoding`` are options of :class:`CaptionDecoding`; ``config.prompt`` is the prompt that
        BLIP was trained with. Raises UserError for unknown options.
        """
        chosen = typed(CaptionDecoding, decoding or {}, "decoding")
        drawing = {"top_p": chosen.top_p, "top_k": 0} if chosen.sample else {}
        tokens = self.encode_image(images)
        continuations = [""] * len(prompts)
        for prompt in dict.fromkeys(prompts):
            rows = [row for row, each in enumerate(prompts) if each == prompt]
            start = torch.tensor([self._prompt_tokens(prompt)] * len(rows), device=tokens.device)
            found = cast(Any, self.blip.text_decoder).generate(
                input_ids=start,
                attention_mask=torch.ones_like(start),
                encoder_hidden_states=tokens[rows],
                do_sample=chosen.sample,
                num_beams=chosen.num_beams,
                min_length=chosen.min_length,
                max_length=max(chosen.max_length, start.shape[1] + 1),
                repetition_penalty=chosen.repetition_penalty,
                eos_token_id=self.tokenizer.sep_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
                suppress_tokens=self.not_words,
                **drawing,
            )
            texts = self.tokenizer.batch_decode(
                found[:, start.shape[1] :], skip_special_tokens=True
            )
            for row, text in zip(rows, texts, strict=True):
                continuations[row] = text.strip()
        return continuations

    def score_targets(
        self, images: Tensor, prompts: Sequence[str], targets: Sequence[str]
    ) -> TargetScores:
        """Logits and hidden states for given captions of whole images, each ended by [SEP].

        Differentiable down to the images. Hidden states are those that the logits are projected
        from.
        """
        tokens = self.encode_image(images)
        end = [self.tokenizer.sep_token_id]
        begun = [self._prompt_tokens(prompt) for prompt in prompts]
        target_ids = [[*self._words(target), *end] for target in targets]
        sequences = [first + rest for first, rest in zip(begun, target_ids, strict=True)]
        input_ids, mask = self._padded(sequences, tokens.device)
        states = self.blip.text_decoder.bert(
            input_ids=input_ids,
            attention_mask=mask.long(),
            encoder_hidden_states=tokens,
            use_cache=False,
            is_decoder=True,
        ).last_hidden_state
        # The state at each position predicts the next token.
        _, counted = self._padded(target_ids, tokens.device)
        first = torch.tensor([len(each) - 1 for each in begun], device=tokens.device)
        places = first[:, None] + torch.arange(counted.shape[1], device=tokens.device)
        places = places.clamp(max=states.shape[1] - 1)
        states = states.gather(1, places[..., None].expand(-1, -1, states.shape[2]))
        return TargetScores(self.blip.text_decoder.cls(states), states, counted)

    @torch.no_grad()
    def caption(
        self,
        tokens: Tensor,
        image_index: Tensor,
        heat: Tensor,
        question_ids: Sequence[str],
        sampling: SamplingConfig | None = None,
    ) -> Captions:
        """``num_captions`` distinct captions of each question, in the order of their numbers.

        Each sample has its own patches, without the class token (LAVIS, pnp_vqa.py). A sample that
        repeats an earlier caption of its question (with ``drop_contained``, one that is part of an
        earlier caption) is drawn again, patches and words, up to
        ``max_tries`` attempts; a captioner that repeats itself gives fewer captions. Draws depend
        only on seed, question id, caption number, attempt and step.

        Args:
            tokens: output of ``encode_image``, float [I, 1+N, D].
            image_index: int64 [Q], the image of each question.
            heat: heat map of each question, float [Q, N].
            question_ids: Q texts, which seed the draws.
            sampling: replaces the config's.

        Raises UserError for invalid heat maps (see ``check_heat``), heat maps of another size than
        the image's, and an invalid ``sampling``.
        """
        sampling = self._checked(sampling)
        check_heat(heat, question_ids, sampling.patches, f"{self._where}.sampling.patches")
        if heat.shape[1] != tokens.shape[1] - 1:
            raise UserError(
                f"The heat maps have {heat.shape[1]} patches and the captioner's images "
                f"{tokens.shape[1] - 1}. Give {self._where} the image_size and patch_size of "
                "question matching, or resize the heat maps."
            )
        keys = text_keys(question_ids, sampling.seed, "captions").to(tokens.device)
        drawn: list[dict[str, int]] = [{} for _ in question_ids]
        repeated = [0] * len(question_ids)
        wanted = [(q, c) for q in range(len(question_ids)) for c in range(sampling.num_captions)]
        for attempt in range(sampling.max_tries):
            again = []
            for start in range(0, len(wanted), sampling.samples_per_pass):
                some = wanted[start : start + sampling.samples_per_pass]
                question, number = torch.tensor(some, device=tokens.device).unbind(dim=1)
                sample_keys = fold_in(fold_in(keys[question], number), attempt)
                image = image_index[question]
                texts = self._sample(tokens, image, heat[question], sample_keys, sampling)
                for (q, c), text in zip(some, texts, strict=True):
                    if text and not _is_repeated(text, drawn[q], sampling.drop_contained):
                        drawn[q][text] = c
                    else:
                        repeated[q] += 1
                        again.append((q, c))
            wanted = again
        return Captions([sorted(texts, key=texts.__getitem__) for texts in drawn], repeated)

    def loss(self, states: Tensor, texts: Sequence[str], states_mask: Tensor | None) -> Tensor:
        """Cross-entropy of each caption, float [B]: the mean over its tokens and [SEP].

        The prompt precedes each text and doesn't count in the loss (LAVIS, blip_caption.py).

        Args:
            states: tokens of each caption's patches, float [B, P, D].
            texts: B captions without the prompt.
            states_mask: [B, P], 1 for a patch and 0 for padding; None is all patches.
        """
        input_ids, mask = self._padded(self._sentences(texts), states.device)
        places = torch.arange(mask.shape[1], device=states.device)
        logits = self.blip.text_decoder(
            input_ids=input_ids,
            attention_mask=mask.long(),
            encoder_hidden_states=states,
            encoder_attention_mask=None if states_mask is None else states_mask.long(),
            use_cache=False,
        ).logits
        per_token = F.cross_entropy(
            logits[:, :-1].transpose(1, 2), input_ids[:, 1:], reduction="none"
        )
        counted = (mask & (places >= len(self.prompt_ids)))[:, 1:]
        return (per_token * counted).sum(dim=1) / counted.sum(dim=1)

    def score_sentences(
        self, tokens: Tensor, image_index: Tensor, texts: Sequence[str]
    ) -> SentenceScores:
        """Losses, as of ``loss``, and accuracies of Q texts about I whole images.

        An image's texts are one row, so that its keys and values are computed once.

        Args:
            tokens: image tokens, fused or of ``encode_image``, float [I, 1+N, D].
            image_index: int64 [Q] on the host, the image of each text.
            texts: Q sentences without the prompt.
        """
        ids, mask = self._padded(self._sentences(texts), torch.device("cpu"))
        packed = pack_questions(ids, mask.long(), image_index.tolist(), len(tokens), tokens.device)
        decoder: Any = self.blip.text_decoder
        states = read_text(
            decoder.bert,
            packed.input_ids,
            packed.question,
            packed.position,
            tokens,
            packed.row_image,
            causal=True,
        )
        # Only the states that predict a word of a sentence are projected to the vocabulary.
        counted = mask.clone()
        counted[:, : len(self.prompt_ids)] = False
        text, place = counted.nonzero(as_tuple=True)
        text, place, words = (send(each, tokens.device) for each in (text, place, ids[counted]))
        logits = decoder.cls(packed.unpack(states)[text, place - 1])
        losses = F.cross_entropy(logits.float(), words, reduction="none")
        right = (logits.detach().argmax(dim=-1) == words).to(losses.dtype)
        lengths = send(counted.sum(dim=1), tokens.device)
        zeros = losses.new_zeros(len(texts))
        return SentenceScores(
            zeros.index_add(0, text, losses) / lengths, zeros.index_add(0, text, right) / lengths
        )

    def _sentences(self, texts: Sequence[str]) -> list[list[int]]:
        """Prompt, words and [SEP] of each text, cut to ``max_caption_tokens``."""
        room = self.config.max_caption_tokens - 1
        end = [self.tokenizer.sep_token_id]
        return [[*self.prompt_ids, *self._words(text)][:room] + end for text in texts]

    def _checked(self, sampling: SamplingConfig | None) -> SamplingConfig:
        if sampling is None:
            return self.config.sampling
        config = replace(self.config, sampling=sampling)
        check(config, self._where)
        self._check_prompt_length(config)
        return sampling

    def _sample(
        self,
        tokens: Tensor,
        image: Tensor,
        heat: Tensor,
        keys: Tensor,
        sampling: SamplingConfig,
    ) -> list[str]:
        """One text for each of R samples, from image [R], heat [R, N] and keys [R]."""
        patch_key, word_key = fold_in(keys, 0), fold_in(keys, 1)
        patches = draw_patches(heat, patch_key, sampling.patches)
        # Patch n is token 1+n, after the class token.
        drawn = image[:, None] * tokens.shape[1] + 1 + patches
        different, chosen = drawn.unique(return_inverse=True)
        end = self.tokenizer.sep_token_id
        refused = torch.zeros(self.config.vocab_size, dtype=torch.bool, device=tokens.device)
        refused[self.not_words] = True
        refused_at_first = refused.clone()
        refused_at_first[end] = True
        filters: Any = _filters(sampling)  # transformers asks for a LongTensor
        penalty = transformers.RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty))

        def choose(words_so_far: Tensor, scores: Tensor, rows: Tensor) -> Tensor:
            scores = scores.float()
            if sampling.repetition_penalty != 1:
                scores = penalty(words_so_far, scores)
            early = words_so_far.shape[1] < sampling.min_length
            scores = scores.masked_fill_(refused_at_first if early else refused, -torch.inf)
            scores = KeyedSampling(word_key[rows])(words_so_far, filters(words_so_far, scores))
            return scores.argmax(dim=-1)

        # In lower precision many words have equal scores, and the argmax among them would depend
        # on the batch.
        with torch.autocast(tokens.device.type, enabled=False):
            generated = generate_words(
                self.blip.text_decoder,
                tokens.flatten(0, 1)[different].to(self.blip.dtype),
                chosen,
                self.prompt_ids,
                choose,
                end,
                sampling.max_length,
            )
        texts = self.tokenizer.batch_decode(generated, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _padded(
        self, sequences: Sequence[list[int]], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Token ids int64 [B, L], and a bool mask [B, L] that is False for padding."""
        longest = max(map(len, sequences))
        padding = self.tokenizer.pad_token_id
        ids = [each + [padding] * (longest - len(each)) for each in sequences]
        lengths = torch.tensor([len(each) for each in sequences], device=device)
        mask = torch.arange(longest, device=device) < lengths[:, None]
        return torch.tensor(ids, device=device), mask

    def _prompt_tokens(self, prompt: str) -> list[int]:
        """[DEC] and the prompt's words."""
        return [self.prompt_ids[0], *self._words(prompt)]

    def _words(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _check_prompt_length(self, config: CaptionerConfig) -> None:
        prompt = len(self.prompt_ids)
        for name, tokens, room in (
            ("sampling.max_length", config.sampling.max_length, config.sampling.max_length),
            # [SEP] takes one.
            ("max_caption_tokens", config.max_caption_tokens, config.max_caption_tokens - 1),
        ):
            if room <= prompt:
                raise UserError(
                    f"{self._where}.{name} is {tokens}, too few for a caption: the prompt "
                    f"'{config.prompt}' alone has {prompt} tokens, including [DEC]."
                )


def _filters(sampling: SamplingConfig) -> transformers.LogitsProcessorList:
    """What leaves only the likeliest words."""
    filters = transformers.LogitsProcessorList()
    if sampling.top_k:
        filters.append(transformers.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        filters.append(transformers.TopPLogitsWarper(sampling.top_p))
    return filters


def _is_repeated(text: str, earlier: Collection[str], contained: bool) -> bool:
    """Whether a caption repeats one of ``earlier``, or with ``contained`` is part of one."""
    return any(text in each for each in earlier) if contained else text in earlier
