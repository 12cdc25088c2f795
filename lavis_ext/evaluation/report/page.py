"""Assemble the report page: template, style, script and content in one file."""

import html
import json
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from lavis_ext.common.files import written_aside
from lavis_ext.evaluation.html_head import head_html

PARTS = files("lavis_ext.evaluation.report")


def write_report(path: Path, content: dict[str, Any]) -> None:
    """Write ``report_content`` as one HTML file. Raises OSError if it can't be written."""
    with written_aside(path) as aside:
        aside.write_text(page(content), encoding="utf-8")


def page(content: dict[str, Any]) -> str:
    """HTML of the page. Data is included only as JSON or escaped."""
    return assembled(
        content, part("template.html"), style=part("report.css"), program=part("report.js")
    )


def assembled(content: dict[str, Any], template: str, *, style: str, program: str) -> str:
    """HTML of a page with ``content["title"]``; ``program`` follows that of ``plots.js``."""
    program = part("plots.js") + program
    return Template(template).substitute(
        head=head_html(content["title"], style, program),
        title=html.escape(content["title"]),
        program=program,
        content=_json(content),
    )


def part(name: str) -> str:
    """Text of a file of the report."""
    return PARTS.joinpath(name).read_text(encoding="utf-8")


def _json(content: Any) -> str:
    """JSON, escaped so that it can't close its HTML element."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
