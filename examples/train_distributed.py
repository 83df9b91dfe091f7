"""Trains the demo classifier with two workers on one machine, and bundles it from both its files.

Each worker is a process with half of the data; after every step tf.distribute's
MultiWorkerMirroredStrategy adds up their gradients, so both have the same network all the time. On
two machines only the addresses would be others. Keras' own `fit` does not know this strategy, so
the loop is written out, as TensorFlow's guide to custom training does.

Writes model.h5, saved_model/, pictures to evaluate with, and a bundle made of each; says whether
the two bundles answer alike. It needs the extra `build` and the data:

    apt-get install dataset-fashion-mnist
    pip install -e '.[build]'
    python examples/train_distributed.py --out /tmp/fashion
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

# TensorFlow reads it when it is imported: what it says of every start is no news.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from PIL import Image
from train_demo_model import DATA, LABELS, MEAN, STD, network, read_set, to_real

from updater.bundle import open_bundle

if TYPE_CHECKING:
    from numpy.typing import NDArray

WORKERS = 2
SEED = 20240229
BATCH = 64  # pictures of each worker in each step
RATE = 2e-3
EVALUATED = 500  # test pictures that the bundles are compared by
REPRESENTATIVE = 200  # training pictures that int8 takes its ranges from
TRAINING_S = 3600  # that it may take
SOURCES = ("model.h5", "saved_model")


def main() -> None:
    """Start the workers, or be one of them."""
    arguments = parse_arguments()
    if arguments.worker is None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        train_with_workers(arguments)
        bundle_both(arguments)
    else:
        work(arguments)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the four .gz files")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--optimize", default="auto", help="as inferctl bundle build")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--addresses", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


def train_with_workers(arguments: argparse.Namespace) -> None:
    """Start both workers and wait for them. One that fails takes the other with it."""
    addresses = free_addresses(WORKERS)
    command = [sys.executable, __file__, *sys.argv[1:], "--addresses", *addresses]
    until = time.monotonic() + TRAINING_S
    with ExitStack() as stack:
        workers = []
        for number in range(WORKERS):
            log = stack.enter_context((arguments.out / f"worker-{number}.log").open("wb"))
            started = subprocess.Popen(  # noqa: S603 (this script)
                [*command, "--worker", str(number)], stdout=log, stderr=subprocess.STDOUT
            )
            stack.callback(started.wait)
            stack.callback(started.kill)
            workers.append(started)
        while any(worker.poll() is None for worker in workers) and time.monotonic() < until:
            if any(worker.poll() for worker in workers):
                break
            time.sleep(0.1)
        codes = [worker.poll() for worker in workers]
    if any(codes) or None in codes:
        sys.exit(f"training failed, see {arguments.out}/worker-*.log")
    print((arguments.out / "worker-0.log").read_text(), end="")


def free_addresses(count: int) -> list[str]:
    """Addresses on this machine that nobody listens at."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def work(arguments: argparse.Namespace) -> None:
    """Be one worker: train, and where it is the first one, save."""
    cluster = {"worker": arguments.addresses}
    task = {"type": "worker", "index": arguments.worker}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    keras.utils.set_random_seed(SEED)
    pictures, classes = read_set(arguments.data, "train")
    model = train(strategy, to_real(pictures), classes, epochs=arguments.epochs)
    if arguments.worker == 0:
        save(model, arguments.out)
        test_pictures, test_classes = read_set(arguments.data, "t10k")
        found = model(to_real(test_pictures)).numpy().argmax(axis=1)
        print(f"{(found == test_classes).mean():.4f} of the test pictures are right")
    meet(strategy)


def meet(strategy: tf.distribute.Strategy) -> None:
    """Wait until all workers are here: one that leaves early is taken for crashed by the others."""

    @tf.function
    def count() -> tf.Tensor:
        ones = strategy.run(lambda: tf.constant(1.0))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, ones, axis=None)

    count()


