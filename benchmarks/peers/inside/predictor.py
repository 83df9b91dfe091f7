"""One TFLite model in a Python process: what the servers' adapters and the raw loop call.

Runs in each server's own environment, so it imports nothing but the runtime, NumPy and Pillow.
Settings come as JSON in the variable BENCH_PREDICTOR, as `Settings` has them.
"""

from __future__ import annotations

import io
import json
import os
import wave
from dataclasses import dataclass

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

TOP = 5
"""Classes listed in an answer to a file; inferd's own default."""


@dataclass(frozen=True)
class Settings:
    """Which model, for which requests.

    Attributes:
        form: "binary" or "json" (tensors), "jpeg" or "wav" (files).
        rows: of one request.
    """

    model: str
    form: str
    rows: int = 1

    @classmethod
    def from_environment(cls) -> Settings:
        """Those of this process."""
        return cls(**json.loads(os.environ["BENCH_PREDICTOR"]))


@dataclass(frozen=True)
class Tensor:
    """A tensor as clients know it: by its signature's name where there is one; -1 is open."""

    name: str
    dtype: str
    dims: tuple[int, ...]


class Predictor:
    """An interpreter with one thread, and what is constant about it."""

    def __init__(self, settings: Settings) -> None:
        self.interpreter = interpreter = Interpreter(model_path=settings.model, num_threads=1)
        details = interpreter.get_input_details()[0]
        self.source = details["index"]
        self.shape = tuple(int(side) for side in details["shape"])
        if details["shape_signature"][0] == -1:
            self.shape = (settings.rows, *self.shape[1:])
            interpreter.resize_tensor_input(self.source, self.shape)
        interpreter.allocate_tensors()
        self.dtype = np.dtype(details["dtype"])
        self.sinks = [each["index"] for each in interpreter.get_output_details()]
        self._decode = {"jpeg": decode_jpeg, "wav": decode_wav}.get(settings.form)

    def predict(self, values: np.ndarray) -> np.ndarray:
        """The first output, of values of the input's shape."""
        self.interpreter.set_tensor(self.source, values)
        self.interpreter.invoke()
        return self.interpreter.get_tensor(self.sinks[0])

    def read(self, body: bytes) -> np.ndarray:
        """The input, from its bytes or from a file."""
        if self._decode is not None:
            return self._decode(body, self.shape)
        return np.frombuffer(body, self.dtype).reshape(self.shape)

    def predict_bytes(self, body: bytes) -> np.ndarray:
        """The first output, of an input's bytes or a file."""
        return self.predict(self.read(body))

    def answer(self, file: bytes) -> dict[str, np.ndarray]:
        """What is in a picture or sound, best first.

        Returns:
            `index` (int32) and `score` (float32), flat; of a detector also `box`, float32 (n, 4).
        """
        first = self.predict_bytes(file)
        if len(self.sinks) > 1:
            return self._detections(first)
        scores = first.reshape(-1)
        best = np.argsort(scores)[: -TOP - 1 : -1]
        return {"index": best.astype(np.int32), "score": scores[best].astype(np.float32)}

    def describe(self) -> tuple[Tensor, Tensor]:
        """The input and the first output, as clients know them."""
        source = self.interpreter.get_input_details()[0]
        sink = self.interpreter.get_output_details()[0]
        names = [source["name"], sink["name"]]
        for signature in self.interpreter.get_signature_list().values():
            names = [signature["inputs"][0], signature["outputs"][0]]
        return _tensor(names[0], source), _tensor(names[1], sink)

    def _detections(self, boxes: np.ndarray) -> dict[str, np.ndarray]:
        classes, scores = (
            self.interpreter.get_tensor(sink).reshape(-1) for sink in self.sinks[1:3]
        )
        return {"index": classes.astype(np.int32), "score": scores, "box": boxes.reshape(-1, 4)}


def decode_jpeg(file: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """A picture as uint8 (1, height, width, 3), stretched to the model's size."""
    picture = Image.open(io.BytesIO(file)).convert("RGB")
    height, width = shape[1:3]
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(1, height, width, 3)


def decode_wav(file: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The start of a 16-bit mono sound as float32 of this shape, -1..1."""
    with wave.open(io.BytesIO(file)) as sound:
        samples = np.frombuffer(sound.readframes(shape[-1]), "<i2")
    return (samples / np.float32(32768)).astype(np.float32).reshape(shape)


def _tensor(name: str, details: dict[str, object]) -> Tensor:
    dims = tuple(int(side) for side in details["shape_signature"])
    return Tensor(name, np.dtype(details["dtype"]).name, dims)
