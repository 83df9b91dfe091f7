"""Finds the models that lie on disk. Reads `model.toml` and label files, never a model's bytes.

What counts as a model, at a path of `[[models.serve]]` or directly in a folder of `models.folders`:
1. a lone `.tflite`: its stem names it, its version is 1;
2. a folder with `model.tflite`, or with exactly one `.tflite`: `model.toml` names it, else the
   folder does; its version is model.toml's, else 1. The file that `placement.cpu_model` names lies
   beside it and does not count;
3. TF Serving's tree, `NAME/VERSION/model.tflite`: version folders are numbers, leading zeros
   allowed; a `model.toml` or label file in the version's folder wins over one in NAME;
4. a folder with a link `current` to a folder of kind 2: what the updater installs.

Names that begin with "." or end like a temporary file's are not looked at. One bad entry never
hides another: what is wrong with it is said in its `problem`. Links are followed: whoever may write
these folders may choose what is served.
"""

from __future__ import annotations

import itertools
import logging
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.config import ModelsTable
from daemon.errors import ConfigError, shorten
from daemon.modelfile import (
    MAX_NAME_CHARACTERS,
    ModelTable,
    ModelTables,
    parse_model_file,
    salvage_identity,
)
from daemon.tables import changed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from daemon.config import Config, ServedModel

_log = logging.getLogger(f"inferd.{__name__}")

MODEL_FILE = "model.tflite"
TABLES_FILE = "model.toml"
LABELS_FILE = "labels.txt"
CURRENT_LINK = "current"

_SUFFIX = ".tflite"
_TEMPORARY = (".tmp", ".temp", ".part", ".partial", ".swp", ".bak", "~")
_NOT_MODELS = frozenset({"lost+found"})
_MAX_TABLES_BYTES = 256 << 10  # far above any model.toml written by hand
_MAX_LABELS_BYTES = 4 << 20  # ten times the 21,843 classes of the largest known label file
_MAX_LABELS = 200_000
_MAX_ENTRIES = 10_000
"""Entries looked at in one folder: a folder with more is not a folder of models."""
_MAX_VERSION = 2**63 - 1  # TF Serving's and KServe's int64

FileStamp = tuple[int, int, int, int]
"""Device, inode, size in bytes, mtime in ns: differs when a file was changed or replaced."""
Stamp = tuple[FileStamp | str | None, ...]


@dataclass(frozen=True, slots=True)
class FoundVersion:
    """One version of a model on disk.

    Attributes:
        version: 1..2^63-1; a guess where a problem keeps it from being known.
        model_path: the .tflite; where it should be when it is missing.
        cpu_model: the .tflite that the CPU runs in its place, beside it; None when model.toml names
            none. There is a problem where it is missing.
        tables: empty when there is no model.toml, or a broken one.
        label_lines: one class name per class number; an empty line is a class without a name.
        folder: where model.toml, labels and samples lie; None for a lone file.
        stamp: of the .tflite, model.toml, label file and cpu_model, None for each that is missing,
            and the problem. A file that is still being written changes it between two scans.
        problem: why it cannot be served, for the operator; "" when nothing is known against it.
    """

    version: int
    model_path: Path
    tables: ModelTables
    label_lines: tuple[str, ...]
    folder: Path | None
    stamp: Stamp
    problem: str = ""
    cpu_model: Path | None = None


@dataclass(frozen=True, slots=True)
class FoundModel:
    """One model on disk.

    Attributes:
        name: no two found models share one.
        versions: oldest first; no two share a number.
        entry: the `[[models.serve]]` entry that asked for it; None for one found in a folder.
        problem: why it has no versions; "" when it has.
    """

    name: str
    versions: tuple[FoundVersion, ...]
    entry: ServedModel | None = None
    problem: str = ""


def scan(config: Config) -> tuple[FoundModel, ...]:
    """Look at every configured path and folder.

    Blocks on the disk; call it in a thread. Raises nothing: every failure is in a `problem`.

    Returns:
        The models of `[[models.serve]]` in their order, then those of the folders, by file name.
        Of two that have the same name the first keeps it; the second gets another name and a
        problem. A path met twice is one model, whatever links lead to it, unless it is asked for
        by different names or in different ways.
    """
    found: dict[str, FoundModel] = {}
    paths: dict[str, Path] = {}
    for path, entry, problem in _places(config):
        if problem:
            model: FoundModel | None = _broken(path, entry, problem)
        elif len(found) >= config.models.max_models:
            limit = config.models.max_models
            model = _broken(path, entry, f"not looked at: models.max_models = {limit} is reached")
        else:
            model = _look(path, entry)
        if model is None:
            _log.debug("no model here path=%s", path)
            continue
        if (first := found.get(model.name)) is not None:
            if _is_same(model, path, first, paths[model.name]):
                continue
            model = _namesake(model, paths[model.name], found)
        found[model.name] = model
        paths[model.name] = path
    return tuple(found.values())


