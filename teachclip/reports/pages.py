"""The report as one HTML file that needs nothing else: no network, no script, pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from teachclip.reports.report import SPREAD, Table, about_tables, no_pictures, report_tables, subtitle, verdicts


def report_page(report: Mapping[str, Any], pictures: Sequence[tuple[Path, str]]) -> str:
    """Return the report as an HTML page. `pictures`: (PNG file, caption)."""
    title = escape(str(report["title"]))
    notes = "".join(f"<li>{escape(line)}</li>" for line in [*report["remarks"], *verdicts(report)])
    parts = [
        f"<h1>{title}</h1><p>{escape(subtitle(report))}</p>",
        *map(table_html, report_tables(report)),
        f"<ul>{notes}</ul>",
        *(_picture(path, caption) for path, caption in pictures),
        "" if pictures else f"<p>{escape(no_pictures())}</p>",
        *(table_html(table, text=True) for table in about_tables(report)),
    ]
    return whole_page(str(report["title"]), parts)


def whole_page(title: str, parts: Sequence[str]) -> str:
    """Return a page of some parts, which are HTML already; the title is plain text."""
    title, body = escape(title), "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def table_html(table: Table, *, text: bool = False) -> str:
    """Return a table with its title. `text`: its cells are words, not numbers."""
    spreads = [any(SPREAD in cell for cell in column) for column in zip(*table.rows, strict=True)][1:]
    kind = ' class="text"' if text else ""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = ""
    for first, *rest in table.rows:
        cells = "".join(_cell(cell, wide) for cell, wide in zip(rest, spreads, strict=True))
        rows += f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>'
    return (
        f'<h2>{escape(table.title)}</h2>\n<div class="wide"><table{kind}><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(text: str, has_spreads: bool) -> str:
    """Return a cell; where a column has spreads, means without one leave room for it."""
    value, sign, deviation = text.partition(SPREAD)
    tail = f'<span class="sd">{sign}{escape(deviation)}</span>' if has_spreads else ""
    return f"<td>{escape(value)}{tail}</td>"


def _picture(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure><div class="wide"><img alt="{escape(caption)}" src="data:image/png;base64,{data}"/></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --soft: #667; --line: #d8dbe0; --band: #f4f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e7ea; --paper: #16181c; --soft: #9aa0aa; --line: #363a41; --band: #1f2227; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; }
h2 { font-size: 1.1rem; margin: 1.75rem 0 .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; }
thead th { color: var(--soft); font-size: .85rem; }
th:first-child { text-align: left; padding-left: 0; }
tbody th { white-space: normal; min-width: 9rem; }
.sd { display: inline-block; min-width: 2.9em; text-align: left; white-space: pre; color: var(--soft); }
tbody th { font-weight: 500; }
tbody tr:nth-child(even) { background: var(--band); }
table.text td { text-align: left; font-family: ui-monospace, monospace; font-size: .82rem; }
table.text td { white-space: normal; overflow-wrap: anywhere; }
table.text th { text-align: left; }
figure { margin: 1.75rem 0; }
img { display: block; width: 100%; min-width: 40rem; background: #fff; border-radius: 6px; }
@media (max-width: 34rem) { th, td { padding: .3rem .4rem; font-size: .82rem; } tbody th { min-width: 7rem; } }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .4rem; }
"""
