"""Pictures in records: what is refused and why, and features that depend on nothing but the picture."""

from __future__ import annotations

import base64
import json
import random
import shutil
import struct
import zlib
from dataclasses import replace
from io import BytesIO

import numpy as np
import pyarrow as pa
import pytest
from arrows import table
from pictures import NETWORK, SHAPED, drawn, photos, picture_schema
from PIL import Image
from pipelines import MIXED, encoded, event, events

from millrace.learners.errors import ConfigError
from millrace.streams.features.backbone import Backbone, located
from millrace.streams.features.columns import Features
from millrace.streams.formats.arrow import encode_rows
from millrace.streams.formats.contents import Contents
from millrace.streams.formats.images import MOST_PIXELS, UnreadableImageError, check, pixels
from millrace.streams.parts import sha256
from millrace.streams.schema import Field, Label, Schema


def png(width: int, height: int) -> bytes:
    """A picture of so many pixels that weighs next to nothing, and is not there."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def row(raw: bytes) -> bytes:
    """A row of JSON with a picture in it."""
    return encoded({"photo": base64.b64encode(raw).decode(), "y": 3})


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "1", "P", "LA", "CMYK"])
def test_pictures_of_every_mode_become_three_channels(mode) -> None:
    """Scaled as the field says, in the order that networks take."""
    raw = drawn((7, 5), "RGB") if mode in ("P", "1", "CMYK", "LA") else drawn((7, 5), mode)
    if mode in ("P", "1", "LA", "CMYK"):
        sink = BytesIO()
        Image.open(BytesIO(raw)).convert(mode).save(sink, "JPEG" if mode == "CMYK" else "PNG")
        raw = sink.getvalue()
    field = Field("p", backbone="m", **(SHAPED | {"shape": (5, 7)}))
    made = pixels(raw, field)
    assert made.shape == (1, 3, 5, 7) and made.dtype == np.float32 and -1.0 <= made.min() <= made.max() < 1.0


def test_grey_of_sixteen_bits_is_refused() -> None:
    """As eight bits nearly all of it would be white."""
    sink = BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(sink, "PNG")
    with pytest.raises(UnreadableImageError, match="more than 8 bits a colour"):
        check(sink.getvalue())


def test_pixels_are_the_pictures_own() -> None:
    """Where nothing is resized: (value - center) / scale of each."""
    raw = drawn((4, 3))
    cells = np.asarray(Image.open(BytesIO(raw)), dtype=np.float32)
    made = pixels(raw, Field("p", backbone="m", **(SHAPED | {"shape": (3, 4)})))
    assert np.array_equal(made[0], ((cells - 128.0) / 128.0).transpose(2, 0, 1))


def test_what_is_no_whole_picture_is_refused() -> None:
    """Cut off anywhere, of another format, or no picture at all."""
    for raw in (drawn((64, 64)), drawn((64, 64), kind="JPEG")):
        check(raw)
        for cut in (0, 1, 8, 30, len(raw) // 2, len(raw) - 40):
            with pytest.raises(UnreadableImageError):
                check(raw[:cut])
    for raw in (b"", b"GIF89a", drawn((4, 4), kind="BMP"), drawn((4, 4), kind="TIFF"), b"\x89PNG\r\n\x1a\n", b"<svg/>"):
        with pytest.raises(UnreadableImageError) as refused:
            check(raw)
        assert "object at 0x" not in str(refused.value), "nobody can act on where our memory is"


@pytest.mark.parametrize("side", [4097, 11_000, 30_000, 1 << 30])
def test_a_picture_that_would_be_huge_is_refused_by_what_it_says(side) -> None:
    """Before a pixel of it is decoded."""
    assert MOST_PIXELS < 4097 * 4097
    with pytest.raises(UnreadableImageError, match="pixels|whole"):
        check(png(side, side))


def test_damaged_pictures_end_in_a_picture_or_a_reason() -> None:
    """3,000 with bytes changed, cut out or doubled."""
    chance, makes = random.Random(5), [drawn((20, 20)), drawn((20, 20), kind="JPEG"), drawn((9, 9), "RGBA")]
    ends = {True: 0, False: 0}
    for _ in range(3000):
        raw = bytearray(chance.choice(makes))
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(raw))
            raw[at : at + chance.randrange(0, 3)] = bytes(chance.randrange(256) for _ in range(chance.randrange(0, 3)))
        try:
            check(bytes(raw))
            ends[True] += 1
        except UnreadableImageError:
            ends[False] += 1
    assert min(ends.values()) > 100


def test_a_bad_picture_is_refused_beside_good_ones_in_json_and_in_arrow() -> None:
    """The row alone; no base64 is a wrong type."""
    good, _ = photos("train", 0, 3)
    bad = good[0][:200]
    contents = Contents(picture_schema(), 1 << 20)
    rows, refused = contents.decode(events([row(good[0]), row(bad), b'{"photo": "*"}', row(good[1])]))
    assert rows.columns[0].tolist() == good[:2]
    assert sorted((lost.event.offset, lost.reason) for lost in refused) == [(1, "unreadable-image"), (2, "wrong-type")]
    rows, refused = contents.decode([event(table(photo=[good[0], bad, None, good[1]], y=[3, 3, 3, 3]))])
    assert rows.columns[0].tolist() == good[:2]
    assert [(lost.row, lost.reason) for lost in refused] == [(1, "unreadable-image"), (2, "missing-field")]
    again, none = contents.decode(
        [event(encode_rows([{"photo": base64.b64encode(raw).decode(), "y": 3} for raw in good], picture_schema()))]
    )
    assert not none and again.columns[0].tolist() == good
    twice = b'{"photo": "%b", "photo": "%b"}' % ((base64.b64encode(good[0]),) * 2)
    assert contents.decode([event(twice)])[1][0].reason == "duplicate-field"
    assert contents.decode([event(table(photo=["text"]))])[1][0].reason == "wrong-type"


def test_a_rows_features_are_the_same_in_whatever_company() -> None:
    """Bit for bit: alone, among others, in any order, as the worker takes them in and as a replica answers."""
    good, _ = photos("train", 0, 12)
    stage = Features(picture_schema())
    rows, _ = Contents(picture_schema(), 1 << 20).decode(events([row(raw) for raw in good]))
    x = stage.learn(stage.encode(rows)).x
    assert x.shape == (12, 256) and x.dtype == np.float64 and np.isfinite(x).all() and len(np.unique(x, axis=0)) == 12
    turned = np.random.default_rng(0).permutation(12)
    assert stage.encoded([rows.columns[0][turned]])[0].tobytes() == x[turned].tobytes()
    for at in range(12):
        assert stage.encoded([rows.columns[0][at : at + 1]])[0].tobytes() == x[at].tobytes()


def test_the_network_is_part_of_what_a_branch_was_begun_with(tmp_path) -> None:
    """By its sha256, wherever it lies; another file is another declaration, or refused where the pipeline names it."""
    photos("train", 0, 1)
    shutil.copy(NETWORK, tmp_path / "a.onnx")
    here, other = (
        located([Field("p", backbone=name, **SHAPED)], folder)
        for name, folder in ((NETWORK.name, NETWORK.parent), ("a.onnx", tmp_path))
    )
    assert here != other and Schema(here, Label("y")).declared == Schema(other, Label("y")).declared
    assert sha256(NETWORK.read_bytes()).encode() in Schema(here, Label("y")).declared
    (tmp_path / "a.onnx").write_bytes(b"another")
    changed = located([Field("p", backbone="a.onnx", **SHAPED)], tmp_path)
    assert Schema(changed, Label("y")).declared != Schema(here, Label("y")).declared
    with pytest.raises(ConfigError, match="Put the other file back"):
        located([replace(here[0], backbone="a.onnx")], tmp_path)
    with pytest.raises(ConfigError, match="Put the other file back"):
        Backbone(other[0])
    with pytest.raises(ConfigError, match="no network that takes"):
        Backbone(changed[0])
    with pytest.raises(ConfigError, match="cannot be read"):
        located([Field("p", backbone="nowhere.onnx", **SHAPED)], tmp_path)
    gone = located([replace(here[0], backbone="nowhere.onnx")], tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        Backbone(gone[0])
    with pytest.raises(ConfigError, match="set features = 256"):
        Backbone(replace(here[0], features=64))


def test_declarations_without_pictures_are_what_they_always_were() -> None:
    """Else no branch that was begun before could go on."""
    assert sha256(MIXED.declared) == "b724cc9bfdb5fa24fa05f80819648667ea8023567b87db3fe09b9101448ebc1f"


BAD_FIELDS = [{"shape": (0, 1)}, {"features": 0}, {"missing": "mean"}, {"size": 2}, {"scale": 0.0}, {"shape": (5000, 1)}]


@pytest.mark.parametrize("bad", BAD_FIELDS)
def test_fields_that_cannot_be_meant_are_refused(bad) -> None:
    """Shape and features are needed; what is for other types is refused, both ways."""
    with pytest.raises(ValueError, match="must|image"):
        Field("p", backbone="m", **(SHAPED | bad))
    with pytest.raises(ValueError, match='for type = "image"'):
        Field("p", features=3)


def test_a_refused_picture_is_a_dead_letter_with_its_bytes() -> None:
    """As base64, as a row of JSON has it."""
    rows = pa.array([b"no picture"], pa.binary())
    _, refused = Contents(picture_schema() if NETWORK.exists() else pytest.skip("no data"), 99).decode(
        [event(table(photo=rows, y=[1]))]
    )
    assert json.loads(refused[0].event.value) == {"photo": base64.b64encode(b"no picture").decode(), "y": 1}
