"""Colours of an inspection's picture: one ramp for how much was read, greys for what is always read.

The ramp rises evenly in lightness and goes from blue to yellow, which the common forms of colour blindness keep apart; kinds have
marks beside their colours. It is the browser's ramp on a dark ground.
"""

from __future__ import annotations

from math import sqrt

from ..inspection import BANK, PAGES, SINK

Colour = tuple[int, int, int]

GROUND: Colour = (24, 25, 30)
BAND: Colour = (36, 37, 43)
LINE: Colour = (82, 83, 92)
QUIET: Colour = (168, 169, 178)
TEXT: Colour = (238, 238, 242)
PIN: Colour = (245, 215, 110)
VETO: Colour = (255, 157, 122)
CURVES: tuple[Colour, ...] = (TEXT, (86, 180, 233), (230, 159, 0), (0, 190, 140), (204, 121, 167))

# From nothing to everything, as OKLab lightness, green-red and blue-yellow.
_RAMP = ((0.3, -0.01, -0.1), (0.47, -0.035, -0.115), (0.64, -0.045, -0.03), (0.8, -0.005, 0.11), (0.92, -0.01, 0.165))


def ramp_colour(amount: float) -> Colour:
    """The colour of an amount from 0 to 1; its root is taken, so that a hundredth is still seen."""
    place = sqrt(min(1.0, max(0.0, amount))) * (len(_RAMP) - 1)
    lower = min(len(_RAMP) - 2, int(place))
    part = place - lower
    low, high = _RAMP[lower], _RAMP[lower + 1]
    return _from_oklab(*(a + (b - a) * part for a, b in zip(low, high, strict=True)))


def reading_colour(kind: int, amount: float, stripe: bool = False) -> Colour:
    """The colour of a reading; every second cell of the sink is darker, so that it is not told by its grey alone."""
    if kind in (BANK, PAGES):
        return ramp_colour(amount)
    grey = 45 + round(175 * (0.22 if kind == SINK and stripe else 0.62 if kind == SINK else 0.4))
    return (grey, grey, grey + 6)


def _from_oklab(lightness: float, a: float, b: float) -> Colour:
    """OKLab to sRGB bytes, after Björn Ottosson, "A perceptual color space for image processing" (2020)."""
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3
    return (
        _byte(4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short),
        _byte(-1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short),
        _byte(-0.0041960863 * long - 0.7034186147 * medium + 1.707614701 * short),
    )


def _byte(linear: float) -> int:
    light = min(1.0, max(0.0, linear))
    return round(255 * (12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055))
