"""`bundle build`: makes a bundle of what the daemon would serve from the same folder.

What is not a model's folder yet is made one first, in a temporary place (bundleassembly.py).

The bundle's `model.toml` names the model and its version, whatever else gave them: a device finds
the model in a folder whose name says neither.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.build.errors import CannotBuild, ConversionFailed
from daemon.build.sources import EXPECTED, SourceKind, check_operators, recognise
from daemon.cli.bundle import check_out, refusing, sha256_of, summary
from daemon.cli.bundleassembly import make_folder
from daemon.cli.bundletable import describe_trial
from daemon.cli.bundlewish import read_wish
from daemon.cli.inprocess import BadConfig
from daemon.cli.modeltoml import edit
from daemon.cli.outcome import CommandError, ExitCode, UsageError
from daemon.cli.scratch import scratch_folder
from daemon.cli.text import printable
from daemon.config import parse_config
from daemon.errors import ConfigError
from daemon.modelfile import parse_model_file
from daemon.models.store import MODEL_FILE, TABLES_FILE, look_at_release
from updater.bundle import build_bundle, folder_files
from updater.manifest import Manifest, Probation
from updater.names import check_model

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from daemon.config import Config
    from daemon.modelfile import ModelTable, ModelTables, PlacementTable
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
    source: Path = arguments.source
    if not source.exists():
        raise UsageError(f"argument SOURCE: no such file or folder: {source}")
    with _building(source):
        kind = recognise(source)
        wish = read_wish(arguments, kind)
        if kind is SourceKind.TFLITE:
            check_operators(source)
        if wish is None:
            return _bundle(arguments, source, *_look(source))
        _check_out(arguments.out, source if source.is_dir() else None)
        name, version = _identity(arguments, parse_model_file(wish.tables).model)
        with scratch_folder() as scratch:
            made = make_folder(
                wish, name, version, scratch=scratch, config=_config(scratch), say=_say
            )
            if wish.is_auto or wish.evaluation:
                print(describe_trial(made.trial, max_loss=wish.max_loss), end="\n\n")
            if made.folder is None:
                raise CommandError("no variant may be taken; nothing was written")
            if wish.evaluation and wish.max_samples and not made.samples:
                _say("no health sample was chosen: there is no item that the model is sure of")
            return _bundle(arguments, made.folder, *_look(made.folder))


def _bundle(
    arguments: argparse.Namespace, folder: Path, name: str, found: FoundVersion
) -> ExitCode:
    _check_out(arguments.out, found.folder)
    draft = _draft(arguments, name, found)
    with refusing(folder):
        files = _files(found, draft)
        _check_samples(found.tables, files)
        manifest = build_bundle(files, arguments.out, draft)
        digest = sha256_of(arguments.out)
    print(f"{arguments.out}: {summary(manifest)}")
    print(f"sha256 {digest}")
    return ExitCode.DONE


@contextmanager
def _building(source: Path) -> Iterator[None]:
    try:
        yield
    except ConversionFailed as exc:
        raise CommandError(_printable(f"{exc}\n{exc.details}")) from exc
    except CannotBuild as exc:
        raise CommandError(_printable(str(exc))) from exc
    except OSError as exc:
        raise CommandError(f"{exc.filename or source}: {exc.strerror or exc}") from exc


def _printable(text: str) -> str:
    return "\n  ".join(printable(line) for line in text.strip().splitlines())


def _identity(arguments: argparse.Namespace, said: ModelTable) -> tuple[str, int]:
    """The name and version that a model will have: by options or tables, else by where it lies.

    A SavedModel in TF Serving's tree, NAME/VERSION, is called as the daemon would call it.
    """
    path = Path(os.path.abspath(arguments.source))  # noqa: PTH100 (as above)
    name, version = path.stem, 1
    if path.is_dir() and path.name.isdecimal():
        name, version = path.parent.name, int(path.name) or 1
    name = _agreed("--name", arguments.name, said.name) or name
    version = _agreed("--model-version", arguments.model_version, said.version) or version
    return _check_name(name), version


def _config(scratch: Path) -> Config:
    try:
        return parse_config((), os.environ, arguments={"paths": {"root": str(scratch)}})
    except ConfigError as exc:
        raise BadConfig(str(exc)) from exc


def _say(line: str) -> None:
    """Progress goes beside the answer, which may go into a file."""
    print(line, file=sys.stderr, flush=True)


def _look(source: Path) -> tuple[str, FoundVersion]:
    """The one version of the model at a path, and its name."""
    path = Path(os.path.abspath(source))  # noqa: PTH100 (the name of a link names the model)
    name, found = look_at_release(path)
    if found is None:
        raise CommandError(f"{source}: {EXPECTED}")
    if found.folder not in {None, path}:
        raise CommandError(f"{source}: expected the folder of one version, as {found.folder}")
    if found.problem:
        raise CommandError(f"the model cannot be served: {found.problem}")
    return name, found


def _check_out(out: Path, folder: Path | None) -> None:
    check_out(out)
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
        accelerators=arguments.accelerators or _needed(tables.placement),
        memory_mib=_first(*memory),
        max_latency_ms=_first(arguments.max_latency_ms, tables.health.max_latency_ms),
        probation=Probation(**_said(probation)),
        **_said({"runtime": arguments.runtime}),
    )


def _needed(placement: PlacementTable) -> tuple[str, ...]:
    """The kind that model.toml requires; none where it leaves a choice."""
    kinds = {wish.partition(":")[0] for wish in placement.accelerators or ()}
    return tuple(kinds) if placement.required and len(kinds) == 1 and kinds != {"cpu"} else ()


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
