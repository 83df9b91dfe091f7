"""Trains and saves small models with TensorFlow, one for each thing that a source can be.

`sources` runs this file as a program of its own, so that TensorFlow stays out of the tests'
process; it takes some ten seconds. Data and weights come from fixed seeds.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

TIMEOUT_S = 300
HELD_OUT = 500
CLASSES = 10
SIDE = 28
NO_TENSORFLOW = "needs tensorflow: pip install --editable '.[build]'"
HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None


def write_sources(folder: Path) -> None:
    """Write every source and its data below a folder; `names` are those of the functions here."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "KERAS_HOME": str(folder)}
    subprocess.run(
        [sys.executable, __file__, str(folder)],
        check=True,
        timeout=TIMEOUT_S,
        env={**os.environ, **quiet},
        stdout=subprocess.DEVNULL,
    )


def pictures(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of ten classes that a small network tells apart, if not always.

    Returns:
        uint8 (count, 784) and int32 (count,).
    """
    prototypes = np.random.default_rng(7).random((CLASSES, SIDE * SIDE)) ** 3
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, CLASSES, count).astype(np.int32)
    strength = rng.uniform(0.5, 1.2, (count, 1))
    noise = rng.normal(0, 0.9, (count, SIDE * SIDE))
    values = np.clip(prototypes[classes] * strength + noise, 0, 1)
    return np.round(values * 255).astype(np.uint8), classes


def write_pictures(folder: Path, seed: int, count: int) -> None:
    """Write them as PNG files, each in the folder of its class."""
    for number, (pixels, kind) in enumerate(zip(*pictures(seed, count), strict=True)):
        path = folder / f"class-{kind}" / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.reshape(SIDE, SIDE)).save(path)


def _digits(folder: Path, keras) -> None:
    """784-64-64-10 as model.h5, and what it makes of the held-out pictures: float32 (500, 10)."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((SIDE * SIDE,)),
            layers.Dense(64, activation="relu"),
            layers.Dense(64, activation="relu"),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    pixels, classes = pictures(1, 4000)
    model.fit(pixels / 255.0, classes, epochs=2, batch_size=64, verbose=0)
    model.save(folder / "model.h5")
    model.save(folder / "model.keras")
    held_out, _ = pictures(2, HELD_OUT)
    np.save(folder / "predicted.npy", model.predict(held_out / 255.0, verbose=0))
    write_pictures(folder / "held-out", 2, HELD_OUT)
    write_pictures(folder / "representative", 3, 100)


def _two_in_three_out(folder: Path, keras) -> None:
    layers = keras.layers
    a, b = keras.Input((8,), name="a"), keras.Input((3,), name="b")
    hidden = layers.Dense(16, activation="relu")(layers.Concatenate()([a, b]))
    outputs = {
        "p": layers.Dense(4, activation="softmax")(hidden),
        "q": layers.Dense(1)(hidden),
        "r": layers.Dense(2)(hidden),
    }
    model = keras.Model([a, b], outputs)
    model.save(folder / "two-in-three-out.keras")
    rng = np.random.default_rng(5)
    rows = {
        name: rng.normal(size=(40, size)).astype(np.float32) for name, size in (("a", 8), ("b", 3))
    }
    np.savez(folder / "two-in.npz", **rows)
    answers = model.predict([rows["a"], rows["b"]], verbose=0)
    np.savez(folder / "three-out.npz", **answers)


def _signatures(folder: Path, tf) -> None:
    """SavedModels: one with two signatures, one of words, one that needs TensorFlow, one bare."""

    class Module(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = tf.Variable(tf.random.stateless_normal((8, 4), (1, 2)))

        @tf.function(input_signature=[tf.TensorSpec((None, 8), tf.float32, name="x")])
        def scores(self, x):
            return {"scores": tf.nn.softmax(x @ self.weights)}

        @tf.function(input_signature=[tf.TensorSpec((None, 8), tf.float32, name="x")])
        def features(self, x):
            return {"features": x @ self.weights}

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="word")])
        def known(self, word):
            return {"known": tf.cast(tf.equal(word, "yes"), tf.float32)}

        @tf.function(input_signature=[tf.TensorSpec((None, 4, 4), tf.float32, name="x")])
        def inverse(self, x):
            return {"y": tf.linalg.inv(x), "gamma": tf.math.digamma(x)}

    module = Module()
    save = tf.saved_model.save
    two = {"serving_default": module.scores, "features": module.features}
    save(module, str(folder / "two-signatures"), signatures=two)
    save(module, str(folder / "words"), signatures=module.known)
    save(module, str(folder / "select"), signatures=module.inverse)
    save(module, str(folder / "bare"))
    rows = np.random.default_rng(5).normal(size=(40, 8)).astype(np.float32)
    np.savez(folder / "eights.npz", x=rows)
    np.save(folder / "scores.npy", module.scores(rows)["scores"].numpy())
    np.save(folder / "features.npy", module.features(rows)["features"].numpy())
    np.savez(folder / "words.npz", word=np.array(["yes", "no", "maybe", "yes "] * 5))


def _others(folder: Path, keras) -> None:
    """A recurrent one, one of two classes with one number, a sound model, weights, and code."""
    layers = keras.layers
    lstm = keras.Sequential([keras.Input((6, 8)), layers.LSTM(4), layers.Dense(3)])
    lstm.save(folder / "lstm.keras")
    rows = np.random.default_rng(6).normal(size=(20, 6, 8)).astype(np.float32)
    np.savez(folder / "sequences.npz", x=rows)

    binary = keras.Sequential([keras.Input((8,)), layers.Dense(1, activation="sigmoid")])
    binary.save(folder / "binary.keras")
    rows = np.random.default_rng(7).normal(size=(30, 8)).astype(np.float32)
    right = (binary.predict(rows, verbose=0)[:, 0] > 0.5).astype(np.int32)
    np.savez(folder / "binary.npz", x=rows, y=right)

    sound = keras.Sequential([keras.Input((1600,)), layers.Dense(3, activation="softmax")])
    sound.save(folder / "sound.keras")

    binary.save_weights(folder / "only.weights.h5")
    code = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x * 2)])
    code.save(folder / "code.keras")
    code.save(folder / "code.h5")


def _main(folder: Path) -> None:
    import keras  # noqa: PLC0415 (in the program of its own)
    import tensorflow as tf  # noqa: PLC0415

    keras.utils.set_random_seed(1)
    _digits(folder, keras)
    _two_in_three_out(folder, keras)
    _signatures(folder, tf)
    _others(folder, keras)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
