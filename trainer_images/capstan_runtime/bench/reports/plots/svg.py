"""One plot as a piece of SVG that lives inside an HTML page: it takes its colours from the page, light or dark, names
itself for who cannot see it, and is the same bytes for the same data."""

import io
import re
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree  # nosec B405  # reads what Matplotlib drew

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER, BAND, GOOD, BAD = "#1b1f24", "#5b6570", "#dfe3e8", "#fefefe", "#ececee", "#117733", "#aa3311"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a06a00", "#4477dd")
"""Told apart by people with any kind of colour blindness (Okabe and Ito, 2008; the last two are darkened)."""
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))
"""Lines are told apart by mark and dashes, too, never by colour alone."""
VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    PAPER: "paper",
    BAND: "band",
    GOOD: "good",
    BAD: "bad",
    **{color: f"s{at}" for at, color in enumerate(SERIES)},
}
"""The page's CSS variable for each colour that a plot may use."""
WIDTH, HEIGHT = 4.7, 3.1
"""Inches. Small, so that text is still read where a telephone shows it 330 pixels wide."""
_STYLE: dict[str, object] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.labelsize": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "figure.facecolor": "none",
}
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_COORDINATE = re.compile(r"-?\d+\.\d+")
_FONT_SIZE = re.compile(r"([\d.]+)px")


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure of the page."""

    key: str
    title: str
    caption: str
    """What is shown, in one or two sentences: for everybody, and for who cannot see it."""
    svg: str
    is_wide: bool = False
    """Takes the page's width."""


def draw(
    key: str, title: str, caption: str, paint: Callable[[Axes], None], *, height: float = HEIGHT, width: float = WIDTH
) -> Plot:
    """The plot that `paint` makes on empty axes. `key` must be the only one of its page."""
    parameters: Any = mpl.rcParams
    with mpl.rc_context(), warnings.catch_warnings():
        # Of letters that matplotlib's own font lacks, which are drawn by the browser's, and of numbers beyond an axis.
        warnings.simplefilter("ignore")
        parameters.update(mpl.rcParamsDefault)
        parameters.update(_STYLE)
        parameters["svg.hashsalt"] = key
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    svg = _inline(written.getvalue(), key, f"{title}. {caption}")
    return Plot(key, title, caption, svg, is_wide=width > WIDTH)


def _inline(text: str, key: str, label: str) -> str:
    """Without what only a file of its own needs, and without style attributes: the page's policy allows none."""
    root = ElementTree.fromstring(text)  # nosec B314  # what Matplotlib drew
    used = {found for element in root.iter() for value in element.attrib.values() for found in _referred(value)}
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib.update({_local(name): value for name, value in element.attrib.items()})
        for name in [name for name in element.attrib if "}" in name]:
            del element.attrib[name]
        for name, value in _attributes(element.attrib.pop("style", "")):
            element.attrib[name] = value
        for name, value in element.attrib.items():
            element.attrib[name] = _named(name, value, key, used)
        if element.attrib.get("id") == "":
            del element.attrib["id"]
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    _drop_empty(root)
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _referred(value: str) -> list[str]:
    return [value[1:]] if value.startswith("#") else _REFERENCE.findall(value)


def _attributes(style: str) -> list[tuple[str, str]]:
    """Presentation attributes for what stood in a style attribute; the page sets the font."""
    found = []
    for declaration in filter(None, (part.strip() for part in style.split(";"))):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font" or name == "font-size":
            size = _FONT_SIZE.search(value)
            found += [("font-size", size[1])] if size else []
        elif name not in ("stroke-linejoin", "stroke-linecap", "font-family", "white-space"):
            found.append((name, value))
    return found


def _named(name: str, value: str, key: str, used: Collection[str]) -> str:
    """Ids are those of this plot; colours are variables of the page."""
    if name == "id":
        return f"{key}-{value}" if value in used else ""
    if name in ("fill", "stroke") and value in VARIABLES:
        return f"var(--{VARIABLES[value]})"
    if name == "href":
        return f"#{key}-{value[1:]}"
    if name in ("d", "x", "y", "transform"):
        # A tenth of a point is finer than anybody sees, and half as long.
        return " ".join(_COORDINATE.sub(_rounded, value).split())
    return _REFERENCE.sub(rf"url(#{key}-\1)", value)


def _rounded(found: re.Match[str]) -> str:
    text = f"{float(found[0]):.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def _drop_empty(parent: ElementTree.Element) -> None:
    for child in list(parent):
        _drop_empty(child)
        if child.tag in ("g", "defs") and len(child) == 0:
            parent.remove(child)
        child.tail = None
    if parent.tag not in ("text", "tspan"):
        parent.text = None
