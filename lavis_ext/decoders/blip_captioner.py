"""BLIP's captioner (Li et al., ICML 2022) on chosen patches, as PNP-VQA uses it.

The network and its ``generate`` are ``transformers``' own. Q questions, I images, N patches, P
patches that a caption sees, R samples generated together, D image width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from lavis_ext.checkpoints.sources import resolve
from lavis_ext.checkpoints.weights import LoadReport, load_into, read_state_dict
from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import check, option
from lavis_ext.config.typed import typed
from lavis_ext.decoders.base import GenerativeModel, TargetScores
from lavis_ext.decoders.keyed_noise import KeyedSampling, fold_in, text_keys
from lavis_ext.decoders.patches import PatchConfig, check_heat, draw_patches
from lavis_ext.encoders.blip.encoder import (
    CLIP_MEAN,
    CLIP_STD,
    BlipSizesConfig,
    added_token_id,
    mask_cross_attention,
    read_tokenizer,
    refuse_other_size,
    transformers_config,
)
from lavis_ext.encoders.blip.passes import encode_pixels
from lavis_ext.encoders.pixels import PixelNormalisation

CAPTIONING_BASE = "Salesforce/blip-image-captioning-base"


@dataclass
class SamplingConfig:
    """How captions are sampled. The defaults are LAVIS's projects/pnp-vqa/eval/gqa_eval.yaml."""

    num_captions: int = option(100, "distinct captions of a question", at_least=1)
    max_tries: int = option(
        5, "times that a caption is sampled until it differs from the others", at_least=1
    )
    top_k: int = option(50, "words with the best scores to sample from; 0 is all", at_least=0)
    top_p: float = option(
        1.0, "sample from the fewest words with this share of probability", above=0, at_most=1
    )
    repetition_penalty: float = option(
        1.0, "above 1, words that were said before become less likely (CTRL)", above=0
    )
    min_length: int = option(10, "tokens of the shortest caption, prompt included", at_least=0)
    max_length: int = option(20, "tokens of the longest caption, prompt included", at_least=2)
    samples_per_pass: int = option(
        256, "captions generated together; bounds memory, changes no caption", at_least=1
    )
    seed: int = option(0, "changes every draw of patches and words")
    patches: PatchConfig = option(PatchConfig, "the patches that a caption sees")

    def check_together(self, where: str) -> None:
        """Raise UserError for a shortest caption longer than the longest."""
        if self.min_length > self.max_length:
            raise UserError(
                f"{where}.min_length is {self.min_length}; it must be at most {where}.max_length, "
                f"which is {self.max_length}."
            )


@dataclass
class CaptionerConfig(BlipSizesConfig):
    """Sizes, tokenizer, weights and sampling. The defaults are CAPTIONING_BASE."""

    tokenizer: str = option(
        CAPTIONING_BASE, "hub name, local folder, or vocab.txt file of an uncased BERT tokenizer"
    )
    prompt: str = option("a picture of ", "how every caption begins; not part of its text")
    max_caption_tokens: int = option(
        40, "longer captions are cut in training; prompt, [DEC] and [SEP] counted", at_least=3
    )
    weights: str | None = option(
        CAPTIONING_BASE, "hub name, local path or URL; null starts from random weights"
    )
    allow_missing: list[str] = option(list, "patterns of names the checkpoint may lack")
    allow_unexpected: list[str] = option(
        lambda: ["*.position_ids"],  # a buffer with 0, 1, 2, ... that old checkpoints carry
        "patterns of names the checkpoint may have in excess",
    )
    sampling: SamplingConfig = option(SamplingConfig, "how captions are sampled")

    def check_together(self, where: str) -> None:
        """Raise UserError for sizes that do not fit each other."""
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
    """How ``BlipCaptioner.generate`` writes. The defaults are BLIP's (salesforce/BLIP, blip.py)."""

    num_beams: int = option(3, "beams; 1 is greedy, or sampling", at_least=1)
    sample: bool = option(False, "draw words instead of taking the likeliest")
    top_p: float = option(
        0.9, "sample from the fewest words with this share of probability", above=0, at_most=1
    )
    min_length: int = option(10, "tokens of the shortest caption, prompt included", at_least=0)
    max_length: int = option(30, "tokens of the longest caption, prompt included", at_least=2)
    repetition_penalty: float = option(
        1.0, "above 1, words that were said before become less likely (CTRL)", above=0
    )


@dataclass(frozen=True)
class Captions:
    """The captions of Q questions."""

    texts: list[list[str]]
    """Distinct captions of each question, at most ``num_captions``, without the prompt."""
    repeated: list[int]
    """Samples of each question that were dropped: said before by another, or empty."""


