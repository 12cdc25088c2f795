"""Questions about one image, packed beside each other into a row.

A question's tokens are few and an image's many, so what is computed of an image should serve all of
its questions. Here the questions of an image are one sequence: cross-attention reads the image's
keys and values once for all of them, and as its queries don't interact it needs no more than that.
In self-attention a mask keeps the questions apart.

Q questions of up to L tokens, I images, R rows of P places.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Numbers = npt.NDArray[np.int64]
NOTHING = -1
"""The number of the question at a place that holds none."""


@dataclass(frozen=True)
class PackedQuestions:
    """Where the tokens of Q questions stand. All tensors are int64 and on the model's device."""

    input_ids: Tensor
    """[R, P]."""
    question: Tensor
    """[R, P], the question that a token is of, or NOTHING."""
    position: Tensor
    """[R, P], a token's place in its question."""
    row_image: Tensor | None
    """[R], the image of each row; None where row i is about image i."""
    places: Tensor
    """[Q, L], where each token of a question stands in the R * P places; padding: its last."""
    mask: Tensor
    """[Q, L], 1 for a token and 0 for padding."""

    @property
    def first(self) -> Tensor:
        """[Q], where each question's first token stands in the R * P places."""
        return self.places[:, 0]

    def pack(self, states: Tensor) -> Tensor:
        """What belongs to each token, [Q, L, ...], in rows: [R, P, ...]."""
        return states[self.question.clamp(min=0), self.position]

    def spread(self, states: Tensor) -> Tensor:
        """What belongs to each question, [Q, ...], in rows: [R, P, ...]."""
        return states[self.question.clamp(min=0)]

    def unpack(self, packed: Tensor) -> Tensor:
        """The contrary of ``pack``: from [R, P, ...] to [Q, L, ...]. Padding repeats a token."""
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

    An image has one row, as long as the longest. One with more than twice the mean of tokens has
    several, so that a single image with many questions doesn't make the batch wide and empty.

    Args:
        input_ids: int64 [Q, L], on the host: the shape of the rows depends on it, and reading it
            from a GPU would wait for all that the GPU has to do.
        mask: of the same shape and place, 1 for a token and 0 for padding.
        image_index: the image of each question.
        images: I.
        device: where the rows go.
        multiple: rows are padded to a multiple of so many places.
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
    """Row [Q] and offset [Q] of questions with so many tokens, and the image of each row [R]."""
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
    """A tensor of the host on ``device``, without waiting for what the device is at."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
