"""The form as HTML."""

import html
from importlib.resources import files
from typing import TYPE_CHECKING

from lavis_ext.common.errors import printable

if TYPE_CHECKING:
    from lavis_ext.serve.app import Limits

TITLE = "Ask a picture"


def form_html(limits: "Limits", questions: str = "") -> str:
    """The form, with the ``questions`` of before, one to a line."""
    style = files("lavis_ext.serve").joinpath("form.css").read_text(encoding="utf-8")
    return (
        f'<style>{style}</style><form method="post" enctype="multipart/form-data">'
        '<label>Picture: drop it here, or choose it <input type="file" name="picture" '
        f'accept="image/*" required></label><p class="faint">At most {limits.bytes / 2**20:.3g} MB '
        f"and {limits.pixels / 1e6:.0f} million pixels. It stays on this machine and isn't kept."
        '</p><label>Questions, one to a line <textarea name="questions" rows="3" required '
        f'maxlength="{limits.letters}" placeholder="what color is the ring?">'
        f"{html.escape(printable(questions))}</textarea></label><button>Ask</button></form>"
    )


def error_html(text: str, kind: str = "error") -> str:
    """A sentence above the form."""
    return f'<p class="{kind}" role="alert">{html.escape(printable(text))}</p>'