class BlipCaptioner(nn.Module, GenerativeModel):
    """``encode_image``, ``caption``, ``generate``, ``score_targets``, and ``loss`` to train it.

    Parameters are under ``blip.``, by transformers' names. ``where`` is the config's own key, named
    in errors. ``load_report`` says what was loaded, and is None for random weights.

    Raises UserError for sizes that do not fit, and for a tokenizer or weights that cannot be had,
    read or matched.
    """

    def __init__(self, config: CaptionerConfig, where: str = "model.captioner") -> None:
        super().__init__()
        check(config, where)
        self.config = config
        self._where = where
        self.tokenizer = read_tokenizer(config.tokenizer, f"{where}.tokenizer")
        first = added_token_id("[DEC]", config, self.tokenizer, where)
        self.prompt_ids = [first, *self._words(config.prompt)]
        self._refuse_long_prompt(config)
        words = set(self.tokenizer.get_vocab().values()) - set(self.tokenizer.all_special_ids)
        # [SEP] ends a caption; the other special tokens, [DEC] and [ENC] are part of none.
        sayable = words - {first} | {self.tokenizer.sep_token_id}
        self._not_words = sorted(set(range(config.vocab_size)) - sayable)
        self.normalise = PixelNormalisation(CLIP_MEAN, CLIP_STD)
        self.blip = transformers.BlipForConditionalGeneration(
            transformers_config(config, self.tokenizer)
        )
        mask_cross_attention(self.blip.text_decoder)
        self.load_report: LoadReport | None = None
        if config.weights is not None:
            state = read_state_dict(resolve(config.weights, key=f"{where}.weights"))
            # Weights that transformers saves leave out the names of tied parameters.
            for name, source in self.blip.all_tied_weights_keys.items():
                if source in state:
                    state.setdefault(name, state[source])
            self.load_report = load_into(
                self.blip,
                state,
                name=f"BLIP captioner from {config.weights}",
                allow_missing=config.allow_missing,
                allow_unexpected=config.allow_unexpected,
            )

    def encode_image(self, images: Tensor) -> Tensor:
        """Image tokens [I, 1+N, D]: the class token, then the patches row by row.

        ``images`` [I, 3, image_size, image_size] are uint8 in 0..255 or floating point in [0, 1].
        Raises UserError for images of another size.
        """
        refuse_other_size(images, self.config)
        return encode_pixels(self.blip.vision_model, self.normalise(images))

    @torch.no_grad()
    def generate(
        self, images: Tensor, prompts: Sequence[str], decoding: Mapping[str, Any] | None = None
    ) -> list[str]:
        """A caption of each whole image that goes on after its prompt, without the prompt.

        ``decoding`` are options of :class:`CaptionDecoding`; ``config.prompt`` is the prompt that
        BLIP was trained with. Raises UserError for options that there aren't.
        """
        chosen = typed(CaptionDecoding, decoding or {}, "decoding")
        drawing = {"top_p": chosen.top_p, "top_k": 0} if chosen.sample else {}
        tokens = self.encode_image(images)
        said = [""] * len(prompts)
        for prompt in dict.fromkeys(prompts):
            rows = [row for row, each in enumerate(prompts) if each == prompt]
            start = torch.tensor([self._begun(prompt)] * len(rows), device=tokens.device)
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
                suppress_tokens=self._not_words,
                **drawing,
            )
            texts = self.tokenizer.batch_decode(
                found[:, start.shape[1] :], skip_special_tokens=True
            )
            for row, text in zip(rows, texts, strict=True):
                said[row] = text.strip()
        return said

    def score_targets(
        self, images: Tensor, prompts: Sequence[str], targets: Sequence[str]
    ) -> TargetScores:
        """Logits and hidden states for given captions of whole images, each ended by [SEP].

        Differentiable down to the images. A hidden state is the decoder's last, from which the
        logits at its place are made.
        """
        tokens = self.encode_image(images)
        end = [self.tokenizer.sep_token_id]
        begun = [self._begun(prompt) for prompt in prompts]
        said = [[*self._words(target), *end] for target in targets]
        sequences = [first + rest for first, rest in zip(begun, said, strict=True)]
        input_ids, mask = self._padded(sequences, tokens.device)
        states = self.blip.text_decoder.bert(
            input_ids=input_ids,
            attention_mask=mask.long(),
            encoder_hidden_states=tokens,
            use_cache=False,
            is_decoder=True,
        ).last_hidden_state
        # What is seen at a place says what comes next.
        _, counted = self._padded(said, tokens.device)
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

        Each sample sees patches of its own, without the class token (LAVIS, pnp_vqa.py). A sample
        that repeats an earlier caption of its question is drawn again, patches and words, at most
        ``max_tries`` times in all; a captioner that repeats itself gives fewer captions. What is
        drawn depends on seed, question id, caption number, try and step alone.

        Args:
            tokens: of ``encode_image``, float [I, 1+N, D].
            image_index: int64 [Q], the image of each question.
            heat: a heat map of each question, float [Q, N].
            question_ids: Q texts; equal ones get equal draws.
            sampling: in place of the config's.

        Raises UserError for heat maps that no patches can be drawn from (see ``check_heat``) or of
        another size than the image's, and for a ``sampling`` that does not fit.
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
        said: list[dict[str, int]] = [{} for _ in question_ids]
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
                    if text and text not in said[q]:
                        said[q][text] = c
                    else:
                        repeated[q] += 1
                        again.append((q, c))
            wanted = again
        return Captions([sorted(texts, key=texts.__getitem__) for texts in said], repeated)

    def loss(self, states: Tensor, texts: Sequence[str], states_mask: Tensor | None) -> Tensor:
        """Cross-entropy of each caption, float [B]: the mean over its tokens and [SEP].

        The prompt comes before each text and is not part of the loss (LAVIS, blip_caption.py).

        Args:
            states: tokens of the patches that a caption sees, float [B, P, D].
            texts: B captions without the prompt.
            states_mask: [B, P], 1 for a patch and 0 for padding; None is all patches.
        """
        room = self.config.max_caption_tokens - 1
        end = [self.tokenizer.sep_token_id]
        sequences = [[*self.prompt_ids, *self._words(text)][:room] + end for text in texts]
        input_ids, mask = self._padded(sequences, states.device)
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

    def _checked(self, sampling: SamplingConfig | None) -> SamplingConfig:
        if sampling is None:
            return self.config.sampling
        config = replace(self.config, sampling=sampling)
        check(config, self._where)
        self._refuse_long_prompt(config)
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
        states = tokens[image[:, None], 1 + patches]
        prompt = torch.tensor([self.prompt_ids], device=tokens.device).expand(len(keys), -1)
        filters = transformers.LogitsProcessorList()
        # generate has filters of its own for sampling only, not for the greedy search that this is.
        if sampling.top_k:
            filters.append(transformers.TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            filters.append(transformers.TopPLogitsWarper(sampling.top_p))
        filters.append(KeyedSampling(word_key))
        # In lower precision many words have equal scores, and which of them counts as the best
        # would depend on the batch.
        with torch.autocast(tokens.device.type, enabled=False):
            # How ``generate`` is typed differs between releases.
            said = cast(Any, self.blip.text_decoder).generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                encoder_hidden_states=states.to(self.blip.dtype),
                logits_processor=filters,
                do_sample=False,
                num_beams=1,
                min_length=sampling.min_length,
                max_length=sampling.max_length,
                repetition_penalty=sampling.repetition_penalty,
                eos_token_id=self.tokenizer.sep_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
                suppress_tokens=self._not_words,
            )
        texts = self.tokenizer.batch_decode(
            said[:, len(self.prompt_ids) :], skip_special_tokens=True
        )
        return [text.strip() for text in texts]

    def _padded(
        self, sequences: Sequence[list[int]], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Token ids and, bool, which of them aren't padding, [B, L] each."""
        longest = max(map(len, sequences))
        padding = self.tokenizer.pad_token_id
        ids = [each + [padding] * (longest - len(each)) for each in sequences]
        lengths = torch.tensor([len(each) for each in sequences], device=device)
        mask = torch.arange(longest, device=device) < lengths[:, None]
        return torch.tensor(ids, device=device), mask

    def _begun(self, prompt: str) -> list[int]:
        """[DEC] and the prompt's words."""
        return [self.prompt_ids[0], *self._words(prompt)]

    def _words(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _refuse_long_prompt(self, config: CaptionerConfig) -> None:
        prompt = len(self.prompt_ids)
        for name, tokens, room in (
            ("sampling.max_length", config.sampling.max_length, config.sampling.max_length),
            # [SEP] takes one.
            ("max_caption_tokens", config.max_caption_tokens, config.max_caption_tokens - 1),
        ):
            if room <= prompt:
                raise UserError(
                    f"{self._where}.{name} is {tokens}, which leaves no room for a caption: the "
                    f"prompt '{config.prompt}' alone has {prompt} tokens, [DEC] counted."
                )
