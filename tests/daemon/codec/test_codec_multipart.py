"""One file comes out of a form, or the form is refused with a reason."""

from __future__ import annotations

import pytest

from daemon.codec.multipart import read_file_field
from daemon.errors import Malformed, Unsupported

TYPE = "multipart/form-data; boundary=frame"


def part(name="file", content=b"content", headers=""):
    disposition = f'Content-Disposition: form-data; name="{name}"; filename="a.jpg"\r\n'
    return disposition.encode() + headers.encode() + b"\r\n" + content


def form(*parts, start=b"", end=b"--frame--\r\n"):
    return start + b"".join(b"--frame\r\n" + p + b"\r\n" for p in parts) + end


def test_the_file_and_its_type_are_found():
    body = form(part(headers="Content-Type: image/png\r\n"))

    assert read_file_field(body, TYPE) == (b"content", "image/png")


def test_a_file_without_a_type_has_none():
    assert read_file_field(form(part()), TYPE) == (b"content", "")


def test_other_fields_are_ignored():
    body = form(part("note", b"hello"), part(), part("more", b"more"))

    assert read_file_field(body, TYPE)[0] == b"content"


def test_text_before_and_after_the_parts_is_ignored():
    body = form(part(), start=b"preamble\r\n", end=b"--frame--\r\nepilogue")

    assert read_file_field(body, TYPE)[0] == b"content"


def test_a_body_that_begins_with_a_line_end_is_read():
    assert read_file_field(b"\r\n" + form(part()), TYPE)[0] == b"content"


@pytest.mark.parametrize("content", [b"", b"\r\n", b"\r\n--fram", b"\0\xff\r\n\r\n", b"--frame"])
def test_content_is_kept_byte_for_byte(content):
    assert read_file_field(form(part(content=content)), TYPE)[0] == content


def test_a_quoted_boundary_is_read():
    body = form(part()).replace(b"frame", b"a b:c")

    assert read_file_field(body, 'multipart/form-data; boundary="a b:c"')[0] == b"content"


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "b" * 71,
        "multipart/form-data; boundary=é",
    ],
)
def test_a_bad_boundary_is_malformed(content_type):
    with pytest.raises(Malformed, match="boundary"):
        read_file_field(form(part()), content_type)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no frame at all",
        form(part(), end=b""),
        form(part())[:-20],
        b"--frame",
        b"--frame\r\n",
        b"--framework\r\n" + part() + b"\r\n--frame--",
        form(part(headers="X: " + "y" * 5000 + "\r\n")),
        form(b"no header end"),
    ],
    ids=[
        "empty",
        "no frame",
        "no end",
        "cut",
        "only frame",
        "only line",
        "longer boundary",
        "long headers",
        "no header end",
    ],
)
def test_a_body_that_is_not_framed_is_malformed(body):
    with pytest.raises(Malformed):
        read_file_field(body, TYPE)


def test_no_file_is_malformed_and_the_fields_are_named():
    with pytest.raises(Malformed, match="got 0; fields: image"):
        read_file_field(form(part("image")), TYPE)


def test_two_files_are_malformed():
    with pytest.raises(Malformed, match="got 2"):
        read_file_field(form(part(), part()), TYPE)


def test_sixteen_fields_are_read_and_seventeen_refused():
    others = [part(f"n{number}") for number in range(15)]

    assert read_file_field(form(*others, part()), TYPE)[0] == b"content"
    with pytest.raises(Malformed, match="at most 16"):
        read_file_field(form(*others, part(), part("n16")), TYPE)


def test_base64_is_unsupported():
    with pytest.raises(Unsupported, match="base64"):
        read_file_field(form(part(headers="Content-Transfer-Encoding: base64\r\n")), TYPE)
