"""The real Triton server, with LiteRT in its Python backend: one stub process per instance.

PyPI has its binary in the wheel of nvidia-pytriton, with the libraries it needs beside it. Its stub
embeds Python, so it also needs the shared library of the Python that the environment was made with.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.lanes import TRITON
from benchmarks.peers.environment import INSIDE, Environment
from benchmarks.processes import Command, Unavailable, free_port
from benchmarks.wire import (
    HEADER_LENGTH,
    Request,
    kserve_binary,
    kserve_json,
    read_kserve_best,
    read_kserve_tensor,
)
from benchmarks.workloads import FILE_FORMS, Form, predictor_settings

if TYPE_CHECKING:
    from benchmarks.wire import Answer
    from benchmarks.workloads import Case

_MODEL = "model"
_PATH = f"/v2/models/{_MODEL}/infer"
_WHERE = """
import json, sys, sysconfig
print(json.dumps({
    "packages": sysconfig.get_path("purelib"),
    "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
    "library": sysconfig.get_config_var("INSTSONAME"),
    "folder": sysconfig.get_config_var("LIBDIR"),
}))
"""


class Triton:
    """See the module."""

    name = TRITON
    _environment = Environment("nvidia-pytriton")

    def prepare(self) -> str:
        """Install it, with the backend and the stub of this Python in one folder."""
        version = self._environment.install()
        where = self._where()
        library = Path(where["folder"]) / where["library"]
        if not library.is_file():
            raise Unavailable(f"its stub needs {library}, which is not there")
        server = _server(where)
        stub = server / "python_backend_stubs" / where["python"] / "triton_python_backend_stub"
        if not stub.is_file():
            raise Unavailable(f"the wheel has no stub for Python {where['python']}")
        shutil.copytree(server / "backends" / "python", self._backend, dirs_exist_ok=True)
        shutil.copy(stub, self._backend)
        return f"nvidia-pytriton {version}"

    def command(self, case: Case, folder: Path, port: int) -> Command:
        """`tritonserver` on a repository with one model."""
        where = self._where()
        model = folder / "models" / _MODEL
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_text(make_config(case), encoding="utf-8")
        shutil.copy(INSIDE / "triton_model.py", model / "1" / "model.py")
        shutil.copy(INSIDE / "predictor.py", model / "1")
        server = _server(where)
        argv = (
            str(server / "bin" / "tritonserver"),
            f"--model-repository={folder / 'models'}",
            f"--backend-directory={self._backend.parent}",
            "--http-address=127.0.0.1",
            f"--http-port={port}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={free_port()}",
            "--metrics-address=127.0.0.1",
            f"--metrics-port={free_port()}",
        )
        libraries = (str(Path(where["packages"]) / "nvidia_pytriton.libs"), where["folder"])
        environment = {
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            # Its stub takes the packages of the first python3 on the path.
            "PATH": os.pathsep.join((str(self._environment.python.parent), os.environ["PATH"])),
            "BENCH_PREDICTOR": predictor_settings(case.workload),
        }
        return Command(argv, environment, folder)

    def request(self, case: Case) -> Request:
        """KServe v2: binary tensors, JSON numbers, or the file as one binary BYTES element."""
        match case.workload.form:
            case Form.BINARY:
                return kserve_binary(case, _PATH, "input")
            case Form.JSON:
                return kserve_json(case, _PATH, "input")
            case Form.JPEG | Form.WAV:
                return _file_request(case.body())

    def is_right(self, case: Case, answer: Answer) -> bool:
        """The same numbers, or the same best class."""
        if case.workload.form in FILE_FORMS:
            return case.is_right(read_kserve_best(answer))
        return case.is_right(read_kserve_tensor(case, answer))

    @property
    def _backend(self) -> Path:
        return self._environment.folder.with_name("backends") / "python"

    def _where(self) -> dict[str, str]:
        where: dict[str, str] = json.loads(self._environment.ask(_WHERE))
        return where


def make_config(case: Case) -> str:
    """The model's config.pbtxt. Pure."""
    if case.workload.form in FILE_FORMS:
        source = _tensor("input", "STRING", (1,))
        sinks = [_tensor("index", "INT32", (-1,)), _tensor("score", "FP32", (-1,))]
        if len(case.sink.dims) == 0:  # a detector's, whose sizes are known at run time
            sinks.append(_tensor("box", "FP32", (-1, 4)))
    else:
        source = _tensor("input", case.source.datatype, case.source.dims)
        sinks = [_tensor("output", case.sink.datatype, case.sink.dims)]
    return (
        'backend: "python"\nmax_batch_size: 0\n'
        f"input [{source}]\noutput [{', '.join(sinks)}]\n"
        f"instance_group [{{ kind: KIND_CPU, count: {case.workload.instances} }}]\n"
    )


def _tensor(name: str, datatype: str, dims: tuple[int, ...]) -> str:
    return f'{{ name: "{name}", data_type: TYPE_{datatype}, dims: {list(dims)} }}'


def _file_request(file: bytes) -> Request:
    element = len(file).to_bytes(4, "little") + file
    source = {
        "name": "input",
        "shape": [1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(element)},
    }
    head = json.dumps({"inputs": [source]}).encode("ascii")
    return Request(_PATH, head + element, {HEADER_LENGTH: str(len(head))})


def _server(where: dict[str, str]) -> Path:
    return Path(where["packages"]) / "pytriton" / "tritonserver"
