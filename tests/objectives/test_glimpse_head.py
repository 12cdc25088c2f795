"""The head ``glimpses``: each question reads its own image and words, however it is packed."""

import torch

from lavis_ext.encoders.blip.packed_questions import pack_questions
from lavis_ext.objectives.answer import AnswerConfig
from lavis_ext.objectives.base import HeadSizes
from lavis_ext.objectives.question_head import build_head

IMAGES, TOKENS, WIDTH, TEXT, OUTPUTS = 3, 5, 12, 8, 4
LENGTHS = torch.tensor([3, 6, 4, 6, 5, 2])
IMAGE = [0, 0, 0, 0, 1, 2]
"""So many about one image that its questions take several rows."""


def test_questions_together_score_as_each_alone() -> None:
    torch.manual_seed(0)
    config = AnswerConfig(head="glimpses", width=16, glimpses=2)
    head = build_head(config, HeadSizes(WIDTH, TEXT, 1, None, 0), OUTPUTS).eval()
    tokens = torch.randn(IMAGES, TOKENS, WIDTH)
    states = torch.randn(len(LENGTHS), int(LENGTHS.max()), TEXT)
    mask = (torch.arange(int(LENGTHS.max())) < LENGTHS[:, None]).long()
    packed = pack_questions(mask, mask, IMAGE, IMAGES, torch.device("cpu"))
    assert packed.row_image is not None
    together = head(tokens, packed, packed.pack(states))
    assert together.shape == (len(LENGTHS), OUTPUTS)
    for place, (length, image) in enumerate(zip(LENGTHS.tolist(), IMAGE, strict=True)):
        one = torch.ones(1, length, dtype=torch.long)
        alone = pack_questions(one, one, [0], 1, torch.device("cpu"))
        scores = head(tokens[[image]], alone, alone.pack(states[[place], :length]))
        torch.testing.assert_close(scores[0], together[place])


def test_image_and_question_matter() -> None:
    torch.manual_seed(0)
    config = AnswerConfig(head="glimpses", width=16, glimpses=2)
    head = build_head(config, HeadSizes(WIDTH, TEXT, 1, None, 0), OUTPUTS).eval()
    one = torch.ones(1, 4, dtype=torch.long)
    packed = pack_questions(one, one, [0], 1, torch.device("cpu"))
    tokens, states = torch.randn(1, TOKENS, WIDTH), torch.randn(1, 4, TEXT)
    scores = head(tokens, packed, packed.pack(states))
    assert not torch.allclose(scores, head(torch.randn_like(tokens), packed, packed.pack(states)))
    assert not torch.allclose(scores, head(tokens, packed, packed.pack(torch.randn_like(states))))
