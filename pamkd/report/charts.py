"""Line charts and heat maps as SVG, drawn 380 units wide so that text stays readable on a phone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pamkd.report.markup import Markup, el, join, significant

WIDTH = 380
COLORS = 6  # of the palette in style.py
DASHES = ("", "7 3", "2 3", "9 3 2 3")
COLUMNS = 60  # of a heat map
LEVELS = 12  # colours of a heat map
CHARACTER = 6.6  # mean width at font size 12

Point = tuple[float, float | None]


@dataclass(frozen=True)
class Line:
    """`style` picks colour and dash, the same for one learner in every chart; faint lines are background."""

    name: str
    points: Sequence[Point]
    style: int
    faint: bool = False


@dataclass(frozen=True)
class Panel:
    """A block of a heat map: values [rows][columns], None where there is none; `marked` is the row to point out."""

    title: str
    rows: Sequence[str]
    values: Sequence[Sequence[float | None]]
    marked: int | None = None


def figure(title: str, *content: object, note: str | None = None, class_: str | None = None) -> Markup:
    caption = el("figcaption", el("b", title), *([el("span", note)] if note else []))
    return el("figure", caption, *content, class_=class_)


def image(width: float, height: float, title: str, description: str, *content: object) -> Markup:
    """An SVG with a name and a description for screen readers."""
    return el("svg", el("title", title), el("desc", description), *content, viewBox=f"0 0 {width:.0f} {height:.0f}", role="img")


def text(x: float, y: float, content: object, **attributes: object) -> Markup:
    return el("text", content, x=x, y=y, **attributes)


def thin(points: Sequence[Point], limit: int) -> list[Point]:
    """At most `limit` points: means over neighbours."""
    size = math.ceil(len(points) / limit)
    if size <= 1:
        return list(points)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), _mean([y for _, y in group if y is not None])) for group in groups]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """About `count` round numbers between low and high, steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _labels(values: Sequence[float]) -> list[str]:
    """The same number of decimals for all."""
    step = values[1] - values[0] if len(values) > 1 else abs(values[0]) or 1.0
    if max(map(abs, values)) >= 1e5 or step < 1e-4:
        return [f"{value:.1e}" for value in values]
    return [f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}" for value in values]


def y_axis(bottom: float, top: float, *, whole: bool = False) -> tuple[float, float, list[float], list[str]]:
    """An axis from a round number at or below `bottom` to one at or above `top`: its ends, its ticks, and their names."""
    y_ticks = ticks(bottom, top, 5, whole=whole)
    step = y_ticks[1] - y_ticks[0] if len(y_ticks) > 1 else top - bottom
    bottom, top = math.floor(bottom / step + 1e-9) * step, math.ceil(top / step - 1e-9) * step
    y_ticks = ticks(bottom, top, round((top - bottom) / step), whole=whole)
    return bottom, top, y_ticks, _labels(y_ticks)


def rules(unit: str, levels: Sequence[tuple[float, str]], left: float, right: float) -> list[Markup]:
    """The unit above and, at each height, a rule across the chart with its name."""
    parts: list[Markup] = [text(2, 14, unit, class_="unit")]
    for y, name in levels:
        parts.append(el("path", d=f"M{left:.1f} {y:.1f}H{right}", class_="rule"))
        parts.append(text(left - 6, y + 4, name, text_anchor="end"))
    return parts


def line_chart(
    title: str,
    unit: str,
    lines: Sequence[Line],
    *,
    end: float,
    low: float | None = None,
    high: float | None = None,
    marks: Sequence[tuple[float, str]] = (),
    whole: bool = False,
    note: str | None = None,
    height: int = 230,
) -> Markup:
    """Lines over epochs from 0 to `end`.

    `low` and `high` are values that the axis must include, `whole` says that they are counts; marks are named moments.
    """
    values = [y for line in lines for _, y in line.points if y is not None]
    if not values:
        return figure(title, el("p", "Nothing recorded.", class_="none"), note=note)
    bottom, top = min([*values, *([] if low is None else [low])]), max([*values, *([] if high is None else [high])])
    if top - bottom <= 1e-12 * max(1.0, abs(top)):
        pad = abs(top) * 0.1 or 0.5
        bottom, top = (bottom if low == bottom else bottom - pad), top + pad
    bottom, top, y_ticks, names = y_axis(bottom, top, whole=whole)
    left, right, upper, lower = 14 + CHARACTER * max(map(len, names)), WIDTH - 12, 30, height - 38

    def px(x: float) -> float:
        return left + (right - left) * x / end

    def py(y: float) -> float:
        return lower + (upper - lower) * (y - bottom) / (top - bottom)

    parts = rules(unit, [(py(value), name) for value, name in zip(y_ticks, names, strict=True)], left, right)
    x_ticks = ticks(0, end, 6, whole=True)
    for value in x_ticks:
        parts.append(el("path", d=f"M{px(value):.1f} {lower}v4", class_="axis"))
        parts.append(text(px(value), lower + 17, f"{value:.0f}", text_anchor="middle"))
    parts.append(el("path", d=f"M{left:.1f} {lower}H{right}", class_="axis"))
    parts.append(text((left + right) / 2, height - 5, "epoch", text_anchor="middle", class_="unit"))
    parts += [el("path", d=f"M{px(x):.1f} {upper - 4}V{lower}", class_="mark") for x, _ in marks]
    for line in sorted(lines, key=lambda line: not line.faint):
        parts += _draw(line, px, py)
    main = [line for line in lines if not line.faint] or lines
    said = "; ".join(f"{line.name}: {_story(line)}" for line in main)
    svg = image(WIDTH, height, title, f"{unit} over {end:.0f} epochs. {said}.", *parts)
    moments = ", ".join(f"epoch {x + 1:.0f}: {name}" for x, name in marks)
    return figure(title, legend([(line.name, line.style) for line in main], moments), svg, note=note)


def _draw(line: Line, px: Callable[[float], float], py: Callable[[float], float]) -> list[Markup]:
    parts, path, run = [], [], 0
    known = [(x, y) for x, y in line.points if y is not None]
    color = f"c{line.style % COLORS}"
    for i, (x, y) in enumerate(line.points):
        if y is None:
            run = 0
            continue
        path.append(f"{'L' if run else 'M'}{px(x):.1f} {py(y):.1f}")
        run += 1
        alone = run == 1 and (i + 1 == len(line.points) or line.points[i + 1][1] is None)
        if alone or (not line.faint and (x, y) == known[-1]):
            parts.append(el("circle", el("title", f"{line.name}: {significant(y, 4)}"), cx=px(x), cy=py(y), r=3, class_=f"dot {color}"))
    dash = DASHES[line.style % len(DASHES)] or None
    kind = f"line {color} faint" if line.faint else f"line {color}"
    return [el("path", el("title", line.name), d="".join(path), class_=kind, stroke_dasharray=None if line.faint else dash), *parts]


def _story(line: Line) -> str:
    known = [y for _, y in line.points if y is not None]
    if not known:
        return "no values"
    return f"from {significant(known[0])} to {significant(known[-1])}, lowest {significant(min(known))}, highest {significant(max(known))}"


def legend(entries: Sequence[tuple[str, int]], moments: str = "", *, solid: bool = False) -> Markup:
    """Names with their colours and, unless `solid`, dashes."""
    items = []
    for name, style in entries:
        dash = None if solid else DASHES[style % len(DASHES)] or None
        swatch = el("path", d="M1 6H25", class_=f"line c{style % COLORS}", stroke_dasharray=dash)
        items.append(el("li", el("svg", swatch, viewBox="0 0 26 12", width=26, height=12, aria_hidden="true"), name))
    if moments:
        mark = el("path", d="M6 0V12", class_="mark")
        items.append(el("li", el("svg", mark, viewBox="0 0 12 12", width=12, height=12, aria_hidden="true"), moments))
    return el("ul", *items, class_="legend")


