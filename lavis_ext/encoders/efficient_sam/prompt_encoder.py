"""EfficientSAM's prompt encoder: points and corners of boxes to tokens for the mask decoder.

Xiong et al., CVPR 2024, section 3, after SAM (Kirillov et al., ICCV 2023, appendix A). Parameter
names are those of the authors' checkpoints.

Shapes: Q queries, P points as given, T tokens of a query (``max_points``), C width, h x w grid.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_ext.common.errors import UserError

NONE, POINT, TOP_LEFT, BOTTOM_RIGHT = -1, 1, 2, 3
"""Labels of points: padding, a point on the object, and two corners of a box around it."""


class PositionEncoding(nn.Module):
    """Random Fourier features of positions (Tancik et al., NeurIPS 2020), the same for x and y."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        # A buffer, because it is drawn once and saved with the weights, but never trained.
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, width // 2))

    def forward(self, positions: Tensor) -> Tensor:
        """Features [..., width] of (x, y) [..., 2], float32 as fractions of the image's sides."""
        x, y = (2 * positions - 1).unsqueeze(-2).unbind(-1)
        # No matrix product, since autocast would round positions to bf16, a step of 1/256.
        frequencies = self.positional_encoding_gaussian_matrix
        phases = 2 * math.pi * (x * frequencies[0] + y * frequencies[1])
        return torch.cat([phases.sin(), phases.cos()], dim=-1).to(frequencies.dtype)


class PromptEncoder(nn.Module):
    """Points and boxes as a fixed number of tokens, and position features of image tokens.

    Args:
        width: channels of a token, even.
        max_points: tokens of a query. The decoder was trained with this number, so queries are
            padded or cut to it, as in the authors' code.
    """

    def __init__(self, width: int, max_points: int) -> None:
        super().__init__()
        self.max_points = max_points
        self.pe_layer = PositionEncoding(width)
        self.invalid_points = nn.Embedding(1, width)
        self.point_embeddings = nn.Embedding(1, width)
        self.bbox_top_left_embeddings = nn.Embedding(1, width)
        self.bbox_bottom_right_embeddings = nn.Embedding(1, width)

    def forward(self, points: Tensor, labels: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Tokens [Q, max_points, C].

        Args:
            points: (x, y) [Q, P, 2] in pixels.
            labels: integers [Q, P]: 1 a point, 2 and 3 the top left and bottom right corner of a
                box, -1 padding, whose point is ignored.
            image_size: height and width in pixels of the image that ``points`` refer to.

        Raises UserError for any other label, such as a score or SAM's 0 for background. The
        authors' code silently ignores those, which EfficientSAM doesn't have.
        """
        _check_labels(labels)
        excess = self.max_points - labels.shape[1]  # negative padding truncates
        labels = F.pad(labels.long(), (0, excess), value=NONE)
        points = F.pad(points.float(), (0, 0, 0, excess))
        # The weights were trained with padding at (-1, -1), half a pixel outside the image.
        points = points.masked_fill((points < 0) | (labels == NONE)[..., None], -1.0)
        height, width = image_size
        positions = (points + 0.5) / points.new_tensor([width, height])  # centers of the pixels
        # All embeddings are used whatever the labels, so that each one gets a gradient.
        kinds = torch.cat(
            [
                self.invalid_points.weight,
                self.point_embeddings.weight,
                self.bbox_top_left_embeddings.weight,
                self.bbox_bottom_right_embeddings.weight,
            ]
        )
        return self.pe_layer(positions) + kinds[labels.clamp(min=0)]

    def grid_positions(self, grid: tuple[int, int]) -> Tensor:
        """Position features [h*w, C] of the centers of a grid's cells, row by row."""
        height, width = grid
        device = self.pe_layer.positional_encoding_gaussian_matrix.device
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        return self.pe_layer(torch.stack([columns, rows], dim=-1).flatten(0, 1))


def _check_labels(labels: Tensor) -> None:
    known = torch.zeros_like(labels, dtype=torch.bool)
    if not labels.is_floating_point():
        for label in (NONE, POINT, TOP_LEFT, BOTTOM_RIGHT):
            known |= labels == label
    if not known.all():
        found = labels[~known][0].item()
        raise UserError(
            f"EfficientSAM got {found:g} as the label of a point; labels are the integers 1, 2, 3 "
            "and -1: a point, the top left and the bottom right corner of a box, and padding."
        )
