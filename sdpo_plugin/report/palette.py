"""Colours of a report: orange, neutral, blue, which eyes of every kind tell apart, and on which text can be read."""

from dataclasses import dataclass

from sdpo_plugin.report.oklab import Rgb, hex_of, mixed, rgb_of


@dataclass(frozen=True)
class Scale:
    """A diverging scale of backgrounds, with the ink that is readable on all of them.

    Attributes:
        low, middle, high: colours as #rrggbb.
        ink: of the text.
    """

    low: str
    middle: str
    high: str
    ink: str

    def colour(self, place: float) -> str:
        """The colour of a place from -1, low, to 1, high, as #rrggbb."""
        place = min(max(place, -1.0), 1.0)
        end: Rgb = rgb_of(self.high if place > 0 else self.low)
        return hex_of(mixed(rgb_of(self.middle), end, abs(place)))


LIGHT = Scale(low="#f0a04b", middle="#f5f4f1", high="#74a9dc", ink="#16191d")
DARK = Scale(low="#8c4a0b", middle="#262a30", high="#1f5f9e", ink="#f4f5f6")
BLUE, ORANGE, GREY = "#2166ac", "#b35806", "#8a8f98"


@dataclass(frozen=True)
class Range:
    """What numbers of a matrix lie between the ends of a scale: ``middle`` ± ``reach``."""

    middle: float
    reach: float

    def place(self, value: float) -> float:
        """The place of a number on the scale, from -1 to 1."""
        return min(max((value - self.middle) / self.reach, -1.0), 1.0)

    @classmethod
    def around(cls, middle: float, values: list[float], least: float) -> "Range":
        """The range that holds all the values, and reaches ``least`` at least: noise shall not look like a result."""
        return cls(middle, max([least, *(abs(value - middle) for value in values)]))