def heat_map(
    title: str,
    unit: str,
    panels: Sequence[Panel],
    epochs: Sequence[int],
    *,
    low: float,
    high: float,
    note: str | None = None,
) -> Markup:
    """Panels over epochs (one column each, numbered from 1) in one colour scale from `low` to `high`."""
    same = len({tuple(panel.rows) for panel in panels}) == 1
    across = 2 if same and len(panels) > 1 else 1
    left = 10 + CHARACTER * 0.92 * max((len(name) for panel in panels for name in panel.rows), default=0)
    gap, row_height = 12, 14
    width = (WIDTH - 4 - left - gap * (across - 1)) / across
    parts: list[Markup] = []
    frames: list[Markup] = []  # over the colours
    paths: list[list[str]] = [[] for _ in range(LEVELS)]
    y = 0.0
    for start in range(0, len(panels), across):
        for i, panel in enumerate(panels[start : start + across]):
            x = left + i * (width + gap)
            titled = 18 if panel.title else 4
            if panel.title:
                parts.append(text(x, y + 13, panel.title, class_="kept" if panel.marked is not None else None))
            if i == 0:
                for row, name in enumerate(panel.rows):
                    parts.append(text(left - 5, y + titled + row_height * (row + 0.78), name, text_anchor="end", class_="small"))
            parts.append(el("rect", x=x, y=y + titled, width=width, height=row_height * len(panel.rows), class_="empty"))
            _cells(paths, panel, x, y + titled, width, row_height, low, high)
            if panel.marked is not None:
                top = y + titled + row_height * panel.marked
                frames.append(el("rect", x=x, y=top, width=width, height=row_height, class_="frame"))
        y += titled + row_height * max(len(panel.rows) for panel in panels[start : start + across]) + 8
    for i in range(min(across, len(panels))):
        x = left + i * (width + gap)
        parts.append(text(x, y + 8, f"{epochs[0] + 1}", class_="small"))
        parts.append(text(x + width / 2, y + 8, "epoch", text_anchor="middle", class_="small"))
        if len(epochs) > 1:
            parts.append(text(x + width, y + 8, f"{epochs[-1] + 1}", text_anchor="end", class_="small"))
    y += 22
    bar = (WIDTH - 4 - left) / LEVELS
    parts += [el("rect", x=left + bar * i, y=y, width=bar + 0.3, height=10, class_=f"h{i}") for i in range(LEVELS)]
    parts.append(text(left, y + 24, significant(low, 2)))
    parts.append(text(left + bar * LEVELS / 2, y + 24, unit, text_anchor="middle"))
    parts.append(text(left + bar * LEVELS, y + 24, significant(high, 2), text_anchor="end"))
    heat = [el("path", d="".join(path), class_=f"h{level}", stroke_width=row_height) for level, path in enumerate(paths) if path]
    known = [v for panel in panels for row in panel.values for v in row if v is not None]
    said = f"{unit} in {len(panels)} panels over epochs {epochs[0] + 1} to {epochs[-1] + 1}"
    said += f", from {significant(min(known))} to {significant(max(known))}." if known else ": nothing recorded."
    marked = [f"{panel.title}: {panel.rows[panel.marked]}" for panel in panels if panel.marked is not None]
    if marked:
        said += " Kept by the genotype: " + "; ".join(marked) + "."
    svg = image(WIDTH, y + 30, title, said, *parts, el("g", *heat, class_="heat"), *frames)
    return figure(title, svg, note=note)


def _cells(paths: list[list[str]], panel: Panel, x: float, y: float, width: float, height: float, low: float, high: float) -> None:
    """One horizontal stroke for each run of equal colours, in the path of its colour: small files, sharp edges."""
    for row, values in enumerate(panel.values):
        column = width / len(values)
        middle = y + height * (row + 0.5)
        levels = [None if v is None else level(v, low, high) for v in values]
        start = 0
        for shade, run in itertools.groupby(levels):
            count = len(list(run))
            if shade is not None:
                paths[shade].append(f"M{x + column * start:.1f} {middle:.1f}h{column * count:.1f}")
            start += count


def level(value: float, low: float, high: float) -> int:
    """Colour of a value: 0 at `low`, LEVELS - 1 at `high`."""
    share = (value - low) / (high - low) if high > low else 0.0
    return min(LEVELS - 1, max(0, int(share * LEVELS)))


def table(head: Sequence[object], rows: Sequence[Sequence[object]], *, caption: str | None = None, numeric: bool = True) -> Markup:
    """A table that scrolls inside itself where the screen is narrower."""
    top = el("thead", el("tr", *(el("th", cell, scope="col") for cell in head)))
    body = el("tbody", *(el("tr", el("th", row[0], scope="row"), *(el("td", cell) for cell in row[1:])) for row in rows))
    label = el("caption", caption) if caption else join()
    kind = "scroll numeric" if numeric else "scroll"
    return el("div", el("table", label, top, body), class_=kind, tabindex=0, role="region", aria_label=caption or "table")


def chosen_epochs(count: int) -> list[int]:
    """Indices of at most COLUMNS epochs, evenly spread, first and last among them."""
    if count <= COLUMNS:
        return list(range(count))
    return [round(i * (count - 1) / (COLUMNS - 1)) for i in range(COLUMNS)]
