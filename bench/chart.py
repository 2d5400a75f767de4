"""Bars with their intervals, as SVG, so that the pages need nothing to show them."""

from collections.abc import Mapping
from html import escape

from bench.figures import Figure

_FONT = 'font-family="sans-serif" font-size="13"'
_WIDTH, _LEFT, _ROW, _BAR = 760, 190, 34, 16


def bars(title: str, unit: str, figures: Mapping[str, Figure | float]) -> str:
    """One bar for each figure; the whisker is the 95 % interval of the median."""
    most = max(each.high if isinstance(each, Figure) else each for each in figures.values()) or 1.0
    scale = (_WIDTH - _LEFT - 120) / most
    height = 50 + _ROW * len(figures)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" {_FONT}>',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="24" font-size="15">{escape(title)}</text>',
    ]
    for row, (name, each) in enumerate(figures.items()):
        lines += _bar(40 + row * _ROW, name, each, scale, unit)
    return "\n".join([*lines, "</svg>", ""])


def _bar(top: int, name: str, each: Figure | float, scale: float, unit: str) -> list[str]:
    value = each.median if isinstance(each, Figure) else each
    end = _LEFT + value * scale
    middle = top + _BAR / 2
    lines = [
        f'<text x="{_LEFT - 8}" y="{top + 13}" text-anchor="end">{escape(name)}</text>',
        f'<rect x="{_LEFT}" y="{top}" width="{value * scale:.1f}" height="{_BAR}" fill="#4878a8"/>',
    ]
    if isinstance(each, Figure):
        low, end = _LEFT + each.low * scale, max(end, _LEFT + each.high * scale)
        lines.append(f'<path d="M{low:.1f} {middle}H{end:.1f}" stroke="black" fill="none"/>')
    lines.append(f'<text x="{end + 8:.1f}" y="{top + 13}">{value:,.1f} {escape(unit)}</text>')
    return lines
