"""What kind of picture or sound a file is, told by how it begins. Pure, and without a decoder."""

from __future__ import annotations

PICTURE_KINDS = "JPEG, PNG, WebP, BMP or GIF"
SOUND_KINDS = "WAV"


def picture_kind(data: bytes) -> str | None:
    """Which of the picture formats the bytes start like; None for none of them."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM"):
        return "BMP"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    return None


def is_wav(data: bytes) -> bool:
    """Whether the bytes start like a WAV file."""
    return data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE"
