"""What figures 1 to 3 draw: a group of bars for each method, and means over seeds with every seed beside them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from pamkd.report.charts import CHARACTER, WIDTH, figure, image, legend, rules, text, y_axis
from pamkd.report.markup import Markup, el
from pamkd.reproduce.statistics import mean_std

WIDE = 1040


def bars(title: str, unit: str, groups: Mapping[str, Sequence[Sequence[float]]], names: Sequence[str]) -> Markup:
    """A group of bars from 0 to 100 for each entry, a bar for each name: the mean of its values, with their standard deviation.

    What follows a comma in an entry stands on a second line.
    """
    height, floor, left = 290, 246, 36
    step = (WIDE - left) / len(groups)

    def py(value: float) -> float:
        return floor - 2.1 * value

    parts = rules(unit, [(py(value), str(value)) for value in range(0, 101, 20)], left, WIDE)
    for i, (name, bunch) in enumerate(groups.items()):
        for k, values in enumerate(bunch):
            x, width = left + step * (i + 0.15) + k * step * 0.24, step * 0.2
            parts.append(el("path", d=f"M{x:.1f} {floor}V{py(statistics.mean(values)):.1f}h{width:.1f}V{floor}z", class_=f"dot c{k}"))
            parts.append(_whisker(x + width / 2, values, py))
            top = py(statistics.mean(values) + _spread(values)) - 4
            parts.append(text(x + width / 2, top, f"{statistics.mean(values):.1f}", text_anchor="middle", class_="small"))
        for line, words in enumerate(name.split(", ")):
            parts.append(text(left + step * (i + 0.5), floor + 17 + 15 * line, words, text_anchor="middle"))
    said = "; ".join(f"{name}: {', '.join(map(mean_std, bunch))}" for name, bunch in groups.items())
    svg = image(WIDE, height, title, f"{unit}, mean and standard deviation. {said}.", *parts)
    return figure(title, legend([(name, k) for k, name in enumerate(names)], solid=True), svg)


def against(title: str, unit: str, axis: str, found: Sequence[tuple[str, Sequence[float]]], *, joined: bool) -> Markup:
    """A dot at the mean of each entry's values, its standard deviation and the values themselves; `joined` by a line: a curve."""
    known = [(place, name, values) for place, (name, values) in enumerate(found) if values]
    if not known:
        return figure(title, el("p", "Nothing has run yet.", class_="none"))
    everything = [value for _, _, values in known for value in values]
    ends = [mean + sign * _spread(values) for _, _, values in known for mean in [statistics.mean(values)] for sign in (-1, 1)]
    low, high = min(*everything, *ends), max(*everything, *ends)
    pad = 0 if high > low else 0.1 * abs(high) or 1.0
    low, high, levels, names = y_axis(low - pad, high + pad)
    height, upper, lower = 250, 30, 206
    left, right = 14 + CHARACTER * max(map(len, names)), WIDTH - 12

    def px(place: int) -> float:
        return left + (right - left) * (place + 0.5) / len(found)

    def py(value: float) -> float:
        return lower + (upper - lower) * (value - low) / (high - low)

    parts = rules(unit, [(py(value), name) for value, name in zip(levels, names, strict=True)], left, right)
    parts += [text(px(place), lower + 17, name, text_anchor="middle") for place, (name, _) in enumerate(found)]
    parts.append(text((left + right) / 2, height - 8, axis, text_anchor="middle", class_="unit"))
    if joined:
        points = [f"{px(place):.1f} {py(statistics.mean(values)):.1f}" for place, _, values in known]
        parts.append(el("path", d="M" + "L".join(points), class_="line c0"))
    for place, name, values in known:
        parts += [el("circle", cx=px(place) + 9, cy=py(value), r=2, class_="dot c5") for value in values]
        parts.append(_whisker(px(place), values, py))
        label = el("title", f"{name}: {mean_std(values)}")
        parts.append(el("circle", label, cx=px(place), cy=py(statistics.mean(values)), r=4, class_="dot c0"))
    said = "; ".join(f"{name}: {mean_std(values)}" for _, name, values in known)
    svg = image(WIDTH, height, title, f"{unit} against {axis}, mean and standard deviation. {said}.", *parts)
    return figure(title, svg, note="Dots: means, with the standard deviation over seeds; small dots: seeds.")


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _whisker(x: float, values: Sequence[float], py: Callable[[float], float]) -> Markup:
    mean, spread = statistics.mean(values), _spread(values)
    return el("path", d=f"M{x:.1f} {py(mean - spread):.1f}V{py(mean + spread):.1f}", class_="axis")
