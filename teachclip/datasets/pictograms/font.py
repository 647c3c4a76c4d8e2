"""The pictograms of a colour font and their names in the Unicode standard."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from teachclip.errors import DataError

try:
    from fontTools.ttLib import TTFont, TTLibError
except ImportError as missing:
    raise DataError(f"pictograms need fontTools ({missing}): pip install 'teachclip[datasets]'") from missing

NOTO = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
"""Where Debian's and Ubuntu's package fonts-noto-color-emoji puts its font."""
INSTALL = "Debian and Ubuntu: apt-get install fonts-noto-color-emoji; elsewhere: --font NotoColorEmoji.ttf"
STRIKE = 109
"""The one size, in pixels, of the images in Noto's font."""
FIRST, LAST = 0x2190, 0x1FA6F
"""Code points above and those of `_NEW` are still being assigned: which have names depends on Python's version."""
_NEW = range(0x1F6D8, 0x1F6DD)
FEWEST = 50
"""Pictograms that a dataset needs."""


@dataclass(frozen=True)
class Pictogram:
    """One character and its Unicode name in lower case, such as "red apple"."""

    character: str
    name: str


def read_pictograms(font: Path) -> list[Pictogram]:
    """Return the pictograms of a font in the order of their code points.

    Raises DataError if the font is missing, cannot be read, has no coloured pictograms or too few of them.
    """
    if not font.is_file():
        raise DataError(f"there is no font {font}. {INSTALL}")
    try:
        with TTFont(font) as tables:
            points = sorted(tables.getBestCmap() or {})
            coloured = "CBDT" in tables or "COLR" in tables
    except (OSError, TTLibError) as error:
        raise DataError(f"{font} cannot be read as a font ({error})") from error
    characters = [chr(point) for point in points if FIRST <= point <= LAST and point not in _NEW]
    symbols = [character for character in characters if unicodedata.category(character) == "So"]
    pictograms = [Pictogram(symbol, unicodedata.name(symbol).lower()) for symbol in symbols]
    pictograms = [pictogram for pictogram in pictograms if "regional indicator" not in pictogram.name]
    if not coloured or len(pictograms) < FEWEST:
        raise DataError(
            f"{font} has {len(pictograms) if coloured else 0} coloured pictograms (table CBDT or COLR) with a "
            f"Unicode name; expected at least {FEWEST}. {INSTALL}"
        )
    image_of(pictograms[0].character, str(font))  # raises if this font cannot be drawn
    return pictograms


@lru_cache(maxsize=4096)
def image_of(character: str, font: str) -> Image.Image:
    """Return a pictogram as an RGBA image, cut to what is drawn. Raises DataError if nothing is."""
    drawn = Image.new("RGBA", (2 * STRIKE, 2 * STRIKE))
    try:
        loaded = _load(font)
        ImageDraw.Draw(drawn).text((STRIKE // 4, STRIKE // 4), character, font=loaded, embedded_color=True)
    except OSError as error:  # a bitmap font with images of another size alone
        raise DataError(f"{font} has no images of {STRIKE} pixels ({error}). {INSTALL}") from error
    if drawn.getbbox() is None:
        name = unicodedata.name(character).lower()
        raise DataError(
            f"{font}: {name!r} is drawn as nothing; gradients (COLR version 1) cannot be drawn. {INSTALL}"
        )
    return drawn.crop(drawn.getbbox())


@lru_cache(maxsize=4)
def _load(font: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font, STRIKE)
