"""One HTML page without a reference to anything outside it: figures inside, tables that sort on a click."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #dde2e9; --paper: #ffffff; --wash: #f5f7fa; --accent: #2457a6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --soft: #9aa5b4; --line: #333c48; --paper: #14181e; --wash: #1c222a; --accent: #8ab4f8; }
  figure img { background: #ffffff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 3rem 1.5rem 5rem; background: var(--paper); color: var(--ink);
       font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .5rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
p { max-width: 48rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.scroll { overflow: auto; max-height: 40rem; border: 1px solid var(--line); border-radius: 6px; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { position: sticky; top: 0; background: var(--wash); color: var(--soft); }
thead button { all: unset; cursor: pointer; font-weight: 600; }
thead button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
tbody tr:hover { background: var(--wash); }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px; display: block; }
nav a { color: var(--accent); text-decoration: none; margin-right: 1.25rem; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem; }
"""

# A column of numbers sorts by number (missing ones last), any other by name.
_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const rows = [...table.tBodies[0].rows];
    const numeric = rows.every(row => key(row) === "" || !isNaN(Number(key(row))));
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = numeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, {numeric: true});
      return down ? -order : order;
    });
    table.tBodies[0].append(...rows);
  }));
}
"""


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order."""

    name: str
    title: str
    text: str = ""
    """plain text"""
    figures: Sequence[tuple[Path, str]] = ()
    """PNG files, each with a caption"""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = field(default=())
    """cells: numbers, text, or None"""


def build_page(title: str, lead: str, sections: Sequence[Section], facts: Mapping[str, str]) -> str:
    """The page as one text.

    Args:
        title: of the page.
        lead: a paragraph below it.
        sections: each with text, figures and a sortable table.
        facts: what the numbers mean and where they come from, name to text.
    """
    links = "".join(f'<a href="#{section.name}">{html.escape(section.title)}</a>' for section in sections)
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in facts.items())
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
            f'<h1>{html.escape(title)}</h1><p class="soft">{html.escape(lead)}</p><nav>{links}</nav>',
            *(_section(section) for section in sections),
            f'<h2 id="facts">What the numbers mean</h2><dl>{rows}</dl>',
            f"<script>{_SCRIPT}</script></body></html>\n",
        ]
    )


def _section(section: Section) -> str:
    return "\n".join(
        [
            f'<h2 id="{section.name}">{html.escape(section.title)}</h2>',
            f"<p>{html.escape(section.text)}</p>" if section.text else "",
            *(_image(path, caption) for path, caption in section.figures),
            _table(section.columns, section.rows) if section.columns else "",
        ]
    )


def _image(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f'<th scope="col"><button type="button">{html.escape(name)}</button></th>' for name in columns)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cell(value: Any) -> str:
    if value is None:
        return '<td data-value="">–</td>'
    if isinstance(value, float):
        return f'<td data-value="{value!r}">{value:.4g}</td>'
    if isinstance(value, int):
        return f'<td data-value="{value}">{value:,}</td>'
    return f"<td>{html.escape(str(value))}</td>"
