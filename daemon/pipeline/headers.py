"""Picture files judged by their structure, before a decoder sees them. Pure.

Rules:
1. A file whose parts number more than any real one has is refused: the decoders look at each part
   in Python, so that megabytes of empty parts would keep a thread busy for a minute.
2. A JPEG of more scans than any encoder writes is refused: each can cost a pass over all pixels.
3. Run-length BMP is refused: its decoder works pixel by pixel in Python.
4. WebP and GIF say their size here: their decoders allocate it while they open.

Not checked: whether the parts make sense; the decoder does that.
"""

from __future__ import annotations

import re
import struct
from itertools import islice

from daemon.errors import Malformed, UnsupportedMedia

_MAX_PARTS = 65_536
"""A 64 MiB PNG of 8 KiB parts, as most programs write them, has 8192."""

_MAX_SCANS = 256  # a progressive JPEG has about 10; its thumbnails may have their own

_JPEG_SCAN = 0xDA
_JPEG_SCANS = re.compile(b"\xff\xda")  # twice as fast as bytes.count
_JPEG_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length: TEM, RST0-7, SOI
_BMP_RUN_LENGTH = frozenset((1, 2))  # BI_RLE8, BI_RLE4
_GIF_EXTENSION, _GIF_IMAGE = 0x21, 0x2C


def declared_size(kind: str, data: bytes) -> tuple[int, int]:
    """Check the structure; the width and height of a WebP or GIF.

    Returns:
        (0, 0) for the other kinds, whose decoders open without allocating, and where the header
        is damaged, which the decoder will say.

    Raises:
        Malformed: it is made to keep the decoder busy.
        UnsupportedMedia: a run-length BMP.
    """
    try:
        match kind:
            case "JPEG":
                _walk_jpeg(data)
            case "PNG":
                _walk_png(data)
            case "BMP":
                _check_bmp(data)
            case "WebP":
                return _webp_size(data)
            case "GIF":
                return _walk_gif(data)
    except (struct.error, IndexError):
        return 0, 0
    return 0, 0


def _too_many_parts(kind: str) -> Malformed:
    return Malformed(f"the {kind} picture has more than {_MAX_PARTS} parts")


def _walk_jpeg(data: bytes) -> None:
    """Follow the segments to the first scan.

    Source: ITU-T T.81, annex B.
    """
    # Inside a scan 0xFF is always followed by 0 or a restart marker, so that this counts scans.
    if next(islice(_JPEG_SCANS.finditer(data), _MAX_SCANS, None), None):
        raise Malformed(f"the JPEG picture has more than {_MAX_SCANS} scans")
    at = 2
    for _ in range(_MAX_PARTS):
        if data[at] != 0xFF or data[at + 1] in (0x00, 0xFF):  # noqa: PLR2004
            at += 1  # junk or fill
            continue
        marker = data[at + 1]
        if marker == _JPEG_SCAN:
            return
        at += 2
        if marker not in _JPEG_ALONE:
            at += int.from_bytes(data[at : at + 2], "big")
    raise _too_many_parts("JPEG")


def _walk_png(data: bytes) -> None:
    """Follow the chunks to the end.

    Source: PNG, third edition, section 5.3.
    """
    at = 8
    for _ in range(_MAX_PARTS):
        (length,) = struct.unpack_from(">I", data, at)
        at += 12 + length
    raise _too_many_parts("PNG")


def _check_bmp(data: bytes) -> None:
    """Refuse run-length compression, which headers of 40 bytes and more can name.

    Source: BITMAPINFOHEADER.
    """
    header_bytes, compression = struct.unpack_from("<I12xI", data, 14)
    if header_bytes >= 40 and compression in _BMP_RUN_LENGTH:  # noqa: PLR2004
        raise UnsupportedMedia("run-length encoded BMP is not taken; send it without compression")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas.

    Source: RFC 9649, sections 2.5 to 2.7.
    """
    match data[12:16]:
        case b"VP8X":
            return (
                int.from_bytes(data[24:27], "little") + 1,
                int.from_bytes(data[27:30], "little") + 1,
            )
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case _:
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF


def _walk_gif(data: bytes) -> tuple[int, int]:
    """Width and height of the screen, widened by the first frame.

    Source: GIF89a specification, sections 15 to 26.
    """
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    inside = False  # of an extension, whose blocks each tell their length
    for _ in range(_MAX_PARTS):
        if inside:
            inside = data[at] != 0
            at += data[at] + 1
        elif data[at] == _GIF_EXTENSION:
            inside = True
            at += 2
        elif data[at] == _GIF_IMAGE:
            left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, at + 1)
            return max(width, left + frame_width), max(height, top + frame_height)
        else:
            at += 1  # junk, which the decoder skips too
    raise _too_many_parts("GIF")
