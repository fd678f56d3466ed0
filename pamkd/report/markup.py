"""HTML and SVG elements as strings; text and attribute values are escaped here and nowhere else."""

from __future__ import annotations

import html

VOID = {"meta", "link", "br"}


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def el(name: str, /, *children: object, **attributes: object) -> Markup:
    """`<name attributes>children</name>`; `class_` and `stroke_width` mean class and stroke-width, None leaves one out."""
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            words.append(f'{key.rstrip("_").replace("_", "-")}="{html.escape(_plain(value))}"')
    if name in VOID:
        return Markup(f"<{' '.join(words)}>")
    return Markup(f"<{' '.join(words)}>{join(*children)}</{name}>")


def join(*children: object) -> Markup:
    return Markup("".join(child if isinstance(child, Markup) else html.escape(_plain(child), quote=False) for child in children))


def _plain(value: object) -> str:
    """Coordinates need a tenth of a pixel, not sixteen digits."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def significant(value: float, digits: int = 3) -> str:
    size = abs(value)
    if size >= 1e5 or 0 < size < 1e-3:
        return f"{value:.{digits - 1}e}"
    return f"{value:.0f}" if size >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def millions(count: float) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.1f} k" if count >= 1e3 else f"{count:.0f}"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"


def shown(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else significant(value, digits)
