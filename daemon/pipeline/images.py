"""Encoded pictures to uint8 pixels of the size a model takes. Pure.

Rules:
1. The content decides the format; only the decoder of that format is used.
2. The declared size is checked against the limit before any pixel is decoded.
3. A picture that ends early or does not decode is refused, never filled up.
4. EXIF orientation is honoured; boxes are of the picture as a person sees it.
5. Transparency is dropped (the colours stored under it show), 16-bit grey keeps its high byte,
   colour profiles are not applied, only the first frame of a moving picture is used.
6. Every resize is an antialiased bilinear one: unfiltered ones change labels.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, assert_never

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from daemon.errors import Malformed, TooLarge
from daemon.pipeline.headers import declared_size
from daemon.pipeline.inputs import Color, Resize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daemon.pipeline.inputs import ImageInput

_DRAFT_MARGIN = 2
"""A large JPEG is decoded at 1/2, 1/4 or 1/8 only if it stays this many times the size asked for,
so that the antialiased resize that follows still has something to filter. Answers then move as
far as they do when every pixel is off by one at random (docs/media.md has the figures)."""

_DRAFT_MIN_PIXELS = 1_000_000
"""Pixels; decoding and resizing a smaller JPEG takes about 4 ms, so that little is to be won: it
gives the very pixels that Pillow gives."""

_DAMAGED = (
    OSError,
    SyntaxError,  # how Pillow's plug-ins say "not one of mine"
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    struct.error,
    UserWarning,  # a PNG that calls itself animated and is not, where warnings are errors
    Image.DecompressionBombError,
)
"""What Pillow's plug-ins raise on damaged data. OSError, SyntaxError, ValueError and UserWarning
were seen when 400,000 damaged files were fed to Pillow 13; the others its own code expects."""

_ORIENTATION_TAG = 0x0112
_EXIF_SHORT = 3  # the TIFF type of the orientation
_MAX_IFD_ENTRIES = 512  # a camera writes some twenty
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to what turns the stored picture upright."""