def train(
    strategy: tf.distribute.Strategy,
    pictures: NDArray[np.float32],
    classes: NDArray[np.uint8],
    *,
    epochs: int,
) -> keras.Model:
    """Train with all workers; returns the network as this one has it, which is as all have it."""
    with strategy.scope():
        model = network()
        optimizer = keras.optimizers.Adam(RATE)
        optimizer.build(model.trainable_variables)

    def share(context: tf.distribute.InputContext) -> tf.data.Dataset:
        """This worker's part of the data."""
        data = tf.data.Dataset.from_tensor_slices((pictures, classes))
        data = data.shard(context.num_input_pipelines, context.input_pipeline_id)
        return data.shuffle(len(pictures), seed=SEED).repeat().batch(BATCH)

    def learn(batch: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """One step of one worker; its gradients are added to the others' when they are applied."""
        x, y = batch
        with tf.GradientTape() as tape:
            losses = keras.losses.sparse_categorical_crossentropy(y, model(x, training=True))
            loss = tf.nn.compute_average_loss(losses, global_batch_size=BATCH * WORKERS)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    @tf.function
    def step(batches: tf.distribute.DistributedIterator) -> tf.Tensor:
        losses = strategy.run(learn, args=(next(batches),))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    batches = iter(strategy.distribute_datasets_from_function(share))
    for epoch in range(epochs):
        for _ in range(len(pictures) // (BATCH * WORKERS)):
            loss = step(batches)
        print(f"epoch {epoch + 1} of {epochs}: loss {float(loss):.4f}", flush=True)
    return model


def save(trained: keras.Model, out: Path) -> None:
    """Write model.h5 and a SavedModel of a network that knows nothing of any worker."""
    model = network()
    model.set_weights(trained.get_weights())
    model.save(out / "model.h5")
    model.export(out / "saved_model", verbose=False)


def bundle_both(arguments: argparse.Namespace) -> None:
    """Make a bundle of each file, and compare what the models in them answer."""
    out = arguments.out
    (out / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    pictures, classes = read_set(arguments.data, "train")
    write_pictures(out / "representative", pictures[:REPRESENTATIVE], classes[:REPRESENTATIVE])
    pictures, classes = read_set(arguments.data, "t10k")
    write_pictures(out / "eval", pictures[:EVALUATED], classes[:EVALUATED])
    bundles = [bundle(arguments, source) for source in SOURCES]
    first, second = (answers(each, to_real(pictures[:EVALUATED])) for each in bundles)
    if not np.array_equal(first, second):
        sys.exit(f"the two bundles differ by {np.abs(first - second).max()}")
    print(f"both bundles give the same answers to {len(first)} pictures")


def write_pictures(folder: Path, pictures: NDArray[np.uint8], classes: NDArray[np.uint8]) -> None:
    """Write pictures into folders named for their classes."""
    for number, (picture, label) in enumerate(zip(pictures, classes, strict=True)):
        path = folder / LABELS[label] / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[..., 0]).save(path)


def bundle(arguments: argparse.Namespace, source: str) -> Path:
    """Make the bundle of one file."""
    out = arguments.out
    made = out / f"fashion-{source.partition('.')[0]}.bundle"
    options = {
        "--name": "fashion",
        "--optimize": arguments.optimize,
        "--labels": out / "labels.txt",
        "--mean": MEAN,
        "--std": STD,
        "--eval": out / "eval",
        "--description": "Ten kinds of clothing in 28x28 grey pictures.",
    }
    if arguments.optimize in ("auto", "int8"):
        options["--representative"] = out / "representative"
    words = [str(word) for pair in options.items() for word in pair]
    command = [sys.executable, "-m", "daemon.cli.main", "bundle", "build", str(out / source)]
    subprocess.run([*command, "-o", str(made), *words], check=True)  # noqa: S603 (this project)
    return made


def answers(made: Path, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the model in a bundle makes of real pictures: float32 (N, 10)."""
    with tempfile.TemporaryDirectory() as folder:
        open_bundle(made, Path(folder), limit_bytes=made.stat().st_size)
        interpreter = Interpreter(model_path=str(Path(folder) / "model.tflite"))
        source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        interpreter.resize_tensor_input(source["index"], pictures.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(source["index"], stored(pictures, source))
        interpreter.invoke()
        return np.array(interpreter.get_tensor(sink["index"]), np.float32)


def stored(real: NDArray[np.float32], details: dict[str, object]) -> NDArray[np.generic]:
    """Real numbers as a tensor holds them."""
    scale, zero_point = details["quantization"]
    if not scale:
        return real
    limits = np.iinfo(details["dtype"])
    numbers = np.clip(np.round(real / scale) + zero_point, limits.min, limits.max)
    return numbers.astype(details["dtype"])


if __name__ == "__main__":
    main()
