"""Plots for the documents: curves over two axes, both linear from zero, so that linear growth is a straight line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Curve = tuple[str, Sequence[tuple[float, float]]]

IMAGES = Path(__file__).resolve().parent.parent / "docs/images"
_COLOURS = ("#1f77b4", "#d95f02", "#2ca02c", "#7b3294")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 320, 60, 40


def svg(curves: Sequence[Curve], x: str, y: str) -> str:
    """Curves by their labels, and what the axes say."""
    most_x = max(at for _, points in curves for at, _ in points)
    most_y = max(value for _, points in curves for _, value in points) * 1.1

    def place(at: float, value: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - 20) * at / most_x
        up = (_HEIGHT - _BOTTOM) - (_HEIGHT - _BOTTOM - 20) * value / most_y
        return round(across, 1), round(up, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif"',
        ' font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<path d="M{_LEFT} 20V{_HEIGHT - _BOTTOM}H{_WIDTH - 20}" fill="none" stroke="#444"/>',
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{x}</text>',
        f'<text x="14" y="{_HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 14 {_HEIGHT / 2})">{y}</text>',
        f'<text x="{_WIDTH - 20}" y="{_HEIGHT - 24}" text-anchor="end">{_number(most_x)}</text>',
        f'<text x="{_LEFT - 6}" y="26" text-anchor="end">{_number(most_y)}</text>',
    ]
    for index, ((label, points), colour) in enumerate(zip(curves, _COLOURS, strict=False)):
        placed = [place(*point) for point in sorted(points)]
        path = " ".join(f"{across},{up}" for across, up in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{across}" cy="{up}" r="3.5" fill="{colour}"/>' for across, up in placed]
        parts.append(f'<text x="{_LEFT + 12}" y="{34 + 16 * index}" fill="{colour}">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def write(name: str, curves: Sequence[Curve], x: str, y: str) -> None:
    """The plot as docs/images/NAME.svg."""
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / f"{name}.svg").write_text(svg(curves, x, y), encoding="utf-8")


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
