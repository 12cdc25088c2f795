"""The form as HTML."""

import html
from importlib.resources import files
from typing import TYPE_CHECKING

from lavis_ext.common.errors import counted, printable

if TYPE_CHECKING:
    from lavis_ext.serve.app import Limits

TITLE = "Ask a picture"
WAITED = "<style>.answers .waiting { display: none; }</style>"
"""Hides ``waiting_html``; its own style can't, as ``:last-child`` waits for the end of the page."""


def form_html(limits: "Limits", questions: str = "") -> str:
    """The form, with the ``questions`` of before, one to a line."""
    return (
        '<form method="post" enctype="multipart/form-data">'
        '<label>Picture: drop it here, or choose it <input type="file" name="picture" '
        f'accept="image/*" required></label><p class="faint">At most {limits.bytes / 2**20:.3g} MB '
        f"and {limits.pixels / 1e6:.0f} million pixels. It stays on this machine and isn't kept."
        '</p><label>Questions, one to a line <textarea name="questions" rows="3" required '
        f'maxlength="{limits.letters}" placeholder="what color is the ring?">'
        f"{html.escape(printable(questions))}</textarea></label><button>Ask</button></form>"
    )


def style_html() -> str:
    """Style of all that this module makes."""
    style = files("lavis_ext.serve").joinpath("form.css").read_text(encoding="utf-8")
    return f"<style>{style}</style>"


def waiting_html(name: str, questions: int, ahead: int) -> str:
    """A sentence on what is being answered, seen until ``WAITED`` follows it.

    Args:
        name: the picture's.
        questions: number of questions about it.
        ahead: number of pictures that are answered first.
    """
    text = f"Answering {counted(questions, 'question')} about {name}"
    if ahead:
        text += f", after {counted(ahead, 'other picture')}"
    return f'<p class="waiting" role="status">{html.escape(printable(text))} …</p>'


def error_html(text: str, kind: str = "error") -> str:
    """A sentence above the form."""
    return f'<p class="{kind}" role="alert">{html.escape(printable(text))}</p>'
