"""`serve`: a daemon from the command line, for models in files, until Ctrl-C."""

from __future__ import annotations

import shlex
from functools import partial
from typing import TYPE_CHECKING

from daemon.cli.client import model_path
from daemon.cli.inprocess import BadConfig, build_config, run_daemon
from daemon.cli.outcome import CommandError, ExitCode, UsageError
from daemon.cli.scratch import scratch_folder
from daemon.cli.text import printable, table
from daemon.config import parse_address, parse_mqtt_url
from daemon.models.status import VersionState

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path

    from daemon.app import Running
    from daemon.config import Config
    from daemon.models.status import ModelStatus, VersionStatus

_EXAMPLE_FILES = {"image": "picture.jpg", "audio": "sound.wav"}
"""By the value of `InputKind`, whose module brings NumPy: that must come after the early fork."""


def serve(arguments: argparse.Namespace) -> ExitCode:
    """Serve until stopped; a model that cannot be served is named with its reason.

    Raises:
        UsageError: an argument cannot be used.
        CommandError: it cannot start, or there is nothing that can be served.
    """
    missing = [str(path) for path in arguments.paths if not path.exists()]
    if missing:
        raise UsageError(f"argument PATH: no such file or folder: {', '.join(missing)}")
    refused = ""

    def on_ready(running: Running) -> None:
        nonlocal refused
        models = running.service.models()
        if _is_any_ready(models):
            _announce(models, running.addresses)
            return
        refused = describe_models(models)
        running.stop()

    with scratch_folder() as root:
        run_daemon(_configure(arguments, root), on_ready)
    if refused:
        raise CommandError(f"nothing can be served\n{refused}")
    return ExitCode.DONE


def _configure(arguments: argparse.Namespace, root: Path) -> Config:
    try:
        address = parse_address(arguments.http)
    except ValueError as error:
        raise UsageError(f"argument --http: '{printable(arguments.http)}': {error}") from error
    try:
        if arguments.mqtt:
            parse_mqtt_url(arguments.mqtt)
    except ValueError as error:
        raise UsageError(f"argument --mqtt: {error}") from error
    build = partial(
        build_config,
        root,
        arguments.paths,
        listen=arguments.http,
        mqtt_url=arguments.mqtt,
        log_level="info" if arguments.verbose else "warning",
    )
    try:
        return build(allow_anonymous=arguments.allow_anonymous)
    except BadConfig:
        if address.is_loopback or arguments.allow_anonymous:
            raise
    build(allow_anonymous=True)  # raises where something else is wrong
    raise UsageError(
        f"argument --http: others on the network can reach {arguments.http} and nothing asks them "
        "who they are: add --allow-anonymous to let them in"
    )


def _is_any_ready(models: Sequence[ModelStatus]) -> bool:
    versions = (version for model in models for version in model.versions)
    return any(version.state is VersionState.READY for version in versions)


def _announce(models: Sequence[ModelStatus], addresses: Sequence[str]) -> None:
    print(describe_models(models))
    print(f"listening on {', '.join(addresses)}")
    example = curl_example(models, addresses[0])
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
        file = _EXAMPLE_FILES.get(profile.input_kind.value)
        if file is None:
            return shlex.join(["curl", f"{address}{model_path(model.name)}"])
        url = f"{address}{model_path(model.name, verb='predict')}"
        return shlex.join(["curl", "--data-binary", f"@{file}", url])
    return ""


def _detail(version: VersionStatus) -> str:
    if version.report is None or version.state is not VersionState.READY:
        return printable(version.reason)
    return f"on {version.report.device}"
