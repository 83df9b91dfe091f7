"""Reads the configuration's files: `inferd.toml`, then `conf.d/*.toml` beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from daemon.config import Config, parse_config
from daemon.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_CONFIG = Path("/etc/inferd/inferd.toml")
DROP_IN_FOLDER = "conf.d"

_MAX_FILE_BYTES = 1 << 20  # far above any configuration written by hand


def read_config(
    path: Path | None, environment: Mapping[str, str], *, default: Path = DEFAULT_CONFIG
) -> Config:
    """Read and check the whole configuration.

    Args:
        path: of the main file; None for the default one.
        environment: the process's, whole.
        default: where the default one lies; it may be missing.

    Raises:
        ConfigError: with every problem found; also when a file cannot be read.
    """
    main = path or default
    sources: list[tuple[str, str]] = []
    unreadable: list[str] = []
    for file in (main, *_drop_ins(main.parent / DROP_IN_FOLDER, unreadable)):
        try:
            sources.append((str(file), _read(file)))
        except FileNotFoundError as exc:
            if path is not None or file != main:
                unreadable.append(f"{file}: cannot be read: {exc.strerror}")
        except OSError as exc:
            unreadable.append(f"{file}: cannot be read: {exc.strerror}")
        except ValueError as exc:
            unreadable.append(f"{file}: {exc}")
    try:
        config = parse_config(sources, environment)
    except ConfigError as exc:
        raise ConfigError((*unreadable, *exc.problems)) from exc
    if unreadable:
        raise ConfigError(tuple(unreadable))
    return config


def _drop_ins(folder: Path, unreadable: list[str]) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        unreadable.append(f"{folder}: cannot be read: {exc.strerror}")
        return []
    return [file for file in entries if file.suffix == ".toml" and not file.name.startswith(".")]


def _read(file: Path) -> str:
    with file.open("rb") as stream:
        content = stream.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise ValueError(f"expected at most {_MAX_FILE_BYTES} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as exc:
        raise ValueError(f"expected UTF-8: {exc.reason} at byte {exc.start}") from None