def look_at_release(folder: Path) -> tuple[str, FoundVersion | None]:
    """The model in one folder, which need not be served: its name and its only version.

    Blocks on the disk. Raises nothing: what is wrong is in the version's `problem`, or there is
    none.
    """
    model = _look(folder, None)
    if model is None or not model.versions:
        return folder.name, None
    return model.name, model.versions[0]


def _places(config: Config) -> Iterator[tuple[Path, ServedModel | None, str]]:
    """Every path where a model should be, each once; with the problem of a whole folder."""
    seen: set[str] = {_identify(folder) for folder in config.model_folders}
    for entry in config.models.serve:
        path = config.below_root(entry.path)
        seen.add(_identify(path))
        yield path, entry, ""
    for configured in dict.fromkeys(config.models.folders):
        folder = config.below_root(configured)
        try:
            names = _list(folder)
        except FileNotFoundError:
            # A fresh installation has no default folder yet. Any other one was asked for by name.
            if configured not in ModelsTable().folders:
                yield folder, None, f"folder {_show(folder)} does not exist"
            continue
        except (OSError, ValueError) as exc:
            yield folder, None, f"folder {_show(folder)} {_why(exc)}"
            continue
        for path in (folder / name for name in names):
            if (identity := _identify(path)) not in seen:
                seen.add(identity)
                yield path, None, ""


def _look(path: Path, entry: ServedModel | None) -> FoundModel | None:
    """The model at a path; None when a folder of models has something else there."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            model = _look_in_folder(path, entry)
        else:
            model = _lone_file(path, entry) if path.suffix == _SUFFIX else None
    except (OSError, ValueError) as exc:
        if entry is None and path.name in _NOT_MODELS:
            return None
        return _broken(path, entry, f"{_show(path)} {_why(exc)}")
    if model is None and entry is not None:
        return _broken(
            path, entry, f"no model at {_show(path)}: expected a .tflite file or a folder with one"
        )
    return model


def _look_in_folder(path: Path, entry: ServedModel | None) -> FoundModel | None:
    names = _list(path)
    if CURRENT_LINK in names:
        # Resolved now: the link may point elsewhere by the time the model is loaded.
        release = Path(os.path.realpath(path / CURRENT_LINK))
        return _model_folder(path, release, _list(release), entry)
    has_file = any(name.endswith(_SUFFIX) for name in names)
    versions = [] if has_file else _version_folders(path, names)
    if versions:
        return _tree(path, versions, entry)
    return _model_folder(path, path, names, entry) if has_file or TABLES_FILE in names else None


def _lone_file(path: Path, entry: ServedModel | None) -> FoundModel:
    name, problem = _choose_name(path.stem, entry, None)
    version = _found_version(1, path, _Notes(problems=(problem,)), folder=None)
    return FoundModel(name, (version,), entry)


def _model_folder(
    path: Path, release: Path, names: Sequence[str], entry: ServedModel | None
) -> FoundModel:
    """A folder that holds one version; `release` is where it lies, `path` what names it."""
    notes = _read_notes((release,))
    name, problem = _choose_name(path.name, entry, notes.identity.name)
    notes = notes.with_problem(problem)
    version = _release(notes.identity.version or 1, release, names, notes)
    return FoundModel(name, (version,), entry)


def _tree(path: Path, folders: Sequence[str], entry: ServedModel | None) -> FoundModel:
    """TF Serving's NAME/VERSION/model.tflite."""
    common, _ = _read_tables((path,))
    name, problem = _choose_name(path.name, entry, common.identity.name)
    renamed = entry is not None and entry.name is not None
    versions: dict[int, FoundVersion] = {}
    for folder in sorted(folders, key=lambda name: (int(name), name)):
        number = int(folder)
        version = _tree_version(path, folder, None if renamed else name, problem)
        if version is None:
            continue
        if number in versions:
            other = versions[number].folder
            clash = f"{_show(path / folder)} and {_show(other)} are both version {number}"
            version = _with_problem(versions[number], clash)
        versions[number] = version
    if not versions:
        return _broken(path, entry, f"the version folders in {_show(path)} are empty")
    return FoundModel(name, tuple(versions.values()), entry)


