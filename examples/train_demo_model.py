"""Trains the demo model: ten kinds of clothing in 28x28 pictures, 784-64-64-10, int8.

Writes model.h5 (to --keep, not kept in the repository), model.tflite, labels.txt and one sample
picture for each class, and prints what README.md beside the model says of its accuracy.

Not needed to run inferd. It needs TensorFlow, in an environment of its own, and the data:

    apt-get install dataset-fashion-mnist
    python3 -m venv /tmp/training
    /tmp/training/bin/pip install -e '.[build]'
    /tmp/training/bin/python examples/train_demo_model.py
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

from accelerators.base import ModelMetadata, TensorMetadata
from daemon.build.metadata import write_metadata

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# Class names by class number, in plain words. Source: the data set's README, "Labels".
LABELS = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
# Where Debian's package puts the data.
DATA = Path("/usr/share/datasets/fashion-mnist")
MODEL_FOLDER = Path(__file__).parent / "demo" / "fashion"
SEED = 20240229
EPOCHS = 30
BATCH = 128
SIDE_PIXELS = 28
CALIBRATION_PICTURES = 1000
# A sample shows what the model can do, so it is a picture the model is sure of.
SAMPLE_MIN_SCORE = 0.9

# Pixels 0..255 become the network's numbers: real = (pixel - MEAN) / STD.
MEAN, STD = 0.0, 255.0
METADATA = ModelMetadata(
    name="fashion",
    description="Ten kinds of clothing in 28x28 grey pictures; a 784-64-64-10 network, int8.",
    version="1",
    author="the inferd authors",
    license="Apache-2.0; trained on Fashion-MNIST (MIT, (c) 2017 Zalando SE)",
    inputs=(
        TensorMetadata(
            name="image",
            description="grey picture, the thing light on a black ground",
            content="image",
            mean=(MEAN,),
            std=(STD,),
        ),
    ),
    outputs=(
        TensorMetadata(
            name="scores",
            description="probability of each class, 0..1",
            content="feature",
            labels=LABELS,
        ),
    ),
)


def main() -> None:
    """Train, convert, measure, and write the model folder."""
    arguments = parse_arguments()
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(SEED)
    train_pictures, train_classes = read_set(arguments.data, "train")
    test_pictures, test_classes = read_set(arguments.data, "t10k")

    h5_path = arguments.keep / "model.h5"
    train(train_pictures, train_classes).save(h5_path)
    converted = convert(keras.models.load_model(h5_path), train_pictures)
    model = write_metadata(converted, METADATA)
    scores = run(model, test_pictures)

    folder = arguments.folder
    (folder / "model.tflite").write_bytes(model)
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    write_samples(folder / "samples", test_pictures, test_classes, scores)
    right = int((scores.argmax(axis=1) == test_classes).sum())
    print(f"{right} of {len(test_classes)} test pictures are right")
    print(f"model.tflite: {len(model)} bytes, sha256 {hashlib.sha256(model).hexdigest()}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the four .gz files")
    parser.add_argument("--folder", type=Path, default=MODEL_FOLDER, help="model folder to write")
    parser.add_argument("--keep", type=Path, help="folder for model.h5; default: a temporary one")
    arguments = parser.parse_args()
    if arguments.keep is None:
        arguments.keep = Path(tempfile.mkdtemp(prefix="fashion-"))
    return arguments


def read_set(folder: Path, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read one of the two sets: uint8 (N, 28, 28, 1) pictures and uint8 (N,) class numbers."""
    pictures = read_idx(folder / f"{name}-images-idx3-ubyte.gz")
    return pictures[..., np.newaxis], read_idx(folder / f"{name}-labels-idx1-ubyte.gz")


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of bytes: two zeros, type 8, rank, big-endian sizes, then the values."""
    data = gzip.decompress(path.read_bytes())
    rank = data[3]
    shape = np.frombuffer(data, ">u4", rank, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def network() -> keras.Model:
    """The network, not trained: float32 (N, 28, 28, 1) pictures, 0..1, to (N, 10) probabilities."""
    return keras.Sequential(
        [
            keras.Input((SIDE_PIXELS, SIDE_PIXELS, 1), name="image"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(len(LABELS), activation="softmax", name="scores"),
        ]
    )


def train(pictures: NDArray[np.uint8], classes: NDArray[np.uint8]) -> keras.Model:
    """Train the network."""
    model = network()
    steps = EPOCHS * (len(pictures) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(to_real(pictures), classes, batch_size=BATCH, epochs=EPOCHS, verbose=2)
    return model


def to_real(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels as the network's numbers."""
    return (pictures.astype(np.float32) - MEAN) / STD


def convert(model: keras.Model, pictures: NDArray[np.uint8]) -> bytes:
    """Convert to a TFLite file whose every tensor is an integer: uint8 in, uint8 out."""

    def representative() -> Iterator[list[NDArray[np.float32]]]:
        for picture in pictures[:CALIBRATION_PICTURES]:
            yield [to_real(picture[np.newaxis])]

    converter = tf.lite.TFLiteConverter.from_keras_model(serving_model(model))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.uint8
    converter.inference_output_type = tf.uint8
    return converter.convert()


def serving_model(model: keras.Model) -> keras.Model:
    """Return the trained layers behind a reshape that needs no arithmetic on the batch size.

    Keras' own Flatten becomes four operators that compute the shape at run time, and a model with
    a shape computed at run time is not accelerated.
    """
    image = keras.Input((SIDE_PIXELS, SIDE_PIXELS, 1), name="image")
    values = keras.ops.reshape(image, (-1, SIDE_PIXELS * SIDE_PIXELS))
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dense):
            values = layer(values)
    return keras.Model(image, {"scores": values})


def run(model: bytes, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Run the finished file on every picture: float32 (N, 10) scores, 0..1."""
    interpreter = Interpreter(model_content=model)
    source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.resize_tensor_input(source["index"], pictures.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], pictures)
    interpreter.invoke()
    scale, zero_point = sink["quantization"]
    stored = interpreter.get_tensor(sink["index"]).astype(np.float32)
    return (stored - np.float32(zero_point)) * np.float32(scale)


def write_samples(
    folder: Path,
    pictures: NDArray[np.uint8],
    classes: NDArray[np.uint8],
    scores: NDArray[np.float32],
) -> None:
    """Write, for each class, the first test picture the model is sure of."""
    folder.mkdir(parents=True, exist_ok=True)
    sure = (scores.argmax(axis=1) == classes) & (scores.max(axis=1) >= SAMPLE_MIN_SCORE)
    for number, label in enumerate(LABELS):
        first = int(np.flatnonzero(sure & (classes == number))[0])
        path = folder / f"{label.replace(' ', '-')}.png"
        Image.fromarray(pictures[first, ..., 0]).save(path, optimize=True)
        print(f"{path.name}: test picture {first}, score {scores[first, number]:.3f}")


if __name__ == "__main__":
    main()
