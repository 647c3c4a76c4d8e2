"""A font of coloured squares, built with fontTools: layers of colours (COLR), as some emoji fonts have them."""

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen


def _empty():
    return TTGlyphPen(None).glyph()


def _square(left, right):
    pen = TTGlyphPen(None)
    pen.moveTo((left, 0))
    for point in ((left, 800), (right, 800), (right, 0)):
        pen.lineTo(point)
    pen.closePath()
    return pen.glyph()


def build_font(path, points, *, drawn=True):
    """Write a font with a two-coloured square for each code point, in colours of its own; or with nothing in them."""
    names = [f"p{point:x}" for point in points]
    order = [".notdef", *names, "wide", "narrow"]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap(dict(zip(points, names, strict=True)))
    shapes = {"narrow": _square(100, 300)}
    builder.setupGlyf({name: shapes.get(name, _square(100, 900)) if drawn else _empty() for name in order})
    builder.setupHorizontalMetrics(dict.fromkeys(order, (1000, 100)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupCPAL([[((37 * n % 256) / 255, 0.4, (91 * n % 256) / 255, 1.0) for n in range(len(names) + 1)]])
    builder.setupCOLR({name: [("wide", number), ("narrow", number + 1)] for number, name in enumerate(names)}, 0)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.font["head"].created = builder.font["head"].modified = 0
    builder.save(path)
