"""Small copies of images inside the page, no larger in all than a given size."""

import base64
import io
from collections.abc import Collection

from PIL import Image

from lavis_ext.common.errors import UserError
from lavis_ext.datasets.pictures import ImageFolder

SIDES = (320, 256, 192, 128, 96, 64)
"""Longer side in pixels; the largest is taken that leaves room for the other images."""
QUALITY = 70
BYTES = 12 * 2**20
"""What all thumbnails may take in the page."""


def thumbnails(
    images: ImageFolder, image_ids: Collection[str], limit: int = BYTES
) -> dict[str, str]:
    """WebP thumbnails as data URIs by image id, within ``limit`` bytes as a whole.

    An image that can't be read is left out: the report comes after all the work and doesn't fail
    for it.
    """
    found = {}
    for place, name in enumerate(image_ids):
        share = limit // (len(image_ids) - place)
        try:
            image = images.read(name)
        except UserError:
            continue
        uri = next((u for side in SIDES if len(u := _data_uri(image, side)) <= share), None)
        if uri is not None:
            found[name] = uri
            limit -= len(uri)
    return found


def _data_uri(image: Image.Image, side: int) -> str:
    small = image.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
