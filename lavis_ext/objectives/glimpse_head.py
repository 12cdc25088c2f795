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
    """Scores from the question's mean state and the image tokens that it attends to.

    Each of G glimpses weights the tokens by ``relu(U q) * relu(V token)``; the weighted means,
    projected together, are multiplied with the projected question. A branch from the question
    alone is added, so that the product has to learn only what the image changes.
    """

    def __init__(self, config: "QuestionHeadConfig", sizes: "HeadSizes", outputs: int) -> None:
        super().__init__()
        width, glimpses = config.width, config.glimpses
        self.question_norm = nn.LayerNorm(sizes.text_width)
        self.token_norm = nn.LayerNorm(sizes.token_width)
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.token_projection = nn.Linear(sizes.token_width, width)
        self.key = nn.Linear(width, width)
        self.query = nn.Linear(sizes.text_width, width)
        self.glimpse = nn.Linear(width, glimpses)
        self.seen = nn.Linear(glimpses * width, width)
        self.asked = nn.Linear(sizes.text_width, width)
        self.blind = nn.Linear(sizes.text_width, width)
        self.dropout = nn.Dropout(config.dropout)
        self.score = nn.Linear(width, outputs)

    def forward(
        self, tokens: torch.Tensor, packed: PackedQuestions, states: torch.Tensor
    ) -> torch.Tensor:
        """Scores [Q, outputs] from image tokens [I, N, D] and packed questions [R, P, W]."""
        weights = packed.mask.unsqueeze(-1).to(states.dtype)
        question = (packed.unpack(states) * weights).sum(dim=1) / weights.sum(dim=1)
        question = self.input_dropout(self.question_norm(question))
        values = self.token_projection(self.input_dropout(self.token_norm(tokens))).relu()
        image = packed.first // packed.question.shape[1]
        if packed.row_image is not None:
            image = packed.row_image[image]
        joint = self.query(question).relu()[:, None] * self.key(values).relu()[image]
        attention = self.glimpse(self.dropout(joint)).softmax(dim=1)  # [Q, N, G]
        seen = self.seen(torch.einsum("qng,qnw->qgw", attention, values[image]).flatten(1)).relu()
        mixed = seen * self.asked(question).relu() + self.blind(question).relu()
        scores: torch.Tensor = self.score(self.dropout(mixed))
        return scores