_MODES = {Color.RGB: "RGB", Color.BGR: "RGB", Color.GRAY: "L", Color.RGBA: "RGBA"}


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the model's frame lies on the picture that was sent, as fractions of each.

    picture = shift + scale * frame, for y and x.
    """

    shift_y: float
    scale_y: float
    shift_x: float
    scale_x: float


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """A JPEG whose EXIF is not searched for a print size.

    Pillow's search warns with text from the file, and Python keeps every such text for ever.
    """

    def _read_dpi_from_exif(self) -> None:
        return


_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": _Jpeg,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}


def read_picture(
    kind: str, data: bytes, image: ImageInput, *, max_pixels: int
) -> tuple[NDArray[np.uint8], Placement | None]:
    """Decode a picture and fit it into the model's frame.

    Args:
        kind: what `daemon.pipeline.kinds.picture_kind` said.
        data: the whole file.
        image: what the model takes.
        max_pixels: width times height that is still decoded.

    Returns:
        uint8 (height, width, channels), or (channels, height, width) where the model has channels
        first; and where the frame lies on the picture, None when it is the whole picture.

    Raises:
        Malformed: the data is damaged, ends early, or is made to keep the decoder busy.
        UnsupportedMedia: a run-length BMP.
        TooLarge: it has more pixels than allowed; nothing was decoded.
    """
    _check_size(declared_size(kind, data), max_pixels)
    with _open(kind, data) as picture:
        _check_size(picture.size, max_pixels)
        if not isinstance(picture, _Jpeg):
            _load(kind, picture)  # a PNG may name its orientation after its pixels
        orientation = _orientation(picture.info.get("exif"))
        is_turned = orientation >= 5  # noqa: PLR2004 (from 5 on, width and height change places)
        fit = _fit(_swapped(picture.size) if is_turned else picture.size, image)
        size = _swapped(fit.size) if is_turned else fit.size
        box = _swapped_box(fit.box) if is_turned else fit.box
        if isinstance(picture, _Jpeg):
            box = _draft(picture, size, box)
            _load(kind, picture)
        stored = _resized(picture, _MODES[image.color], size, box)
    upright = stored.transpose(_TRANSPOSE[orientation]) if orientation != 1 else stored
    return _pixels(_framed(upright, fit, image), image), fit.placement


@dataclass(frozen=True, slots=True)
class _Fit:
    """How a picture of one size meets a frame of another.

    Attributes:
        size: (width, height) to resize to; smaller than the frame when bars are left.
        box: (left, top, right, bottom), the part of the picture that is used.
        corner: (left, top) in the frame, where it is put.
    """

    size: tuple[int, int]
    box: tuple[float, float, float, float]
    corner: tuple[int, int] = (0, 0)
    placement: Placement | None = None


def _open(kind: str, data: bytes) -> ImageFile.ImageFile:
    # The plug-in is called itself: Image.open would try others and has a limit of its own, which
    # is one for the whole process and speaks through warnings.
    try:
        return _PLUGINS[kind](BytesIO(data))
    except _DAMAGED as exc:
        raise _damaged(kind) from exc


def _load(kind: str, picture: ImageFile.ImageFile) -> None:
    try:
        picture.load()
    except _DAMAGED as exc:
        raise _damaged(kind) from exc


def _damaged(kind: str) -> Malformed:
    return Malformed(f"the {kind} picture is damaged or ends early")


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise TooLarge(
            f"the picture has {width} x {height} pixels; the limit is {max_pixels} pixels",
            limit=max_pixels,
            unit="pixels",
        )


def _orientation(exif: object) -> int:
    """The EXIF orientation, 1..8; 1 when there is none or it cannot be read.

    Source: EXIF 2.32, section 4.6.2; the first directory of the TIFF it holds.
    """
    if not isinstance(exif, bytes):
        return 1
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(min(count, _MAX_IFD_ENTRIES)):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + entry * 12)
            if tag == _ORIENTATION_TAG and kind == _EXIF_SHORT:
                return value if value in _TRANSPOSE else 1
    except struct.error:
        return 1
    return 1


def _swapped(size: tuple[int, int]) -> tuple[int, int]:
    return size[1], size[0]


def _swapped_box(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """The box in the stored picture: it is centred, so turning only changes its axes."""
    left, top, right, bottom = box
    return top, left, bottom, right


def _fit(size: tuple[int, int], image: ImageInput) -> _Fit:
    width, height = size
    whole = (0.0, 0.0, float(width), float(height))
    match image.resize:
        case Resize.STRETCH:
            return _Fit((image.width, image.height), whole)
        case Resize.LETTERBOX:
            return _letterbox(width, height, whole, image)
        case Resize.CROP:
            return _crop(width, height, image)
        case _:
            assert_never(image.resize)


def _letterbox(
    width: int, height: int, whole: tuple[float, float, float, float], image: ImageInput
) -> _Fit:
    scale = min(image.width / width, image.height / height)
    used_width = min(image.width, max(1, round(width * scale)))
    used_height = min(image.height, max(1, round(height * scale)))
    left, top = (image.width - used_width) // 2, (image.height - used_height) // 2
    placement = Placement(
        shift_y=-top / used_height,
        scale_y=image.height / used_height,
        shift_x=-left / used_width,
        scale_x=image.width / used_width,
    )
    return _Fit((used_width, used_height), whole, (left, top), placement)


def _crop(width: int, height: int, image: ImageInput) -> _Fit:
    scale = max(image.width / width, image.height / height)
    used_width, used_height = min(width, image.width / scale), min(height, image.height / scale)
    left, top = (width - used_width) / 2, (height - used_height) / 2
    placement = Placement(
        shift_y=top / height,
        scale_y=used_height / height,
        shift_x=left / width,
        scale_x=used_width / width,
    )
    box = (left, top, left + used_width, top + used_height)
    return _Fit((image.width, image.height), box, placement=placement)


def _draft(
    picture: _Jpeg, size: tuple[int, int], box: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    """Let a large JPEG be decoded at a fraction of its size; the box in what will be decoded."""
    full_width, full_height = picture.size
    if full_width * full_height < _DRAFT_MIN_PIXELS:
        return box
    wanted_width = size[0] * _DRAFT_MARGIN * full_width / (box[2] - box[0])
    wanted_height = size[1] * _DRAFT_MARGIN * full_height / (box[3] - box[1])
    drafted = picture.draft(None, (math.ceil(wanted_width), math.ceil(wanted_height)))
    if drafted is None:
        return box
    factor = drafted[1][2] / full_width
    left, top, right, bottom = (edge * factor for edge in box)
    return left, top, right, bottom


def _resized(
    picture: Image.Image,
    mode: str,
    size: tuple[int, int],
    box: tuple[float, float, float, float],
) -> Image.Image:
    picture.info.pop("transparency", None)  # else converting would warn or blend
    plain = _without_depth(picture) if picture.mode.startswith("I") else picture
    if plain.mode in ("1", "LA"):
        plain = plain.convert("L")
    # Grey is resized as grey and only then spread over the channels.
    if plain.mode not in (mode, "L"):
        plain = plain.convert(mode)
    resized = plain.resize(size, Image.Resampling.BILINEAR, box)
    return resized if resized.mode == mode else resized.convert(mode)


def _without_depth(picture: Image.Image) -> Image.Image:
    """The high byte of 16-bit grey."""
    deep = np.asarray(picture).clip(0, 0xFFFF)
    return Image.fromarray((deep >> 8).astype(np.uint8))


def _framed(picture: Image.Image, fit: _Fit, image: ImageInput) -> Image.Image:
    if picture.size == (image.width, image.height):
        return picture
    frame = Image.new(picture.mode, (image.width, image.height))
    frame.paste(picture, fit.corner)
    return frame


def _pixels(picture: Image.Image, image: ImageInput) -> NDArray[np.uint8]:
    pixels = np.frombuffer(picture.tobytes(), np.uint8).reshape(image.height, image.width, -1)
    if image.color is Color.BGR:
        pixels = pixels[:, :, ::-1]
    return pixels.transpose(2, 0, 1) if image.channels_first else pixels
