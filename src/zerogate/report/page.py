"""A page to put tables and figures on: one HTML file that opens from disk and fetches nothing."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from zerogate.files import write

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;font-size:14px}td,th{padding:.3em .7em;border-bottom:1px solid #ddd;"
    "text-align:right}td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}"
)

Section = tuple[str, str, str]
"""A heading and a sentence, both plain text, and a body of HTML."""


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of plain text; the first column is at the left, all others at the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line(head, "th") + "".join(line(row, "td") for row in rows) + "</table>"


def page(title: str, sections: Sequence[Section]) -> str:
    """A whole HTML document."""
    parts = [f"<h2>{html.escape(head)}</h2><p>{html.escape(text)}</p>{body}" for head, text, body in sections]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head>"
        f"<body><h1>{html.escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )


def write_page(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Writes `page` whole or not at all, in a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, page(title, sections).encode())
