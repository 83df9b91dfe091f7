"""What a daemon keeps in memory: only what its models and its configuration need."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import requests
from support import tflite_builder
from support.daemon import daemon_process, free_port, wait_settled

WAIT_S = 30
SHARED_LEAST_BYTES = 4 << 20
"""Of written memory that daemon and fork server share; measured: 8 MB of 16."""
WORKER_MOST_BYTES = 8 << 20
"""Of memory that a worker with a tiny model has written; measured: 5 MB."""


@pytest.fixture
def tensor_model(tmp_path):
    """A model that takes numbers and gives numbers."""
    path = tmp_path / "double.tflite"
    path.write_bytes(tflite_builder.scale())
    return path


@pytest.fixture
def serving(tmp_path):
    """Starts a daemon with these models, and gives it when all are settled."""

    def start(models, **tables):
        context = daemon_process(models, root=tmp_path, port=free_port(), **tables)
        contexts.append(context)
        daemon = context.__enter__()
        wait_settled(daemon.url)
        return daemon

    contexts = []
    yield start
    for context in contexts:
        context.__exit__(None, None, None)


def libraries(process: psutil.Process) -> str:
    """The files it has mapped."""
    return "\n".join(each.path for each in process.memory_maps())


def loaded(process: psutil.Process, *names: str) -> set[str]:
    """Those of the libraries that it has mapped."""
    mapped = libraries(process)
    return {name for name in names if name in mapped}


def below(daemon) -> list[psutil.Process]:
    return psutil.Process(daemon.process.pid).children(recursive=True)


def test_a_daemon_for_tensors_does_without_media_mqtt_and_the_runtime(serving, tensor_model):
    daemon = serving([tensor_model])

    process = psutil.Process(daemon.process.pid)

    assert loaded(process, "_multiarray_umath") == {"_multiarray_umath"}
    assert loaded(process, "PIL", "soxr", "sqlite3", "ai_edge_litert") == set()
    assert loaded(process, "cryptography", "pydantic_core", "numpy/random") == set()


def test_pictures_bring_their_library_with_the_model_and_no_other(serving, demo_model):
    daemon = serving([demo_model])

    process = psutil.Process(daemon.process.pid)

    assert loaded(process, "PIL", "soxr") == {"PIL"}


@pytest.mark.shared
def test_sounds_bring_their_library_with_the_model_and_no_other(serving, shared_models):
    daemon = serving([shared_models / "models" / "yamnet_classifier_meta.tflite"])

    process = psutil.Process(daemon.process.pid)

    assert loaded(process, "PIL", "soxr") == {"soxr"}


def test_the_daemon_shares_memory_with_its_fork_server(serving, tensor_model):
    daemon = serving([tensor_model])

    process = psutil.Process(daemon.process.pid)

    assert sum(each.shared_dirty for each in process.memory_maps()) > SHARED_LEAST_BYTES


def test_a_worker_has_little_for_itself(serving, tensor_model):
    daemon = serving([tensor_model])

    _, worker = below(daemon)

    assert sum(each.private_dirty for each in worker.memory_maps()) < WORKER_MOST_BYTES
    assert loaded(worker, "ai_edge_litert", "numpy/random") == {"ai_edge_litert"}


def test_models_in_threads_need_no_other_process(serving, tensor_model):
    daemon = serving([tensor_model], defaults={"isolation": "thread"})
    ready = requests.get(f"{daemon.url}/readyz", timeout=WAIT_S)

    assert ready.json()["ready"]
    assert below(daemon) == []


def test_a_model_that_wants_a_process_gets_one_where_the_others_have_threads(
    serving, tensor_model, tmp_path
):
    folder = tmp_path / "apart"
    folder.mkdir()
    (folder / "model.tflite").write_bytes(tensor_model.read_bytes())
    Path(folder / "model.toml").write_text('[placement]\nisolation = "process"\n')
    daemon = serving([tensor_model, folder], defaults={"isolation": "thread"})

    forkserver, worker = below(daemon)

    assert requests.get(f"{daemon.url}/readyz", timeout=WAIT_S).json()["ready"]
    assert forkserver.children() == [worker]
