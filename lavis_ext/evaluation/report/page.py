"""The page: template, style, program and content in one file."""

import base64
import hashlib
import html
import json
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from lavis_ext.common.files import written_aside

PARTS = files("lavis_ext.evaluation.report")


def write_report(path: Path, content: dict[str, Any]) -> None:
    """Write ``report_content`` as one HTML file. Raises OSError where that can't be done."""
    with written_aside(path) as aside:
        aside.write_text(page(content), encoding="utf-8")


def page(content: dict[str, Any]) -> str:
    """The page's HTML. What comes from data stands in it as JSON alone, or escaped.

    Its content security policy lets the browser run this program and nothing else, and fetch
    nothing at all.
    """
    program = _part("report.js")
    digest = base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()
    return Template(_part("template.html")).substitute(
        title=html.escape(content["title"]),
        style=_part("report.css"),
        program=program,
        program_digest=digest,
        content=_json(content),
    )


def _json(content: Any) -> str:
    """JSON that can't end the element it stands in, whatever the texts in it are."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _part(name: str) -> str:
    return PARTS.joinpath(name).read_text(encoding="utf-8")