def _tree_version(path: Path, folder: str, name: str | None, problem: str) -> FoundVersion | None:
    """One version of a tree; None while its folder is empty: somebody is about to fill it."""
    number = int(folder)
    release = path / folder
    try:
        names = _list(release)
    except (OSError, ValueError) as exc:
        notes = _Notes(problems=(f"{_show(release)} {_why(exc)}",))
        return _found_version(number, release / MODEL_FILE, notes, folder=release)
    if not names:
        return None
    notes = _read_notes((release, path)).with_problem(problem)
    own = notes.identity
    if not 1 <= number <= _MAX_VERSION:
        notes = notes.with_problem(
            f"version folder {folder}: expected a number from 1 to {_MAX_VERSION}"
        )
    if own.version is not None and own.version != number:
        notes = notes.with_problem(f"model.toml says version {own.version}, its folder {folder}")
    if own.name is not None and name is not None and own.name != name:
        notes = notes.with_problem(
            f"model.toml says name '{own.name}', it lies in the folder of '{name}'"
        )
    return _release(number, release, names, notes)


def _release(number: int, folder: Path, names: Sequence[str], notes: _Notes) -> FoundVersion:
    """The version in a folder, with its one .tflite besides the one that is for the CPU only."""
    cpu_model = notes.tables.placement.cpu_model
    files = [name for name in names if name.endswith(_SUFFIX) and name != cpu_model]
    if MODEL_FILE in files or len(files) == 1:
        file = folder / (MODEL_FILE if MODEL_FILE in files else files[0])
        return _found_version(number, file, notes, folder=folder)
    besides = " besides placement.cpu_model" if cpu_model in names else ""
    problem = f"no .tflite file in {_show(folder)}{besides}"
    if files:
        problem = (
            f"{len(files)} .tflite files in {_show(folder)}{besides} and none is named {MODEL_FILE}"
        )
    return _found_version(number, folder / MODEL_FILE, notes.with_problem(problem), folder=folder)


def _found_version(
    number: int, model_path: Path, notes: _Notes, *, folder: Path | None
) -> FoundVersion:
    problems = notes.problems
    model_stamp, problem = _look_at_file(model_path)
    # A path that was only guessed is missing for a reason that is told already.
    if problem and (model_stamp is not None or not any(problems)):
        problems = (*problems, problem)
    named = notes.tables.placement.cpu_model
    cpu_model = folder / named if folder is not None and named is not None else None
    cpu_stamp: FileStamp | None = None
    if cpu_model is not None:
        cpu_stamp, problem = _look_at_file(cpu_model)
        problems = (*problems, problem and f"placement.cpu_model: {problem}")
    problem = "; ".join(text for text in problems if text)
    return FoundVersion(
        version=number,
        model_path=model_path,
        tables=notes.tables,
        label_lines=notes.label_lines,
        folder=folder,
        # The problem belongs to it: one that goes away without a file changing (a permission, a
        # second folder of the same version) must look like a change too.
        stamp=(model_stamp, *notes.stamps, cpu_stamp, problem),
        problem=problem,
        cpu_model=cpu_model,
    )


def _look_at_file(path: Path) -> tuple[FileStamp | None, str]:
    """The stamp of a model's file, None where there is none, and what is wrong with it."""
    try:
        facts = path.stat()
    except OSError as exc:
        return None, f"{_show(path)} {_why(exc)}"
    problem = "" if stat.S_ISREG(facts.st_mode) else f"{_show(path)} is not a regular file"
    return _stamp(facts), problem


_NO_TABLES = ModelTables()


@dataclass(frozen=True, slots=True)
class _Notes:
    """What lies beside a model: model.toml and labels.

    Attributes:
        identity: name and version, also where the rest of model.toml is broken.
        stamps: of model.toml and of the label file.
    """

    tables: ModelTables = _NO_TABLES
    identity: ModelTable = _NO_TABLES.model
    label_lines: tuple[str, ...] = ()
    stamps: tuple[FileStamp | None, FileStamp | None] = (None, None)
    problems: tuple[str, ...] = ()

    def with_problem(self, problem: str) -> _Notes:
        return replace(self, problems=(*self.problems, problem)) if problem else self


def _read_notes(folders: Sequence[Path]) -> _Notes:
    """Read model.toml and labels from the first of `folders` that has them."""
    notes, home = _read_tables(folders)
    labels = notes.tables.output.labels
    if isinstance(labels, tuple):
        return replace(notes, label_lines=labels)
    named = (home / labels,) if isinstance(labels, str) else ()
    for path in named or [folder / LABELS_FILE for folder in folders]:
        try:
            content, stamp = _read(path, _MAX_LABELS_BYTES)
            lines = _split_labels(content)
        except FileNotFoundError:
            if named:
                return notes.with_problem(f"label file {_show(path)} does not exist")
        except (OSError, ValueError) as exc:
            return notes.with_problem(f"label file {_show(path)} {_why(exc)}")
        else:
            return replace(notes, label_lines=lines, stamps=(notes.stamps[0], stamp))
    return notes


