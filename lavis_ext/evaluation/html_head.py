"""The head of an HTML page: its title, style and content security policy."""

import base64
import hashlib
import html

from lavis_ext.common.errors import printable

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Content security policy of a page without a program: no program, no request."""


def head_html(title: str, style: str, program: str = "") -> str:
    """The page down to its body.

    Of programs, the content security policy only allows an inline script equal to ``program``.
    """
    policy = POLICY
    if program:
        digest = base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<link rel="icon" href="data:,">\n<title>{html.escape(printable(title))}</title>\n'
        f"<style>\n{style}\n</style>\n</head>\n"
    )
