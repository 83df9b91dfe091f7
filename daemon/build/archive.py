"""Zips whose bytes depend on their files alone: no times, owners or compression. Pure."""

from __future__ import annotations

import io
import lzma
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say
_UNIX = 3
_MODE = 0o644 << 16

# What zipfile raises for archives that are damaged, encrypted, or packed in a way it lacks.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    IndexError,
    OverflowError,
)


def packed_behind(data: bytes, files: Mapping[str, bytes]) -> bytes:
    """Bytes with a zip of these files behind them, in their order; the bytes alone without files.

    Offsets in the zip count from the start of all, so it is a zip to every reader: also to those
    that do not look for what stands before.
    """
    if not files:
        return data
    stream = io.BytesIO()
    stream.write(data)
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = _UNIX
            info.external_attr = _MODE
            archive.writestr(info, content)
    return stream.getvalue()


def without_archive(data: bytes) -> bytes:
    """What stands before the zip at the end; all of it where there is none."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            offsets = [info.header_offset for info in archive.infolist()]
    except _ZIP_ERRORS:
        return data
    return data[: min(offsets)] if offsets else data
