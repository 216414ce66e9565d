"""The one door to Pillow: JPEG and PNG bytes into the pixels that a backbone takes.

How large a picture is stands in its first bytes; what is too large is refused before it is decoded. Transparency and the
orientation that a camera notes are left aside.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.learners.distribution import how_to_get
from millrace.learners.errors import BadInputError
from millrace.streams.schema import Field

MOST_PIXELS = 1 << 24  # pixels of a picture, before it is resized
FORMATS = ("JPEG", "PNG")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # Pillow's names for pixels that fit 8 bits a colour


class UnreadableImageError(Exception):
    """Why a picture cannot be read."""


def check(raw: bytes) -> None:
    """Raises: UnreadableImageError where ``raw`` is no whole picture or has too many pixels; BadInputError without Pillow."""
    _opened(raw)


def pixels(raw: bytes, field: Field) -> NDArray[np.float32]:
    """A picture as the backbone of ``field`` takes it: (1, 3, H, W), red, green, blue, ``(value - center) / scale``.

    Resized to the field's shape, bilinearly. Raises: as ``check`` does.
    """
    from PIL import Image

    height, width = field.shape
    fitted = _opened(raw).resize((width, height), Image.Resampling.BILINEAR)
    values = np.asarray(fitted, dtype=np.float32).transpose(2, 0, 1)[None]
    return np.ascontiguousarray((values - np.float32(field.center)) / np.float32(field.scale))


def _opened(raw: bytes) -> Any:
    """The picture, decoded, as RGB."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise BadInputError(f"A field of images needs Pillow. {how_to_get('backbone')}") from error
    broken = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        with Image.open(BytesIO(raw), formats=FORMATS) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise UnreadableImageError(f"{picture.width} x {picture.height} is over {MOST_PIXELS} pixels")
            if picture.mode not in MODES:  # converting 16 bits of grey would make nearly all of it white
                raise UnreadableImageError(f"its pixels ({picture.mode}) are of more than 8 bits a colour")
            return picture.convert("RGB")
    except bombs as error:
        raise UnreadableImageError(f"it is over {MOST_PIXELS} pixels") from error
    except UnidentifiedImageError as error:  # whose own words name an object of ours
        raise UnreadableImageError(f"it begins as no {' or '.join(FORMATS)} picture does") from error
    except broken as error:
        raise UnreadableImageError(f"it is no whole {' or '.join(FORMATS)} picture: {error}") from error
