"""Mixing colours evenly for the eye (OKLab: B. Ottosson, A perceptual color space for image processing, 2020), and
their contrast (WCAG 2.1, relative luminance)."""

import numpy as np
from numpy.typing import NDArray

Rgb = NDArray[np.float64]
"""Red, green and blue from 0 to 1, shape (3,)."""

# Linear RGB to the responses of the eye's cones, and those, as cube roots, to lightness and two opponent colours.
_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_FROM_CONES, _FROM_LAB = np.linalg.inv(_CONES), np.linalg.inv(_LAB)


def rgb_of(text: str) -> Rgb:
    """The colour that #rrggbb names."""
    return np.array([int(text[at : at + 2], 16) / 255 for at in (1, 3, 5)])


def hex_of(rgb: Rgb) -> str:
    """A colour as #rrggbb."""
    return "#" + "".join(f"{round(float(part) * 255):02x}" for part in np.clip(rgb, 0, 1))


def mixed(one: Rgb, other: Rgb, share: float) -> Rgb:
    """The colour that lies ``share`` of the way from one to the other."""
    lab = (1 - share) * _to_lab(one) + share * _to_lab(other)
    linear = _FROM_CONES @ (_FROM_LAB @ lab) ** 3
    colour: Rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055)
    return colour


def contrast(one: str, other: str) -> float:
    """The contrast of two colours as #rrggbb, from 1 to 21; text needs 4.5."""
    light, dark = sorted((_luminance(rgb_of(one)), _luminance(rgb_of(other))), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(rgb: Rgb) -> float:
    return float(_linear(rgb) @ np.array([0.2126, 0.7152, 0.0722]))


def _to_lab(rgb: Rgb) -> Rgb:
    lab: Rgb = _LAB @ np.cbrt(_CONES @ _linear(rgb))
    return lab


def _linear(rgb: Rgb) -> Rgb:
    linear: Rgb = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear
