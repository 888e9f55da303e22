r"""How docstrings become Markdown in the reference: an extension of griffe, named in ``mkdocs.yml``.

Docstrings are written to be read in a terminal. Three of their habits mean something else in Markdown:
``>>>`` begins a quotation there, :math:`x` has no meaning, and neither has a ``.. math::`` block.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

EXAMPLE = re.compile(r"(?:^[ ]*>>> .*\n?(?:^(?!\s*$).*\n?)*)+", re.MULTILINE)
BLOCK = re.compile(r"^([ ]*)\.\. math::(.*)\n((?:[ ]*\n|\1[ ]+.*\n?)*)", re.MULTILINE)
INLINE = re.compile(r":math:`([^`]+)`", re.DOTALL)


def to_markdown(text: str) -> str:
    """``text`` with examples and displayed formulas as code blocks, and inline formulas as code."""

    def formula(match: re.Match[str]) -> str:
        body = textwrap.dedent(f"{match[1]}    {match[2].strip()}\n{textwrap.dedent(match[3])}").strip()
        return f"{match[1]}```latex\n{textwrap.indent(body, match[1])}\n{match[1]}```\n\n"

    text = BLOCK.sub(formula, text)
    text = INLINE.sub(lambda match: f"`{' '.join(match[1].split())}`", text)
    return EXAMPLE.sub(lambda match: _fenced(match[0]), text)


def _fenced(example: str) -> str:
    indent = example[: len(example) - len(example.lstrip())]
    return f"{indent}```pycon\n{example.rstrip()}\n{indent}```\n"


class Docstrings(griffe.Extension):
    """Rewrite every docstring that griffe reads."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
