"""Boxes, arrows and words as SVG that reads in light and in dark, wherever it is shown: it brings its own background.

Positions are in pixels from the upper left corner. No text is measured, so boxes are given the room that their words
need with any sans-serif font; the pictures are looked at when they are changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

Point = tuple[float, float]
Kind = Literal["plain", "ours", "good", "bad", "wait"]

LINE_HEIGHT = 17
_SMALL, _NORMAL = 11.5, 13
_STYLE = """
  text { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif; }
  .mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace; }
  .paper { fill: #ffffff; stroke: #d0d7de } .ink { fill: #1f2328 } .pale { fill: #59636e }
  .line { stroke: #59636e; fill: none } .head { fill: #59636e }
  .plain { fill: #f6f8fa; stroke: #8c959f } .ours { fill: #ddf4ff; stroke: #0969da }
  .good { fill: #dafbe1; stroke: #1a7f37 }
  .bad { fill: #ffebe9; stroke: #cf222e } .wait { fill: #fff8c5; stroke: #9a6700 }
  .group { fill: none; stroke: #8c959f; stroke-dasharray: 5 4 }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117; stroke: #3d444d } .ink { fill: #f0f6fc } .pale { fill: #a0a8b1 }
    .line { stroke: #9198a1 } .head { fill: #9198a1 }
    .plain { fill: #161b22; stroke: #656c76 } .ours { fill: #0c2d6b; stroke: #4493f8 }
    .good { fill: #033a16; stroke: #3fb950 }
    .bad { fill: #490202; stroke: #f85149 } .wait { fill: #341a00; stroke: #d29922 } .group { stroke: #656c76 }
  }
"""


@dataclass(frozen=True, slots=True)
class Box:
    """Where a box is; arrows begin and end at its sides."""

    x: float
    y: float
    width: float
    height: float

    def left(self, share: float = 0.5) -> Point:
        """The point at `share` of the way down."""
        return self.x, self.y + share * self.height

    def right(self, share: float = 0.5) -> Point:
        return self.x + self.width, self.y + share * self.height

    def top(self, share: float = 0.5) -> Point:
        """The point at `share` of the way to the right."""
        return self.x + share * self.width, self.y

    def bottom(self, share: float = 0.5) -> Point:
        return self.x + share * self.width, self.y + self.height


@dataclass(slots=True)
class Picture:
    """`title` and `description` are what a screen reader says."""

    width: int
    height: int
    title: str
    description: str
    _parts: list[str] = field(default_factory=list)

    def box(self, x: float, y: float, width: float, height: float, *lines: str, kind: Kind = "plain") -> Box:
        """A box with its lines in the middle: the first is its name, the others are small, those in backquotes code."""
        self._parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="7"/>')
        first = y + height / 2 - (len(lines) - 1) * LINE_HEIGHT / 2 + 4.5
        for number, line in enumerate(lines):
            self._line(x + width / 2, first + number * LINE_HEIGHT, line, "middle", is_name=number == 0)
        return Box(x, y, width, height)

    def group(self, x: float, y: float, width: float, height: float, name: str) -> Box:
        """A dashed frame around what belongs together, its name in the upper left corner."""
        self._parts.append(f'<rect class="group" x="{x}" y="{y}" width="{width}" height="{height}" rx="9"/>')
        self._line(x + 12, y + 19, name, "start", is_name=True)
        return Box(x, y, width, height)

    def words(self, x: float, y: float, *lines: str, anchor: str = "start") -> None:
        """Small lines; `y` is the base of the first."""
        for number, line in enumerate(lines):
            self._line(x, y + number * LINE_HEIGHT, line, anchor, is_name=False)

    def arrow(self, *points: Point, label: Sequence[str] = (), at: Point | None = None, anchor: str = "middle") -> None:
        """From the first point over the others to the last; `label` with its middle, or `anchor`, at `at`."""
        path = " L ".join(f"{x:g} {y:g}" for x, y in points)
        self._parts.append(f'<path class="line" d="M {path}" stroke-width="1.4" marker-end="url(#head)"/>')
        if label:
            x, y = at or _middle(points)
            for number, line in enumerate(label):
                self._line(x, y + number * LINE_HEIGHT, line, anchor, is_name=False)

    def _line(self, x: float, y: float, text: str, anchor: str, *, is_name: bool) -> None:
        is_code = text.startswith("`")
        classes = f"{'ink' if is_name else 'pale'}{' mono' if is_code else ''}"
        size = _NORMAL if is_name else _SMALL
        weight = 600 if is_name and not is_code else 400
        font = f'font-size="{size - is_code:g}" font-weight="{weight}" text-anchor="{anchor}"'
        self._parts.append(f'<text class="{classes}" x="{x:g}" y="{y:g}" {font}>{escape(text.strip("`"))}</text>')

    def svg(self) -> str:
        """The whole file."""
        inner = "\n".join(f"  {part}" for part in self._parts)
        return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" \
height="{self.height}" role="img" aria-labelledby="title description">
  <title id="title">{escape(self.title, quote=False)}</title>
  <desc id="description">{escape(self.description, quote=False)}</desc>
  <style>{_STYLE}  </style>
  <defs>
    <marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">
      <path class="head" d="M 0 0 L 10 5 L 0 10 z"/>
    </marker>
  </defs>
  <rect class="paper" x="0.5" y="0.5" width="{self.width - 1}" height="{self.height - 1}" rx="10"/>
{inner}
</svg>
"""


def _middle(points: Sequence[Point]) -> Point:
    (x1, y1), (x2, y2) = points[0], points[-1]
    return (x1 + x2) / 2, (y1 + y2) / 2 - 6
