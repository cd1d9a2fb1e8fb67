"""Tables for notebooks: what ``_repr_html_`` of images, files and sets of tensors returns."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

ROWS = 200


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]], count: int) -> str:
    """Return a table with a title; of more than ROWS rows the first ones, and how many are left out.

    Names come from images, so every text is escaped.
    """
    parts = [f"<div><p>{html.escape(title)}</p><table><thead><tr>"]
    parts += [f"<th>{html.escape(text)}</th>" for text in head]
    parts.append("</tr></thead><tbody>")
    for row in rows:
        cells = (f"<td>{html.escape(str(cell), quote=False)}</td>" for cell in row)
        parts.append(f"<tr>{''.join(cells)}</tr>")
    parts.append("</tbody></table>")
    if count > ROWS:
        parts.append(f"<p>... and {count - ROWS} more</p>")
    return "".join((*parts, "</div>"))
