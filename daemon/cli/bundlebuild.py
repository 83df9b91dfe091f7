"""`bundle build`: makes a bundle of what the daemon would serve from the same folder.

The bundle's `model.toml` names the model and its version, whatever else gave them: a device finds
the model in a folder whose name says neither.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.cli.bundle import refusing, sha256_of, summary
from daemon.cli.modeltoml import edit
from daemon.cli.outcome import CommandError, ExitCode, UsageError
from daemon.models.store import MODEL_FILE, TABLES_FILE, look_at_release
from updater.bundle import build_bundle, folder_files
from updater.manifest import Manifest, Probation
from updater.names import check_model

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from daemon.modelfile import ModelTables
    from daemon.models.store import FoundVersion
    from updater.bundle import Source

_PROBATION = {
    "min_requests": "min_requests",
    "min_s": "min_seconds",
    "max_s": "max_seconds",
    "max_error_ratio": "max_error_ratio",
    "max_latency_ratio": "max_latency_ratio",
}
"""Keys of the manifest, and the arguments that give them."""


def build(arguments: argparse.Namespace) -> ExitCode:
    """Write a bundle, and say what it is.

    Raises:
        UsageError: an argument cannot be used.
        CommandError: there is no model that can be bundled, or the disk refused.
    """
    name, found = _look(arguments.source)
    _check_out(arguments.out, found)
    draft = _draft(arguments, name, found)
    with refusing(arguments.source):
        files = _files(found, draft)
        _check_samples(found.tables, files)
        manifest = build_bundle(files, arguments.out, draft)
        digest = sha256_of(arguments.out)
    print(f"{arguments.out}: {summary(manifest)}")
    print(f"sha256 {digest}")
    return ExitCode.DONE


def _look(source: Path) -> tuple[str, FoundVersion]:
    """The one version of the model at a path, and its name."""
    if not source.exists():
        raise UsageError(f"argument DIR: no such file or folder: {source}")
    path = Path(os.path.abspath(source))  # noqa: PTH100 (the name of a link names the model)
    name, found = look_at_release(path)
    if found is None:
        raise CommandError(f"{source}: expected a .tflite file, or a folder with model.tflite")
    if found.folder not in {None, path}:
        raise CommandError(f"{source}: expected the folder of one version, as {found.folder}")
    if found.problem:
        raise CommandError(f"the model cannot be served: {found.problem}")
    return name, found


def _check_out(out: Path, found: FoundVersion) -> None:
    if not out.parent.is_dir() or out.is_dir():
        raise UsageError(f"argument -o: expected a file in a folder that is there: {out}")
    folder = found.folder
    if folder is not None and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(folder)):
        raise UsageError(f"argument -o: {out} would be a part of the next bundle of {folder}")


def _draft(arguments: argparse.Namespace, name: str, found: FoundVersion) -> Manifest:
    """What the manifest says beside the files: options first, then model.toml."""
    tables = found.tables
    said = tables.model
    version = _agreed("--model-version", arguments.model_version, said.version) or found.version
    memory = (arguments.memory_mib, tables.health.max_memory_mib, tables.limits.memory_mib)
    probation = {key: getattr(arguments, name) for key, name in _PROBATION.items()}
    return Manifest(
        name=_check_name(_agreed("--name", arguments.name, said.name) or name),
        version=version,
        release_counter=_first(arguments.release_counter, version),
        architectures=arguments.arch,
        accelerators=arguments.accelerators,
        memory_mib=_first(*memory),
        max_latency_ms=_first(arguments.max_latency_ms, tables.health.max_latency_ms),
        probation=Probation(**_said(probation)),
        **_said({"runtime": arguments.runtime}),
    )


def _first(*values: Any) -> Any:  # noqa: ANN401 (numbers)
    """The first that is said."""
    return next((value for value in values if value is not None), None)


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _agreed(option: str, asked: Any, said: Any) -> Any:  # noqa: ANN401 (a name or a number)
    """What an option and model.toml say together; None when neither does."""
    if asked is not None and said is not None and asked != said:
        raise UsageError(f"argument {option}: '{asked}': model.toml says '{said}'")
    return said if asked is None else asked


def _check_name(name: str) -> str:
    try:
        return check_model(name)
    except ValueError as exc:
        raise CommandError(f"{exc}; give it one in its model.toml, or with --name") from exc


def _files(found: FoundVersion, draft: Manifest) -> Mapping[str, Source]:
    """The bundle's files: those of the folder, with a model.toml that names the model."""
    files: dict[str, Source] = (
        {MODEL_FILE: found.model_path} if found.folder is None else {**folder_files(found.folder)}
    )
    said = found.tables.model
    if (said.name, said.version) != (draft.name, draft.version):
        path = files.get(TABLES_FILE)
        text = path.read_bytes().decode() if isinstance(path, Path) else ""
        names: dict[str, float | str] = {"name": draft.name, "version": draft.version}
        files[TABLES_FILE] = edit(text, {"model": names}).encode()
    return files


def _check_samples(tables: ModelTables, files: Mapping[str, Source]) -> None:
    """A folder's hidden files are no part of a bundle, and a missing sample fails on the device."""
    for sample in tables.health.samples:
        for name in (sample.input, *(sample.outputs or {}).values()):
            if name not in files:
                raise CommandError(f"health sample {name}: there is no such file in the bundle")