def _read_tables(folders: Sequence[Path]) -> tuple[_Notes, Path]:
    for folder in folders:
        path = folder / TABLES_FILE
        try:
            content, stamp = _read(path, _MAX_TABLES_BYTES)
            text = _decode(content)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as exc:
            return _Notes(problems=(f"{_show(path)} {_why(exc)}",)), folder
        stamps = (stamp, None)
        try:
            tables = parse_model_file(text)
        except ConfigError as exc:
            problems = tuple(f"{TABLES_FILE}: {problem}" for problem in exc.problems)
            return _Notes(identity=salvage_identity(text), stamps=stamps, problems=problems), folder
        return _Notes(tables=tables, identity=tables.model, stamps=stamps), folder
    return _Notes(), folders[0]


def _split_labels(content: bytes) -> tuple[str, ...]:
    """One label per line; an empty line stays, for line numbers are class numbers."""
    lines = _decode(content).split("\n")
    if not lines[-1]:
        lines.pop()
    if len(lines) > _MAX_LABELS:
        raise ValueError(f"has {len(lines)} lines: expected at most {_MAX_LABELS}")
    return tuple(line.strip() for line in lines)


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ValueError(f"is not UTF-8 at byte {exc.start}") from None


def _read(path: Path, limit_bytes: int) -> tuple[bytes, FileStamp]:
    """Read a small regular file.

    Raises:
        OSError: it cannot be read. ValueError: it is something else, or larger.
    """
    # Without O_NONBLOCK, opening a FIFO that somebody put there would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        facts = os.fstat(stream.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("is not a regular file")
        content = stream.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise ValueError(f"is larger than {limit_bytes} bytes")
    return content, _stamp(facts)


def _stamp(facts: os.stat_result) -> FileStamp:
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def _list(folder: Path) -> list[str]:
    """Names in a folder, sorted, without hidden and temporary ones.

    Raises:
        OSError: it cannot be read. ValueError: it holds more than a folder of models does.
    """
    with os.scandir(folder) as entries:
        names = [entry.name for entry in itertools.islice(entries, _MAX_ENTRIES + 1)]
    if len(names) > _MAX_ENTRIES:
        raise ValueError(f"holds more than {_MAX_ENTRIES} entries")
    return sorted(name for name in names if not (name.startswith(".") or name.endswith(_TEMPORARY)))


def _version_folders(path: Path, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.isascii() and name.isdigit() and (path / name).is_dir()]


def _identify(path: Path) -> str:
    """The same text for the same entry of the same folder; two links to one file stay two."""
    return f"{os.path.realpath(path.parent)}/{path.name}"


def _choose_name(
    file_name: str, entry: ServedModel | None, own_name: str | None
) -> tuple[str, str]:
    """The configured name, else model.toml's, else the file's; and what is wrong with it."""
    name = (entry.name if entry else None) or own_name or file_name
    if name.isprintable() and len(name) <= MAX_NAME_CHARACTERS:
        return name, ""
    limit = f"{MAX_NAME_CHARACTERS} printable characters"
    return shorten(name), f"a model's name is at most {limit}: give it another in model.toml"


def _is_same(model: FoundModel, path: Path, first: FoundModel, first_path: Path) -> bool:
    """Whether two finds of one name are one model, found by two paths."""
    if os.path.realpath(path) != os.path.realpath(first_path):
        return False
    if model.entry is None or first.entry is None:
        return True
    return changed(model.entry, path=first.entry.path) == first.entry


def _namesake(model: FoundModel, path: Path, found: Mapping[str, FoundModel]) -> FoundModel:
    number = 2
    while (name := f"{model.name} ({number})") in found:
        number += 1
    problem = f"the model at {_show(path)} has the name '{model.name}' already: rename one of them"
    return FoundModel(name, (), model.entry, problem)


def _broken(path: Path, entry: ServedModel | None, problem: str) -> FoundModel:
    file_name = path.stem if path.suffix == _SUFFIX else path.name
    name, _ = _choose_name(file_name, entry, None)
    return FoundModel(name, (), entry, problem)


def _with_problem(version: FoundVersion, problem: str) -> FoundVersion:
    joint = f"{version.problem}; {problem}" if version.problem else problem
    return replace(version, problem=joint, stamp=(*version.stamp, problem))


def _show(path: Path | None) -> str:
    return shorten(str(path), 300)


def _why(exc: OSError | ValueError) -> str:
    return f"cannot be read: {exc.strerror}" if isinstance(exc, OSError) else str(exc)
