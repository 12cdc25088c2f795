"""Thumbnails embedded in the page, within a total size."""

import base64
import io
from collections.abc import Collection

from PIL import Image

from lavis_ext.common.errors import UserError
from lavis_ext.datasets.pictures import ImageFolder

SIDES = (320, 256, 192, 128, 96, 64)
"""Candidates for the longer side in pixels; the largest that fits the limit is used."""
QUALITY = 70
BYTES = 12 * 2**20
"""Maximum bytes of all thumbnails in the page."""


def thumbnails(
    images: ImageFolder, image_ids: Collection[str], limit: int = BYTES
) -> dict[str, str]:
    """WebP thumbnails as data URIs by image id, within ``limit`` bytes in total.

    Unreadable images are left out: the report is written last, and shouldn't fail because of them.
    """
    found = {}
    for place, name in enumerate(image_ids):
        share = limit // (len(image_ids) - place)
        try:
            image = images.read(name)
        except UserError:
            continue
        uri = next((u for side in SIDES if len(u := data_uri(image, side)) <= share), None)
        if uri is not None:
            found[name] = uri
            limit -= len(uri)
    return found


def data_uri(image: Image.Image, side: int) -> str:
    """A WebP thumbnail of at most ``side`` pixels as data URI."""
    small = image.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
