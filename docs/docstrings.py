r"""How docstrings become Markdown in the reference: an extension of griffe, named in ``mkdocs.yml``.

Docstrings are written to be read in a terminal. Three of their habits mean something else in Markdown:
``>>>`` begins a quotation there, :math:`x` has no meaning, and neither has a ``.. math::`` block. Formulas become
MathML, which browsers render without a script and without a network.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe
from latex2mathml.converter import convert

EXAMPLE = re.compile(r"(?:^[ ]*>>> .*\n?(?:^(?!\s*$).*\n?)*)+", re.MULTILINE)
BLOCK = re.compile(r"^([ ]*)\.\. math::(.*)\n((?:[ ]*\n|\1[ ]+.*\n?)*)", re.MULTILINE)
INLINE = re.compile(r":math:`([^`]+)`", re.DOTALL)


def to_markdown(text: str) -> str:
    """Return the docstring ``text`` with formulas as MathML and examples as code blocks."""

    def block(match: re.Match[str]) -> str:
        body = textwrap.dedent(f"{match[1]}    {match[2].strip()}\n{textwrap.dedent(match[3])}").strip()
        if r"\\" in body or "&" in body:
            body = rf"\begin{{split}}{body}\end{{split}}"
        return f'{match[1]}<div class="formula">{mathml(body, display="block")}</div>\n\n'

    text = BLOCK.sub(block, text)
    text = INLINE.sub(lambda match: mathml(match[1]), text)
    return EXAMPLE.sub(lambda match: _fenced(match[0]), text)


def mathml(formula: str, display: str = "inline") -> str:
    """Return ``formula``, in LaTeX, as one line of MathML; operators are entities, which Markdown leaves alone."""
    return convert(" ".join(formula.split()), display=display)


def _fenced(example: str) -> str:
    indent = example[: len(example) - len(example.lstrip())]
    return f"{indent}```pycon\n{example.rstrip()}\n{indent}```\n"


class Docstrings(griffe.Extension):
    """Rewrite every docstring that griffe reads."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
