"""Tables and curves for notebooks: HTML that takes over the colours of the page around it, light or dark."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

__all__ = ["curve", "styled", "table"]

# Rules name the class twice, to come before those of the page. The colours have a contrast of 4 and more on white and
# on the dark backgrounds of notebooks.
_STYLE = """
.lamella.lamella{max-height:36em;overflow:auto;color:inherit;font-variant-numeric:tabular-nums}
.lamella.lamella table{border-collapse:collapse;border:0;margin:0;font-size:.92em;color:inherit}
.lamella.lamella caption{caption-side:top;padding:.2em .5em .5em;color:inherit;font-weight:600;text-align:left}
.lamella.lamella :is(th,td){padding:.25em .9em .25em .5em;border:0;text-align:left;vertical-align:middle}
.lamella.lamella :is(td,p){white-space:pre-wrap}
.lamella.lamella :is(caption,th,.number){white-space:nowrap}
.lamella.lamella th{font-weight:600;border-bottom:1px solid color-mix(in srgb,currentColor 40%,transparent)}
.lamella.lamella .number{text-align:right}
.lamella.lamella p{margin:.5em .5em .2em;font-size:.85em}
.lamella.lamella svg{display:block;color:inherit;min-width:120px}
.lamella .bold{font-weight:600}
.lamella .dim{opacity:.7}
.lamella .italic{font-style:italic}
.lamella .green{color:#1d8e51}
.lamella .red{color:#d54e4e}
.lamella .yellow{color:#a47304}
.lamella .cyan{color:#1f83bc}
"""
_WIDTH, _HEIGHT, _MARGIN = 120, 24, 4  # of a curve, in pixels
_POINTS = 120  # that a curve has at most


def styled(text: str, style: str = "") -> str:
    """Return text as HTML in which nothing of it is markup, in a style such as ``"bold red"``.

    >>> styled("a < b", "red")
    '<span class="red">a &lt; b</span>'
    """
    text = html.escape(text)
    return f'<span class="{style}">{text}</span>' if style else text


def table(title: str, columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]], notes: Iterable[str]) -> str:
    """Return a table; everything is HTML already, as from `styled`.

    Arguments:
        title: stands above.
        columns: the heading of each, and whether it holds numbers.
        rows: the cells of each row.
        notes: stand below, a line each.
    """

    def row(cells: Iterable[str], tag: str, scope: str = "") -> str:
        classes = (' class="number"' if is_number else "" for _, is_number in columns)
        parts = (f"<{tag}{scope}{own}>{cell}</{tag}>" for own, cell in zip(classes, cells, strict=True))
        return f"<tr>{''.join(parts)}</tr>"

    caption = f"<caption>{title}</caption>" if title else ""
    head = row((heading for heading, _ in columns), "th", ' scope="col"')
    body = "\n".join(row(cells, "td") for cells in rows)
    below = "".join(f"\n<p>{note}</p>" for note in notes)
    return (
        f'<div class="lamella"><style>{_STYLE}</style>\n<table>{caption}<thead>{head}</thead>\n<tbody>\n{body}\n'
        f"</tbody></table>{below}</div>"
    )


def curve(trained: Sequence[float], validated: Sequence[float], best: int | None = None) -> str:
    """Return a small picture of values by epoch, as SVG: training grey, validation blue, a ring at the best epoch."""
    finite = [value for value in (*trained, *validated) if math.isfinite(value)]
    low, high, last = min(finite, default=0.0), max(finite, default=0.0), max(len(trained), len(validated)) - 1

    def place(epoch: int, value: float) -> tuple[float, float]:
        across = epoch / last if last else 0.5
        up = (value - low) / (high - low) if high > low else 0.5
        return _MARGIN + across * (_WIDTH - 2 * _MARGIN), _HEIGHT - _MARGIN - up * (_HEIGHT - 2 * _MARGIN)

    parts = []
    for values, look in ((trained, 'stroke="currentColor" stroke-opacity=".5"'), (validated, 'stroke="#1f83bc"')):
        epochs = range(0, len(values), max(1, len(values) // _POINTS))
        points = [place(k, values[k]) for k in epochs if math.isfinite(values[k])]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" {look}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1" {look}/>' for x, y in points if len(points) == 1]
    if best is not None:
        x, y = place(best, validated[best])
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" stroke="#1f83bc"/>')
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" fill="none" stroke-width="1.5" '
        f'stroke-linejoin="round" role="img" aria-label="from {low:.4g} to {high:.4g}">{"".join(parts)}</svg>'
    )
