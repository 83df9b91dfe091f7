"""The program that TensorFlow runs in: opens one model, converts it, and answers for it.

A child of daemon/build/converter.py, and the only place that imports TensorFlow. It stands alone,
so that nothing of TensorFlow's can reach the process that writes and signs.

    convert_main.py PARENT_PID MEMORY_MIB SCRATCH

Requests come as lines of JSON on stdin, answers go to stdout, one for each; all that TensorFlow
prints goes to stderr. A request that fails is answered with its `problem`.

    {"do": "open", "kind": K, "source": PATH}   K: "keras-h5", "keras" or "saved-model"
        -> {"signatures": [...], "versions": {...}}
    {"do": "convert", "variant": V, "out": PATH, "signature": S, "rows": PATH or null}
        -> {"note": ""} or {"problem": "...", "operators": [...]}
    {"do": "predict", "signature": S, "rows": PATH, "out": PATH}
        -> {"rows": N}

Files of rows are as daemon/build/rows.py says.

Untrusted sources: a Keras file is data here, not a program (`safe_mode`, and a Keras that keeps to
it); code that it carries is refused. A SavedModel is a graph of TensorFlow's operators, some of
which read and write files: TensorFlow runs it with this process' rights.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_PR_SET_PDEATHSIG = 1
_MAX_FILE_BYTES = 8**11 - 1  # as much as a bundle's file can have
_LEAST_KERAS = (3, 15, 1)
"""Older ones read other files into the model where a file's HDF5 datasets are external; still older
ones run code from `.h5` files in spite of safe_mode, or import what a file names (CVE-2025-9905;
CVE-2025-1550, CVE-2025-9906, CVE-2025-12060)."""
_TEXT_MAX = 2000  # characters of a problem
_VARIANTS = ("none", "float16", "dynamic", "int8")


class Refused(Exception):
    """A request cannot be done; the message is for the publisher."""

    def __init__(self, message: str, operators: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.operators = operators


def main(parent_pid: int, memory_mib: int, scratch: Path) -> None:
    """Answer requests until there are no more."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before the line above
        return
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_FILE_BYTES, _MAX_FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_mib << 20, memory_mib << 20))
    session = _Session(scratch)
    for line in sys.stdin:
        answers.write(json.dumps(_answer(session, json.loads(line))) + "\n")
        answers.flush()


def _answer(session: _Session, request: dict[str, Any]) -> dict[str, Any]:
    try:
        verb = getattr(session, request.pop("do"))
        answer: dict[str, Any] = verb(**request)
    except Refused as refusal:
        return {"problem": str(refusal)[:_TEXT_MAX], "operators": refusal.operators}
    except MemoryError:
        return {"problem": "it needs more memory than it may take", "operators": ()}
    except Exception as exc:  # noqa: BLE001 (top of a request; TensorFlow raises of every kind)
        traceback.print_exc()
        return {"problem": f"{type(exc).__name__}: {_first_lines(exc)}", "operators": ()}
    return answer


