"""One file out of a multipart/form-data body. Pure.

Rules:
1. The boundary of the Content-Type frames the parts; text before the first and after the last is
   ignored, and the last one must be there.
2. At most 16 parts, each with at most 4 KiB of headers.
3. Exactly one part is named `file`; others are ignored.
4. A part's transfer encoding is binary: nothing is decoded.

Source: RFC 7578 and RFC 2046 section 5.1.
"""

from __future__ import annotations

from email.message import Message
from email.parser import BytesHeaderParser
from typing import TYPE_CHECKING

from daemon.errors import Malformed, Unsupported, shorten

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_FIELD = "file"
_MAX_PARTS = 16
_MAX_HEADER_BYTES = 4096
_MAX_BOUNDARY_CHARACTERS = 70  # RFC 2046
_PLAIN_ENCODINGS = ("", "7bit", "8bit", "binary")


def read_file_field(body: bytes, content_type: str) -> tuple[bytes, str]:
    """The content and the content type of the part named `file`.

    Args:
        body: the whole request body.
        content_type: the request's header, which names the boundary.

    Raises:
        Malformed: the body is not framed as the header says, or has no or several such parts.
        Unsupported: the part is in base64 or another transfer encoding.
    """
    found: list[tuple[bytes, str]] = []
    names: list[str] = []
    for headers, content in _parts(body, _boundary(content_type)):
        name = _text(headers.get_param("name", header="content-disposition"))
        names.append(name)
        if name == FILE_FIELD:
            _require_plain(headers)
            found.append((content, headers.get_content_type() if "content-type" in headers else ""))
    if len(found) == 1:
        return found[0]
    listing = shorten(", ".join(names)) or "none"
    raise Malformed(
        f"a form needs exactly one field named '{FILE_FIELD}', got {len(found)}; fields: {listing}"
    )


def _boundary(content_type: str) -> bytes:
    header = Message()
    header["content-type"] = content_type.replace("\r", " ").replace("\n", " ")
    boundary = _text(header.get_param("boundary"))
    if not boundary or len(boundary) > _MAX_BOUNDARY_CHARACTERS or not boundary.isascii():
        raise Malformed("multipart/form-data needs a boundary of at most 70 ASCII characters")
    return b"--" + boundary.encode()


def _parts(body: bytes, delimiter: bytes) -> Iterator[tuple[Message, bytes]]:
    framed = b"\r\n" + delimiter
    position = len(delimiter) if body.startswith(delimiter) else body.find(framed) + len(framed)
    if position < len(framed) and not body.startswith(delimiter):
        raise Malformed("the multipart body does not have the boundary its Content-Type names")
    for _ in range(_MAX_PARTS + 1):
        if body.startswith(b"--", position):
            return
        head_end = body.find(b"\r\n\r\n", position, position + _MAX_HEADER_BYTES)
        end = body.find(framed, head_end + 4) if head_end >= 0 else -1
        if end < 0 or not body.startswith(b"\r\n", position):
            raise Malformed("the multipart body ends too early or a part's headers are too long")
        headers = BytesHeaderParser().parsebytes(body[position + 2 : head_end + 4])
        yield headers, body[head_end + 4 : end]
        position = end + len(framed)
    raise Malformed(f"a form may have at most {_MAX_PARTS} fields")


def _require_plain(headers: Message) -> None:
    encoding = str(headers.get("content-transfer-encoding", "")).strip().lower()
    if encoding not in _PLAIN_ENCODINGS:
        raise Unsupported(f"the file field must be sent as it is, not as '{shorten(encoding)}'")


def _text(parameter: str | tuple[str | None, str | None, str] | None) -> str:
    """A header parameter, which RFC 2231 may have split into charset, language and value."""
    if isinstance(parameter, tuple):
        return parameter[2]
    return parameter or ""
