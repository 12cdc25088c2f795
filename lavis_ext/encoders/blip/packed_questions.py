"""Questions about the same image, packed into one row.

A question has few tokens and an image many, so keys and values of an image should be computed once
for all of its questions. Here an image's questions form one sequence: cross-attention reads the
image once and, since queries don't interact, gives the same result. In self-attention, a mask
separates the questions.

Q questions of up to L tokens, I images, R rows of P positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Numbers = npt.NDArray[np.int64]
NOTHING = -1
"""Index of the question at an empty position of a row."""


@dataclass(frozen=True)
class PackedQuestions:
    """Positions of the tokens of Q questions. All tensors are int64 on the model's device."""

    input_ids: Tensor
    """[R, P]."""
    question: Tensor
    """[R, P], the question of each token, or NOTHING."""
    position: Tensor
    """[R, P], the index of each token in its question."""
    row_image: Tensor | None
    """[R], the image of each row; None if row i is about image i."""
    places: Tensor
    """[Q, L], position of each token among the R * P; padding has that of the last token."""
    mask: Tensor
    """[Q, L], 1 for a token and 0 for padding."""

    @property
    def first(self) -> Tensor:
        """[Q], position of each question's first token among the R * P."""
        return self.places[:, 0]

    def pack(self, states: Tensor) -> Tensor:
        """Values of each token [Q, L, ...] in rows [R, P, ...]."""
        return states[self.question.clamp(min=0), self.position]

    def spread(self, states: Tensor) -> Tensor:
        """Values of each question [Q, ...], repeated for its tokens, in rows [R, P, ...]."""
        return states[self.question.clamp(min=0)]

    def unpack(self, packed: Tensor) -> Tensor:
        """The inverse of ``pack``: [R, P, ...] to [Q, L, ...]. Padding repeats the last token."""
        return packed.flatten(0, 1)[self.places]


def pack_questions(
    input_ids: Tensor,
    mask: Tensor,
    image_index: Sequence[int],
    images: int,
    device: torch.device,
    multiple: int = 1,
) -> PackedQuestions:
    """Pack questions by image.

    Each image has one row, all padded to the longest. An image with more than twice the mean number
    of tokens has several rows, or a single one with many questions would make all rows long.

    Args:
        input_ids: int64 [Q, L] on the host: the shape of the rows depends on it, and reading it
            from a GPU would synchronize.
        mask: [Q, L] on the host, 1 for a token and 0 for padding.
        image_index: the image of each question.
        images: I.
        device: device of the result.
        multiple: rows are padded to a multiple of this.
    """
    lengths = mask.sum(dim=1).numpy()
    row, offset, row_image = _in_rows(lengths, np.asarray(image_index, dtype=np.int64), images)
    width = -(-int((offset + lengths).max()) // multiple) * multiple
    shape = (len(row_image), width)

    question = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(question)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    tokens = (row * width + offset)[question] + position
    laid = {name: np.zeros(shape, np.int64) for name in ("input_ids", "position")}
    laid["question"] = np.full(shape, NOTHING, np.int64)
    laid["question"].reshape(-1)[tokens] = question
    laid["position"].reshape(-1)[tokens] = position
    laid["input_ids"].reshape(-1)[tokens] = input_ids.numpy()[question, position]

    within = np.minimum(np.arange(mask.shape[1]), lengths[:, None] - 1)
    laid["places"] = (row * width + offset)[:, None] + within
    split = len(row_image) > images
    return PackedQuestions(
        **{name: send(torch.from_numpy(array), device) for name, array in laid.items()},
        row_image=send(torch.from_numpy(row_image), device) if split else None,
        mask=send(mask, device),
    )


def _in_rows(
    lengths: Numbers, image_index: Numbers, images: int
) -> tuple[Numbers, Numbers, Numbers]:
    """Row [Q] and offset [Q] of questions with ``lengths``, and the image of each row [R]."""
    per_image = np.bincount(image_index, weights=lengths, minlength=images)
    room = max(2 * per_image.mean(), lengths.max())
    row, offset = np.zeros_like(lengths), np.zeros_like(lengths)
    row_image: list[int] = []
    order = np.argsort(image_index, kind="stable")
    cuts = np.searchsorted(image_index[order], np.arange(1, images))
    for image, questions in enumerate(np.split(order, cuts)):
        row_image.append(image)
        used = 0
        for question in questions:
            if used + lengths[question] > room:
                row_image.append(image)
                used = 0
            row[question], offset[question] = len(row_image) - 1, used
            used += lengths[question]
    return row, offset, np.array(row_image)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the host to ``device`` without synchronizing."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
