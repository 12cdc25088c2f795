"""The objective ``words``: noisy-or over tokens, from statements."""

from typing import Any

import pytest
import torch

from lavis_ext.objectives.base import FusedBatch, HeadSizes, ObjectiveConfig
from lavis_ext.objectives.words import NEGATED, WordsObjective

WORDS = ["red", "blue", "gear", "coin", "small"]
WIDTH = 12


class Reader:
    """Stands in for a question encoder."""

    def tokenizer(self, texts: list[str], *, add_special_tokens: bool) -> dict[str, Any]:
        assert not add_special_tokens
        return {
            "input_ids": [[WORDS.index(w) for w in text.split() if w in WORDS] for text in texts]
        }


def batch(
    tokens: torch.Tensor, index: list[int], statements: list[str | None]
) -> tuple[WordsObjective, FusedBatch]:
    torch.manual_seed(0)
    objective = WordsObjective(ObjectiveConfig(), HeadSizes(WIDTH, 1, 1, None, len(WORDS)))
    samples: Any = {"image_index": torch.tensor(index), "statement": statements}
    return objective, FusedBatch(tokens, tokens, samples, Reader())  # type: ignore[arg-type]


def test_an_image_shows_a_word_if_a_token_does() -> None:
    tokens = torch.randn(2, 5, WIDTH)
    objective, given = batch(tokens, [0, 1, 1], ["the red gear", "a coin", "the coin is blue"])
    output = objective(given)
    probabilities = objective.detectors(objective.norm(tokens)).sigmoid()
    shows = 1 - (1 - probabilities).prod(dim=1)
    red, blue, gear, coin = (shows[:, WORDS.index(word)] for word in WORDS[:4])
    first = -(red[0] * gear[0] * (1 - blue[0]) * (1 - coin[0])).log() / 2
    second = -(blue[1] * coin[1] * (1 - red[1]) * (1 - gear[1])).log() / 2
    torch.testing.assert_close(output.losses, torch.stack((first, second, second)))
    assert output.report["found"] == 0  # before training


def test_tokens_learn_their_words_from_texts_about_whole_images() -> None:
    torch.manual_seed(0)
    kinds = torch.randn(4, WIDTH)  # of red gears, blue gears, red coins, blue coins
    names = ["red gear", "blue gear", "red coin", "blue coin"]
    shown = [torch.randperm(4)[:2].tolist() for _ in range(300)]
    tokens = 0.3 * torch.randn(300, 6, WIDTH)
    for image, pair in enumerate(shown):
        tokens[image, [1, 4]] += kinds[pair]
    index = [image for image in range(300) for _ in range(2)]
    statements: list[str | None] = [f"there is a {names[kind]}" for pair in shown for kind in pair]
    objective, given = batch(tokens, index, statements)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        output = objective(given)
        output.losses.mean().backward()
        optimizer.step()
    assert output.report["found"] / len(index) > 0.9
    with torch.no_grad():
        scores = objective.detectors(objective.norm(tokens[range(300), 1]))[:, :4]
    words = torch.tensor([[word in names[pair[0]].split() for word in WORDS[:4]] for pair in shown])
    assert ((scores > 0) == words).float().mean() > 0.8  # by chance 0.5


def test_images_without_words_have_no_loss() -> None:
    tokens = torch.randn(3, 5, WIDTH)
    said: list[str | None] = ["there is no red gear", None, "a coin"]
    objective, given = batch(tokens, [0, 1, 2], said)
    losses = objective(given).losses
    assert losses[:2].tolist() == [0, 0]
    assert losses[2] > 0
    objective, given = batch(tokens, [0, 1, 2], [None] * 3)
    assert objective(given).losses.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("text", "negated"),
    [
        ("there is no gear", True),
        ("It isn't red", True),
        ("the coin is not red", True),
        ("the notch is on the north", False),
    ],
)
def test_negated_statements_are_told_by_their_words(text: str, negated: bool) -> None:
    assert bool(NEGATED.search(text)) is negated
