"""`bundle test`: would a device that is offered this bundle take it? Asked here, before it is.

The bundle is opened as a device opens it, into a temporary folder, and probed as a device's daemon
probes it. Nothing else is started, and no daemon need run.
"""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import uvloop
from prometheus_client import CollectorRegistry

from accelerators.errors import AcceleratorError
from accelerators.forkserver import ForkServer
from daemon.cli.bundle import refusing, summary
from daemon.cli.inprocess import BadConfig
from daemon.cli.outcome import CommandError, ExitCode
from daemon.cli.scratch import scratch_folder
from daemon.cli.text import mebibytes, print_json, printable
from daemon.config import parse_config
from daemon.errors import ConfigError, ModelUnavailable
from daemon.logs import ROOT_LOGGER
from daemon.metrics import Metrics
from daemon.models.registry import ModelRegistry
from daemon.models.store import look_at_release
from daemon.pipeline.media import MediaLimits
from daemon.probe import Prober
from daemon.service import InferenceService
from updater.bundle import open_bundle

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from daemon.config import Config
    from daemon.probe import Verdict
    from updater.manifest import Manifest


def test(arguments: argparse.Namespace) -> ExitCode:
    """Probe a bundle; done when it would serve well here.

    Raises:
        CommandError: it is no bundle, or it cannot be tried here.
    """
    with scratch_folder() as scratch:
        with refusing(arguments.file):
            manifest, folder = _unpack(arguments.file, scratch)
        verdict = _judge(_probe(folder, _config(scratch)), manifest)
        _, found = look_at_release(folder)
    if arguments.json:
        print_json({"ok": verdict.ok, **asdict(verdict)})
    else:
        print(describe(verdict, manifest))
        if verdict.ok and found is not None and not found.tables.health.samples:
            print("  It has no health samples: zeros were tried, which shows little.")
    return ExitCode.DONE if verdict.ok else ExitCode.FAILED


def describe(verdict: Verdict, manifest: Manifest) -> str:
    """A verdict for people: a line, or one more for each thing that is wrong."""
    if not verdict.ok:
        reasons = "".join(f"\n  {printable(reason)}" for reason in verdict.reasons)
        return f"{summary(manifest)}: it would not be taken{reasons}"
    asked = f"{verdict.samples} health sample{'s' * (verdict.samples != 1)}"
    return (
        f"{summary(manifest)}: it would serve well here\n"
        f"  {asked} on {verdict.device}, {verdict.latency_ms:.3g} ms a call, "
        f"{mebibytes(verdict.memory_bytes)}"
    )


def _unpack(bundle: Path, scratch: Path) -> tuple[Manifest, Path]:
    folder = scratch / "release"
    folder.mkdir()
    return open_bundle(bundle, folder, limit_bytes=bundle.stat().st_size), folder


def _config(scratch: Path) -> Config:
    try:
        return parse_config((), os.environ, arguments={"paths": {"root": str(scratch)}})
    except ConfigError as exc:
        raise BadConfig(str(exc)) from exc


def _judge(verdict: Verdict, manifest: Manifest) -> Verdict:
    """What the probe says, and whether the model is the one that the manifest speaks of."""
    told = f"{verdict.model} version {verdict.version}"
    wanted = f"{manifest.name} version {manifest.version}"
    if told == wanted or not verdict.ok:
        return verdict
    reason = f"its model.toml speaks of {told}, its manifest of {wanted}"
    return replace(verdict, reasons=(reason,))


def _probe(folder: Path, config: Config) -> Verdict:
    # What the model's own code would log is in the verdict.
    logging.getLogger(ROOT_LOGGER).setLevel(logging.CRITICAL)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(folder, config))
    except (OSError, AcceleratorError, ModelUnavailable) as exc:
        raise CommandError(f"cannot try it: {exc}") from exc


async def _run(folder: Path, config: Config) -> Verdict:
    forkserver = ForkServer()
    await forkserver.start()
    try:
        metrics = Metrics(CollectorRegistry())
        with ThreadPoolExecutor(1) as executor:
            service = InferenceService(
                ModelRegistry(config, forkserver=forkserver, metrics=metrics),
                metrics=metrics,
                media_limits=MediaLimits(
                    max_pixels=config.media.max_pixels, max_audio_s=config.media.max_audio_s
                ),
                media_executor=executor,
            )
            return await Prober(config, forkserver, service).probe(folder)
    finally:
        await forkserver.stop()