class _Session:
    """One source, as a SavedModel: what is given as a Keras file is exported first."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._folder = Path()
        self._keys: list[str] = []
        self._exports = 0
        self._keras_model: Any = None
        self._loaded: Any = None
        self._tf: Any = None

    def open(self, *, kind: str, source: str) -> dict[str, Any]:
        """Import TensorFlow, read the source."""
        import keras  # noqa: PLC0415 (the child starts without)
        import tensorflow  # noqa: PLC0415

        self._tf = tensorflow
        tensorflow.config.set_visible_devices([], "GPU")
        tensorflow.config.experimental.enable_op_determinism()
        self._keras_model = None
        if kind == "saved-model":
            self._load(Path(source))
        else:
            self._keras_model = _load_keras(keras, kind, source)
            self._export()
        versions = {"tensorflow": tensorflow.__version__, "keras": keras.__version__}
        return {"signatures": self._keys, "versions": versions}

    def convert(
        self, *, variant: str, out: str, signature: str, rows: str | None
    ) -> dict[str, Any]:
        """Write one variant as a TFLite file."""
        from tensorflow.lite.python.convert_phase import ConverterError  # noqa: PLC0415 (as above)

        note = ""
        try:
            model = self._converter(variant, signature, rows).convert()
        except ConverterError as exc:
            traceback.print_exc()
            model = self._convert_for_one(variant, signature, rows)
            if model is None:
                raise self._explain(exc) from exc
            note = "it can be converted for one item at a time only: its batch size is 1"
        Path(out).write_bytes(model)
        return {"note": note}

    def predict(self, *, signature: str, rows: str, out: str) -> dict[str, Any]:
        """Write what the original makes of each row."""
        import numpy as np  # noqa: PLC0415 (as above)

        function = self._loaded.signatures[signature]
        wanted = sorted(function.structured_outputs)
        count = 0
        with Path(out).open("wb") as file:
            file.write(json.dumps(wanted).encode() + b"\n")
            for row in _read_rows(Path(rows)):
                given = {name: self._tensor(function, name, row[name]) for name in row}
                answer = function(**given)
                for name in wanted:
                    np.save(file, _plain(answer[name].numpy()), allow_pickle=False)
                count += 1
        return {"rows": count}

    def _load(self, folder: Path) -> None:
        self._folder = folder
        self._loaded = self._tf.saved_model.load(str(folder))
        self._keys = sorted(self._loaded.signatures)
        if not self._keys:
            raise Refused("the SavedModel has no signature to call: save it with signatures=")

    def _export(self, **options: object) -> None:
        """Go on with the Keras model as a SavedModel."""
        self._exports += 1
        folder = self._scratch / f"exported-{self._exports}"
        self._keras_model.export(str(folder), verbose=False, **options)
        self._load(folder)
        self._keys = ["serving_default"]  # Keras adds `serve`, which is the same once more

    def _convert_for_one(self, variant: str, signature: str, rows: str | None) -> Any:  # noqa: ANN401
        """The variant for a batch of 1, where that helps; None where it does not.

        Loops, as recurrent layers have them, are converted only where every size is known.
        """
        model = self._keras_model
        self._keras_model = None  # once is enough
        if model is None:
            return None
        before = self._folder
        try:
            # As the model is called: one tensor, a list or a dictionary. Sequential ones take one.
            called_with = getattr(model, "_inputs_struct", None) or model.inputs[0]
            inputs = self._tf.nest.map_structure(self._for_one, called_with)
            self._keras_model = model
            self._export(input_signature=[inputs])
            return self._converter(variant, signature, rows).convert()
        except Exception:  # noqa: BLE001 (the first error says more)
            traceback.print_exc()
            self._load(before)
            self._keys = ["serving_default"]
            return None
        finally:
            self._keras_model = None

    def _for_one(self, tensor: Any) -> Any:  # noqa: ANN401
        shape = (1, *tensor.shape[1:])
        return self._tf.TensorSpec(shape, tensor.dtype, name=tensor.name)

    def _explain(self, exc: Exception) -> Exception:
        """What a converter's error comes down to."""
        builtin, select = self._missing_operators()
        if not builtin and not select:
            if "TensorList" in str(exc):
                return Refused(
                    "a loop in it has tensors of unknown size: export it with a batch size of 1"
                )
            return exc
        told = []
        if select:
            told.append(f"operators of TensorFlow's own (Select TF ops): {', '.join(select)}")
        if builtin:
            told.append(f"operators that no device's runtime has: {', '.join(builtin)}")
        return Refused(
            f"it needs {'; and '.join(told)}. Make it of operators that TFLite has itself",
            (*select, *builtin),
        )

    def _tensor(self, function: Any, name: str, value: Any) -> Any:  # noqa: ANN401 (TensorFlow's)
        dtype = function.structured_input_signature[1][name].dtype
        return self._tf.constant(value, dtype=dtype)

    def _converter(self, variant: str, signature: str, rows: str | None) -> Any:  # noqa: ANN401
        lite = self._tf.lite
        converter = lite.TFLiteConverter.from_saved_model(
            str(self._folder), signature_keys=self._keys
        )
        if variant != "none":
            converter.optimizations = [lite.Optimize.DEFAULT]
        if variant == "float16":
            converter.target_spec.supported_types = [self._tf.float16]
        if variant == "int8":
            if rows is None:
                raise ValueError("int8 needs rows")
            path = Path(rows)
            converter.representative_dataset = lambda: (
                (signature, row) for row in _read_rows(path)
            )
        return converter

    def _missing_operators(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Operators that nobody has, and those of TensorFlow's that TFLite can borrow.

        A conversion that lets every operator pass writes them down: the latter as Flex….
        """
        lite = self._tf.lite
        converter = lite.TFLiteConverter.from_saved_model(
            str(self._folder), signature_keys=self._keys
        )
        converter.allow_custom_ops = True
        converter.target_spec.supported_ops = [
            lite.OpsSet.TFLITE_BUILTINS,
            lite.OpsSet.SELECT_TF_OPS,
        ]
        try:
            model = converter.convert()
        except Exception:  # noqa: BLE001 (the first error says more)
            traceback.print_exc()
            return (), ()
        from tensorflow.lite.python import schema_py_generated as schema  # noqa: PLC0415

        codes = schema.ModelT.InitFromPackedBuf(model).operatorCodes
        names = sorted({each.customCode.decode() for each in codes if each.customCode})
        flex = tuple(name.removeprefix("Flex") for name in names if name.startswith("Flex"))
        return tuple(name for name in names if not name.startswith("Flex")), flex


def _load_keras(keras: Any, kind: str, source: str) -> Any:  # noqa: ANN401 (Keras has no types)
    found = re.match(r"\d+(\.\d+)*", keras.__version__)  # whatever else a pre-release says
    version = tuple(map(int, found[0].split("."))) if found else ()
    if version < _LEAST_KERAS:
        least = ".".join(map(str, _LEAST_KERAS))
        raise Refused(
            f"Keras {keras.__version__} may run code or read files that a file names; "
            f"install {least} or newer"
        )
    if kind == "keras-h5":
        _check_h5(source)
    try:
        return keras.models.load_model(source, compile=False, safe_mode=True)
    except Exception as exc:
        text = str(exc)
        if "safe_mode" in text or "unsafe" in text or "lambda" in text.lower():
            raise Refused(
                "it carries Python code (a Lambda layer), which is not run here: save it with "
                "layers of Keras' own, or export a SavedModel where you trust it "
                f"({_first_lines(exc)})"
            ) from exc
        if "custom_objects" in text or "Could not locate" in text or "Unknown layer" in text:
            raise Refused(
                "it uses classes that only your program has; there, write a SavedModel with "
                f"model.export(FOLDER) and build from that ({_first_lines(exc)})"
            ) from exc
        raise


def _check_h5(source: str) -> None:
    import h5py  # noqa: PLC0415 (as above)

    with h5py.File(source, "r") as file:
        if "model_config" not in file.attrs:
            raise Refused("it holds weights and no model: save it with model.save()")


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """As daemon/build/rows.py does."""
    import numpy as np  # noqa: PLC0415 (as above)

    with path.open("rb") as file:
        names = json.loads(file.readline())
        size = path.stat().st_size
        while file.tell() < size:
            yield {name: np.load(file, allow_pickle=False) for name in names}


def _plain(array: Any) -> Any:  # noqa: ANN401 (NumPy is imported late)
    """Strings as NumPy stores them without pickling."""
    return array.astype("S") if array.dtype == object else array


def _first_lines(exc: Exception) -> str:
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return " ".join(lines[:3])[:_TEXT_MAX] or "no reason given"


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
