"""Small unpacked bundles: a folder of files and the manifest that lists them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from updater.manifest import FileEntry, Manifest, Probation, encode_manifest

if TYPE_CHECKING:
    from pathlib import Path

MODEL = "digits"


def digest_of(version: int) -> str:
    """What stands for the sha256 of a version's bundle."""
    return hashlib.sha256(f"bundle {version}".encode()).hexdigest()


def files_of(version: int) -> dict[str, bytes]:
    """The files of a version, by their path; no two versions have the same bytes."""
    seed = hashlib.sha256(f"model {version}".encode()).digest()
    return {
        "model.tflite": seed * 300,
        "labels.txt": f"labels of {version}\n".encode(),
        "samples/one.bin": seed,
    }


def unpack(folder: Path, version: int, *, model: str = MODEL) -> None:
    """Write a version's files and manifest into an empty folder, as the bundle's opener does."""
    for name, data in files_of(version).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "manifest.json").write_bytes(encode_manifest(manifest_of(version, model)))


def manifest_of(version: int, model: str = MODEL) -> Manifest:
    """The manifest of a version."""
    entries = (
        FileEntry(path=name, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
        for name, data in sorted(files_of(version).items())
    )
    return Manifest(
        name=model,
        version=version,
        release_counter=version,
        files=tuple(entries),
        runtime="litert>=2.3,<3",
        architectures=(),
        accelerators=(),
        memory_mib=None,
        max_latency_ms=None,
        probation=Probation(
            min_requests=1, min_s=1.0, max_s=2.0, max_error_ratio=0.1, max_latency_ratio=2.0
        ),
    )
