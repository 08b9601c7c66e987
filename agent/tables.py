"""Plain tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rankscope.exporters.wording import visible


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns as wide as they need to be: words to the left, numbers to the right, nothing that moves
    the cursor."""
    safe = [[visible(cell) for cell in row] for row in rows]
    widths = [max(len(row[place]) for row in (head, *safe)) for place in range(len(head))]
    numeric = [all(_number(row[place]) for row in safe) for place in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, numeric, strict=True)
        return "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells).rstrip()

    return [line(head), *(line(row) for row in safe)]


def _number(cell: str) -> bool:
    return not cell or cell[:1].isdigit() or (cell[:1] in "+-" and cell[1:2].isdigit())
