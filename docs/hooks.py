"""Docs build hook: formulas of docstrings, written as Sphinx writes them, become MathML, which needs no script."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

INLINE = re.compile(r":math:<code>(.*?)</code>", re.DOTALL)
LINE = re.compile(r"<p>\.\. math::\s+(.*?)</p>", re.DOTALL)
BLOCK = re.compile(r"<p>\.\. math::</p>\s*<div[^>]*><pre>(?:<span></span>)?<code>(.*?)</code></pre></div>", re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replaces every formula of a rendered page.

    Raises:
      ValueError: if one is left, which readers would see as source.
    """
    content = INLINE.sub(lambda match: convert(html.unescape(match.group(1))), content)
    for pattern in (BLOCK, LINE):
        content = pattern.sub(lambda match: _display(html.unescape(match.group(1))), content)
    if ":math:" in content or ".. math" in content:
        raise ValueError(
            f"a formula that the docs hook does not recognise: {content[content.index('math:') - 80 :][:300]}"
        )
    return content


def _display(formula: str) -> str:
    aligned = rf"\begin{{align*}}{formula}\end{{align*}}" if r"\\" in formula else formula
    return convert(aligned, display="block")
