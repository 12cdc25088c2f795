"""BLIP's text decoder, a word at a time, for many captions of patches of few images.

Modules and weights are ``transformers``' ``BlipTextLMHeadModel``. Keys and values of a patch are
computed once for all captions that attend to it, those of the words are kept, and the rows of
finished captions leave the batch.

R rows, one a caption, of P patches; U different patches of all rows; L new words.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lavis_ext.distributed.sharding import gathered
from lavis_ext.encoders.attention import attend_by_head, by_head


class WordByWord:
    """Scores of the next word of R rows, which are extended by ``next_scores``.

    Args:
        decoder: BlipTextLMHeadModel, in evaluation mode.
        patches: states of the different patches, float [U, D].
        chosen: int64 [R, P], the patches of each row.
    """

    def __init__(self, decoder: Any, patches: Tensor, chosen: Tensor) -> None:
        self._decoder = decoder
        self._seen: list[tuple[Tensor, Tensor]] = []  # by layer, [R, H, P, C]
        self._own: list[tuple[Tensor, Tensor]] = []  # by layer, [R, H, words so far, C]
        for layer in decoder.bert.encoder.layer:
            own = layer.crossattention.self
            heads = own.num_attention_heads
            with gathered(layer):
                keys, values = own.key(patches), own.value(patches)
            self._seen.append((by_head(keys[chosen], heads), by_head(values[chosen], heads)))

    def next_scores(self, words: Tensor) -> Tensor:
        """Scores [R, V] of the word after ``words`` [R, L], which follow the rows' words so far.

        In the first call L is any number, later it is 1.
        """
        text = self._decoder.bert
        before = self._own[0][0].shape[2] if self._own else 0
        positions = torch.arange(before, before + words.shape[1], device=words.device)
        states = text.embeddings(input_ids=words, position_ids=positions[None])
        for place, layer in enumerate(text.encoder.layer):
            with gathered(layer):
                states = self._through(layer, place, states)
        scores: Tensor = self._decoder.cls(states[:, -1])
        return scores

    def _through(self, layer: Any, place: int, states: Tensor) -> Tensor:
        own = layer.attention.self
        heads = own.num_attention_heads
        keys, values = by_head(own.key(states), heads), by_head(own.value(states), heads)
        first = place == len(self._own)
        if first:
            self._own.append((keys, values))
        else:
            before = self._own[place]
            keys, values = torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)
            self._own[place] = (keys, values)
        query = by_head(own.query(states), heads)
        mixed = attend_by_head(query, keys, values, causal=first)
        states = layer.attention.output(mixed, states)
        query = by_head(layer.crossattention.self.query(states), heads)
        mixed = attend_by_head(query, *self._seen[place])
        states = layer.crossattention.output(mixed, states)
        extended: Tensor = layer.output(layer.intermediate(states), states)
        return extended

    def keep(self, rows: Tensor) -> None:
        """Keep only the rows of these indices."""
        self._seen = [(keys[rows], values[rows]) for keys, values in self._seen]
        self._own = [(keys[rows], values[rows]) for keys, values in self._own]


def generate_words(
    decoder: Any,
    patches: Tensor,
    chosen: Tensor,
    prompt: list[int],
    choose: Callable[[Tensor, Tensor, Tensor], Tensor],
    end: int,
    max_length: int,
) -> list[list[int]]:
    """Words of R rows after their ``prompt``, without ``end``.

    Args:
        decoder, patches, chosen: as in ``WordByWord``.
        prompt: the first words of every row.
        choose: gives the next words [R] of rows with words so far [R, L], scores [R, V] and the
            numbers [R] of these rows among all.
        end: word after which a row is finished.
        max_length: largest number of words, prompt included.
    """
    state = WordByWord(decoder, patches, chosen)
    rows = torch.arange(len(chosen), device=chosen.device)
    so_far = torch.tensor([prompt], device=chosen.device).repeat(len(chosen), 1)
    new = so_far
    finished: dict[int, list[int]] = {}
    while True:
        words = choose(so_far, state.next_scores(new), rows)
        so_far = torch.cat([so_far, words[:, None]], dim=1)
        going_on = (words != end) & (so_far.shape[1] < max_length)
        if not going_on.all():
            for row, ids in zip(rows[~going_on].tolist(), so_far[~going_on].tolist(), strict=True):
                finished[row] = [word for word in ids[len(prompt) :] if word != end]
            if not going_on.any():
                return [finished[row] for row in range(len(chosen))]
            kept = going_on.nonzero().flatten()
            rows, so_far = rows[kept], so_far[kept]
            state.keep(kept)
        new = so_far[:, -1:]
