"""Small pictures, sounds and model reports for tests of the pipeline, made in memory."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import soundfile
from PIL import Image
from support.tables import read_tables

from accelerators.base import (
    DataType,
    ModelMetadata,
    ModelReport,
    Quantization,
    SignatureSpec,
    TensorMetadata,
    TensorSpec,
)
from daemon.modelfile import ModelTables
from daemon.pipeline.media import MediaLimits
from daemon.pipeline.profiles import build_profile

LIMITS = MediaLimits(max_pixels=1_000_000, max_audio_s=10.0)
RAW_UINT8 = Quantization(scale=1 / 128, zero_point=128)
SCORES = TensorSpec("scores", DataType.FP32, (1, 10))


def picture_spec(shape=(1, 32, 32, 3), datatype=DataType.UINT8, quantization=RAW_UINT8):
    return TensorSpec("image", datatype, shape, quantization)


def make_report(inputs, outputs=(SCORES,), *, inputs_metadata=(), outputs_metadata=()):
    """The report of a model with one signature."""
    return ModelReport(
        digest="0" * 64,
        runtime="none",
        device="cpu",
        requested_device="cpu",
        degraded_reason="",
        signatures=(SignatureSpec("serving_default", tuple(inputs), tuple(outputs)),),
        metadata=ModelMetadata(inputs=tuple(inputs_metadata), outputs=tuple(outputs_metadata)),
        stateful=False,
        max_batch=1,
        memory_bytes=0,
        load_s=0.0,
        warm_s=0.0,
    )


def make_tables(**tables):
    """The tables of a model.toml, each a dictionary of its keys."""
    return read_tables(ModelTables, tables)


def make_profile(spec, *, outputs=(SCORES,), labels=(), metadata=(), tables=None, out=()):
    """The profile of a model with one input."""
    report = make_report([spec], outputs, inputs_metadata=metadata, outputs_metadata=out)
    return build_profile(tables or ModelTables(), report, labels)


def picture_profile(spec=None, **table):
    """A profile whose input is a picture, with keys of model.toml's [input]."""
    return make_profile(spec or picture_spec(), tables=make_tables(input=table))


def sound_profile(shape=(1, 1600), *, rate=16000, channels=1, datatype=DataType.FP32):
    spec = TensorSpec("audio", datatype, shape)
    metadata = TensorMetadata(content="audio", sample_rate=rate, channels=channels)
    return make_profile(spec, metadata=(metadata,))


def random_picture(width=50, height=40, *, mode="RGB", seed=7):
    """A smooth picture in which every corner differs, so that turning it shows."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return smooth.convert(mode)


def encode(picture, kind="PNG", **options):
    target = io.BytesIO()
    picture.save(target, kind, **options)
    return target.getvalue()


def exif_bytes(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def png_of_declared_size(width, height):
    """A PNG whose header promises a picture that its few bytes do not hold."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
            _png_chunk(b"IDAT", bytes(8)),
            _png_chunk(b"IEND", b""),
        )
    )


def _png_chunk(name, data):
    checksum = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


def webp_of_declared_size(width, height):
    """A WebP container whose header promises a canvas."""
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif_with_frame(screen, frame):
    """A GIF whose first frame may be larger than its screen; (width, height) each."""
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(6)
    return head + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\x00;"


def tone(rate, *, seconds=0.2, channels=1, hertz=440.0):
    """A sine of half amplitude, float32 (frames, channels)."""
    time = np.arange(round(rate * seconds)) / rate
    wave = (0.5 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)
    return np.repeat(wave[:, None], channels, axis=1)


def make_wav(samples, rate, *, subtype="PCM_16", kind="WAV"):
    target = io.BytesIO()
    soundfile.write(target, samples, rate, subtype=subtype, format=kind)
    return target.getvalue()


def wav_header(*, tag=1, channels=1, rate=16000, bits=16, data_bytes=3200, said_bytes=None):
    """A WAV file of silence whose header says what it is told to say."""
    block = channels * bits // 8
    head = struct.pack(
        "<4sIHHIIHH", b"fmt ", 16, tag, channels, rate, rate * block & 0xFFFFFFFF, block, bits
    )
    said = data_bytes if said_bytes is None else said_bytes
    body = b"WAVE" + head + b"data" + struct.pack("<I", said) + bytes(data_bytes)
    return b"RIFF" + struct.pack("<I", len(body)) + body
