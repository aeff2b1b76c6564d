"""Numbers and names as a picture says them."""

from __future__ import annotations

from bisect import bisect_right
from math import log2

from PIL import ImageFont

PICTURES_PER_FRAME = 4
_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def film_seconds(frame: int, fps: float) -> float:
    """When a frame begins in the finished film."""
    return max(0, PICTURES_PER_FRAME * frame - 3) / fps


def short_time(seconds: float) -> str:
    """`9.25 s`, and from a minute on `1:05`."""
    if seconds < 60:
        return f"{round(seconds, 2):g} s"
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def duration(milliseconds: float) -> str:
    """`812 ms`, `1.24 s`."""
    if milliseconds < 10:
        return f"{milliseconds:.1f} ms"
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.2f} s"


def byte_size(count: float) -> str:
    """`5.68 GiB`."""
    power = 0 if count < 1024 else min(len(_BYTES) - 1, int(log2(count) / 10))
    value = count / 1024**power
    return f"{value:.0f} {_BYTES[power]}" if power == 0 or value >= 100 else f"{value:.2f} {_BYTES[power]}"


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.3g}"


def fitting(text: str, font: Font, width: float) -> str:
    """The text on one line, shortened by '...' where it is wider than `width` pixels; nothing where not even that fits."""
    text = " ".join(text.split())
    most = min(
        len(text), max(0, int(width))
    )  # a letter takes a pixel at least: of a long prompt only this much is measured
    if most == len(text) and font.getlength(text) <= width:
        return text
    kept = bisect_right(range(1, most + 1), width, key=lambda count: font.getlength(text[:count] + "..."))
    return text[:kept].rstrip() + "..." if kept else ""
