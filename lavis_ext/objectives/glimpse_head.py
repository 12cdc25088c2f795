"""Attention of the whole question to the image, as a low-rank bilinear model.

Kim et al., "Hadamard Product for Low-rank Bilinear Pooling" (ICLR 2017), sections 4 and 5. Its cost
hardly depends on the length of the question, and it has fewer weights to overfit a small data set
with than a transformer.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn

from lavis_ext.encoders.blip.packed_questions import PackedQuestions

if TYPE_CHECKING:
    from lavis_ext.objectives.base import HeadSizes
    from lavis_ext.objectives.question_head import QuestionHeadConfig


class GlimpseHead(nn.Module):
    """Scores from words of the question and the image tokens that they attend to.

    The question is its mean state and G learned weightings of its tokens. Each of G glimpses
    weights the image tokens by ``relu(U question) * relu(V token)``. The weighted means and the
    plain one, projected together, are multiplied with the projected question. A branch from the
    question alone is added, so that the product has to learn only what the image changes.
    """

    def __init__(self, config: "QuestionHeadConfig", sizes: "HeadSizes", outputs: int) -> None:
        super().__init__()
        width, count = config.width, config.glimpses
        asked = (1 + count) * sizes.text_width
        self.word = nn.Linear(sizes.text_width, count)
        self.question_norm = nn.LayerNorm(asked)
        self.token_norm = nn.LayerNorm(sizes.token_width)
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.token_projection = nn.Linear(sizes.token_width, width)
        self.key = nn.Linear(width, width)
        self.query = nn.Linear(asked, width)
        self.glimpse = nn.Linear(width, count)
        self.seen = nn.Linear((1 + count) * width, width)
        self.asked = nn.Linear(asked, width)
        self.blind = nn.Linear(asked, width)
        self.dropout = nn.Dropout(config.dropout)
        self.score = nn.Linear(width, outputs)

    def forward(
        self, tokens: torch.Tensor, packed: PackedQuestions, states: torch.Tensor
    ) -> torch.Tensor:
        """Scores [Q, outputs] from image tokens [I, N, D] and packed questions [R, P, W]."""
        question = self.input_dropout(self.question_norm(self._question(packed, states)))
        values = self.token_projection(self.input_dropout(self.token_norm(tokens))).relu()
        image = packed.first // packed.question.shape[1]
        if packed.row_image is not None:
            image = packed.row_image[image]
        joint = self.query(question).relu()[:, None] * self.key(values).relu()[image]
        attention = self.glimpse(self.dropout(joint)).softmax(dim=1)  # [Q, N, G]
        glimpses = torch.einsum("qng,qnw->qgw", attention, values[image])
        found = torch.cat((values.mean(dim=1)[image], glimpses.flatten(1)), dim=1)
        mixed = self.seen(found).relu() * self.asked(question).relu()
        scores: torch.Tensor = self.score(self.dropout(mixed + self.blind(question).relu()))
        return scores

    def _question(self, packed: PackedQuestions, states: torch.Tensor) -> torch.Tensor:
        """Mean state and weighted means of each question, [Q, (1 + G) * W]."""
        words = packed.unpack(states)
        padding = packed.mask.unsqueeze(-1) == 0
        uniform = torch.zeros_like(words[..., :1])
        weights = torch.cat((uniform, self.word(words)), dim=-1)
        weights = weights.masked_fill(padding, float("-inf")).softmax(dim=1)
        return torch.einsum("qlg,qlw->qgw", weights, words).flatten(1)
