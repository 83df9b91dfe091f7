"""`serve`: a daemon from the command line, for models in files, until Ctrl-C."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.cli.client import model_path
from daemon.cli.inprocess import build_config, run_daemon
from daemon.cli.outcome import ExitCode, UsageError
from daemon.cli.text import printable, table
from daemon.models.status import VersionState
from daemon.pipeline.profiles import InputKind

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from daemon.app import Running
    from daemon.models.status import ModelStatus, VersionStatus

_EXAMPLE_FILES = {InputKind.IMAGE: "picture.jpg", InputKind.AUDIO: "sound.wav"}


def serve(arguments: argparse.Namespace) -> ExitCode:
    """Serve until stopped; a model that cannot be served is named with its reason."""
    missing = [str(path) for path in arguments.paths if not path.exists()]
    if missing:
        raise UsageError(f"no such file or folder: {', '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="inferd-") as root:
        config = build_config(
            Path(root),
            arguments.paths,
            listen=arguments.http,
            mqtt_url=arguments.mqtt,
            allow_anonymous=arguments.allow_anonymous,
            log_level="info" if arguments.verbose else "warning",
        )
        run_daemon(config, _announce)
    return ExitCode.DONE


def _announce(running: Running) -> None:
    models = running.service.models()
    print(describe_models(models))
    print(f"listening on {', '.join(running.addresses)}")
    example = curl_example(models, running.addresses[0])
    if example:
        print(f"try: {example}")
    print("Ctrl-C ends it.", flush=True)


def describe_models(models: Sequence[ModelStatus]) -> str:
    """A line for each version: what it is and what runs it, or why it cannot be served."""
    rows = [
        (model.name, f"version {version.version}", version.state.value, _detail(version))
        for model in models
        for version in model.versions
    ]
    return table(rows) if rows else "no models"


def curl_example(models: Sequence[ModelStatus], address: str) -> str:
    """A request that the first model with a way of its own to be asked will answer; "" for none."""
    for model in models:
        ready = [each for each in model.versions if each.state is VersionState.READY]
        profile = ready[0].profile if ready else None
        if profile is None:
            continue
        file = _EXAMPLE_FILES.get(profile.input_kind)
        if file is None:
            return shlex.join(["curl", f"{address}{model_path(model.name)}"])
        url = f"{address}{model_path(model.name, verb='predict')}"
        return shlex.join(["curl", "--data-binary", f"@{file}", url])
    return ""


def _detail(version: VersionStatus) -> str:
    if version.report is None or version.state is not VersionState.READY:
        return printable(version.reason)
    return f"on {version.report.device}"
