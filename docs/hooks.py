"""Docs build hook: the formulas of docstrings, written :math:`...` there, become MathML, which needs no script."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

ROLE = re.compile(r":math:<code>(.*?)</code>", re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replaces every math role of a rendered page."""
    return ROLE.sub(lambda match: convert(html.unescape(match.group(1))), content)
