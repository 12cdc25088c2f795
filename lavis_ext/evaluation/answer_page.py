"""Answered questions as HTML without a program: one file, a part of a page, or a notebook's output.

Each panel is an SVG over the same embedded picture, so it scales with the page.
"""

import base64
import hashlib
import html
import io
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lavis_ext.common.errors import printable
from lavis_ext.evaluation.answered import Answered, share_of_maximum
from lavis_ext.evaluation.html_head import head_html
from lavis_ext.evaluation.picture import HEAT_COLORS, HEAT_OPACITY
from lavis_ext.evaluation.report.thumbnails import data_uri

SIDE = 480
"""Longer side in pixels of a picture in the page."""
CAPTIONS_OPEN = 4
"""Captions that are seen without unfolding the others."""
PAGE_END = "\n</main>\n</body>\n</html>\n"
"""What follows the last part of a page."""


def picture_html(
    image: Image.Image, name: str, answered: Sequence[Answered], side: int = SIDE
) -> str:
    """The part of a page about one picture.

    Args:
        image: RGB picture of any size and shape.
        name: heading.
        answered: the questions about it.
        side: longer side in pixels of the embedded picture.
    """
    uri = data_uri(image, side)
    key = (
        f"picture-{hashlib.blake2b(f'{printable(name)}{uri}'.encode(), digest_size=6).hexdigest()}"
    )
    scale = side / max(image.size)
    # Of a line of pixels the shorter side would round to nothing.
    width, height = (max(1, round(scale * length)) for length in image.size)
    shared = (
        f'<svg class="shared" aria-hidden="true"><defs><image id="{key}" width="{width}" '
        f'height="{height}" preserveAspectRatio="none" href="{uri}"/></defs></svg>'
    )
    questions = "".join(_question_html(each, key, (width, height)) for each in answered)
    return f'<article class="answered"><h2>{_text(name)}</h2>{shared}{questions}</article>'


def fragment_html(parts: Iterable[str]) -> str:
    """Pictures with their style and legend, to stand inside another page."""
    return (
        f'<style>{style()}</style><div class="answers inside">{legend_html()}{"".join(parts)}</div>'
    )


def page_html(title: str, parts: Iterable[str], notes: Sequence[str] = ()) -> str:
    """A whole page of ``picture_html`` parts; ``notes`` stand above them, one to a line."""
    return page_start(title, notes) + "\n".join(parts) + PAGE_END


def page_start(title: str, notes: Sequence[str] = ()) -> str:
    """A page down to its first part."""
    noted = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return (
        head_html(title, style())
        + '<body class="answers">\n'
        + f"<header><h1>{_text(title)}</h1>{legend_html()}</header>\n"
        + (f'<ul class="notes">{noted}</ul>\n' if noted else "")
        + "<main>\n"
    )


def style() -> str:
    """The style sheet; all its rules are for what is inside of ``class="answers"``."""
    return files("lavis_ext.evaluation").joinpath("answer_page.css").read_text(encoding="utf-8")


def legend_html() -> str:
    """What heat, points and outlines mean."""
    colors = ",".join("#{:02x}{:02x}{:02x}".format(*_palette()[i]) for i in range(0, 256, 51))
    return (
        '<p class="legend"><span>heat, how much a place speaks for the question belonging to this '
        f'picture: none <i class="bar" style="background:linear-gradient(90deg,{colors})"></i> '
        'hottest in its map</span> <span><i class="dot"></i> point</span> '
        '<span><i class="stroke"></i> outline of the mask</span></p>'
    )


def _question_html(answered: Answered, key: str, size: tuple[int, int]) -> str:
    picture = f'<use href="#{key}"/>'
    gray = f'<use href="#{key}" class="gray"/>'
    heat, refined = (_heat_image(each, size) for each in (answered.heat, answered.refined))
    outline, points = _outline_paths(answered, size), _point_paths(answered, size)
    shade = _image(_shade(answered.mask), size) if answered.mask.any() else ""
    drawn = (
        picture,
        gray + heat + points,
        picture + shade + outline + points,
        gray + refined + outline,
    )
    width, height = size
    panels = "".join(
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{content}'
        f"</svg><figcaption>{label}</figcaption></figure>"
        for label, content in zip(answered.labels, drawn, strict=True)
    )
    return (
        f'<section><h3>{_text(answered.question)}</h3><p class="answer">'
        f"<span>Answer: <b>{_text(answered.answer or '(empty)')}</b></span> "
        f'<span class="faint">question and picture match: {100 * answered.matching:.0f} %</span>'
        f'</p><div class="panels">{panels}</div>{_captions_html(answered.captions)}</section>'
    )


def _captions_html(captions: Sequence[str]) -> str:
    if not captions:  # answered without any
        return ""
    items = [f"<li>{_text(caption)}</li>" for caption in captions]
    count = f"{len(items)} caption{'s' if len(items) != 1 else ''}"
    first, rest = "".join(items[:CAPTIONS_OPEN]), items[CAPTIONS_OPEN:]
    more = (
        f"<details><summary>{len(rest)} more</summary><ul>{''.join(rest)}</ul></details>"
        if rest
        else ""
    )
    return f'<div class="captions"><p class="faint">{count}</p><ul>{first}</ul>{more}</div>'


def _heat_image(heat: npt.NDArray[np.float32], size: tuple[int, int]) -> str:
    cells = Image.fromarray(np.rint(255 * share_of_maximum(heat)).astype(np.uint8)).convert("P")
    cells.putpalette(_palette().tobytes())
    return _image(cells, size, f'opacity="{HEAT_OPACITY}"')


def _shade(mask: npt.NDArray[np.bool_]) -> Image.Image:
    """White of 60 % opacity outside of the mask."""
    shade = np.full((*mask.shape, 2), 255, dtype=np.uint8)
    shade[..., 1] = 153 * ~mask
    return Image.fromarray(shade, "LA")


def _image(image: Image.Image, size: tuple[int, int], attributes: str = "") -> str:
    written = io.BytesIO()
    image.save(written, "PNG", optimize=True)
    encoded = base64.b64encode(written.getvalue()).decode()
    return (
        f'<image class="cells" width="{size[0]}" height="{size[1]}" preserveAspectRatio="none" '
        f'{attributes} href="data:image/png;base64,{encoded}"/>'
    )


def _outline_paths(answered: Answered, size: tuple[int, int]) -> str:
    lines = ("L".join(_at(place, size) for place in line) for line in answered.outlines())
    path = "".join(f"M{line}Z" for line in lines)
    return f'<path class="under line" d="{path}"/><path class="over line" d="{path}"/>'


def _point_paths(answered: Answered, size: tuple[int, int]) -> str:
    # A line of no length with round ends is a dot whose size doesn't scale with the picture.
    path = "".join(f"M{_at(point, size)}h0" for point in answered.points)
    return f'<path class="under point" d="{path}"/><path class="over point" d="{path}"/>'


def _at(place: Any, size: tuple[int, int]) -> str:
    x, y = place * np.asarray(size)
    return f"{x:.1f} {y:.1f}"


def _palette() -> npt.NDArray[np.uint8]:
    """Colors [256, 3] from no heat to the maximum."""
    # Imported here because matplotlib takes a second.
    from matplotlib import colormaps

    colors = colormaps[HEAT_COLORS](np.linspace(0, 1, 256), bytes=True)
    return np.asarray(colors)[:, :3]


def _text(text: str) -> str:
    return html.escape(printable(text))
