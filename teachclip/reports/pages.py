"""HTML pages: Jinja2 templates in `templates/`, filled with values that are escaped.

A page is one file that needs nothing else: no script, no network, images inside it as data URIs. Each template
extends `base.html` and uses the macros of `macros.html` (tables, notes, figures).
"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def render_page(template_name: str, **values: object) -> str:
    """Return the page that a template of `templates/` makes of some values, as text that can be written as UTF-8.

    Every value is escaped where the template inserts it; control characters and lone surrogates, which HTML does not
    allow, and marks that turn the order of letters become U+FFFD. Raises jinja2.UndefinedError if the template uses a
    value that is not given.
    """
    return _ENVIRONMENT.get_template(template_name).render(values)


def png_uri(path: Path) -> str:
    """Return a PNG file as a data URI."""
    return _data_uri("image/png", path.read_bytes())


def jpeg_uri(data: bytes) -> str:
    """Return the bytes of a JPEG file as a data URI."""
    return _data_uri("image/jpeg", data)


def encode_jpeg(image: np.ndarray, *, max_height: int | None = None, quality: int = 80) -> bytes:
    """Return an image, uint8 (height, width, 3), as a JPEG file, shrunk to `max_height` pixels if it is higher."""
    pil_image = Image.fromarray(np.ascontiguousarray(image))
    if max_height is not None and pil_image.height > max_height:
        width = max(1, round(pil_image.width * max_height / pil_image.height))
        pil_image = pil_image.resize((width, max_height), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    pil_image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _data_uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def _printable(value: object) -> object:
    """Replace what HTML does not allow in an inserted string; what a macro returned is checked already."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return _UNPRINTABLE.sub("\ufffd", value)
    return value


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_printable,
    trim_blocks=True,
    lstrip_blocks=True,
)
