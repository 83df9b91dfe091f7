"""`bundle sign` and `bundle verify`: whether a bundle is whole, and whose model is in it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from msgspec.structs import replace

from daemon.build import signature
from daemon.build.errors import CannotSign, SignatureRejected
from daemon.cli.bundle import check_out, refusing, sha256_of, summary
from daemon.cli.outcome import CommandError, ExitCode, UsageError
from daemon.cli.passphrases import Passphrases
from daemon.cli.scratch import scratch_folder
from daemon.cli.text import print_json
from updater.bundle import build_bundle, folder_files, open_bundle, verify_bundle
from updater.manifest import MANIFEST_NAME
from updater.publisher.errors import PublisherError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

    from updater.manifest import Manifest


def sign(arguments: argparse.Namespace) -> ExitCode:
    """Put a model signature into a bundle, and say what the bundle is now.

    Raises:
        UsageError: there is no such file, or the bundle cannot go there.
        CommandError: it is no bundle, the key cannot be used, or the disk refused.
    """
    out = arguments.out or arguments.file
    check_out(out)
    with _opened(arguments.file) as (manifest, folder), _signing(arguments.key):
        passphrases = Passphrases(arguments.passphrase_file, os.environ)
        wanted = (
            passphrases.for_known(arguments.key) if signature.is_encrypted(arguments.key) else ()
        )
        signature.sign(folder, key=arguments.key, passphrases=wanted)
        signed = build_bundle(folder_files(folder), out, replace(manifest, files=()))
    print(f"{out}: {summary(signed)}, signed by {signature.SIGNATURE_FILE}")
    print(f"sha256 {sha256_of(out)}")
    return ExitCode.DONE


def verify(arguments: argparse.Namespace) -> ExitCode:
    """Read all of a bundle, and say whether every byte is as its manifest says.

    Raises:
        UsageError: there is no such file.
        CommandError: it is not, or cannot be read; or it is not signed with the given key.
    """
    with refusing(arguments.file):
        manifest, digest = verify_bundle(arguments.file), sha256_of(arguments.file)
    if arguments.key is not None:
        _verify_signature(arguments.file, arguments.key)
    if arguments.json:
        print_json({"name": manifest.name, "version": manifest.version, "sha256": digest})
    else:
        print(f"{arguments.file} is whole: {summary(manifest)}")
        if arguments.key is not None:
            print(f"its model signature is made with the key of {arguments.key}")
        print(f"sha256 {digest}")
    return ExitCode.DONE


def _verify_signature(bundle: Path, key: Path) -> None:
    with _opened(bundle) as (_, folder), _signing(key):
        signature.verify(folder, key=key)


@contextmanager
def _opened(bundle: Path) -> Iterator[tuple[Manifest, Path]]:
    """A bundle's manifest, and its files alone in a folder that has the model's name."""
    with scratch_folder() as scratch:
        folder = scratch / "model"
        folder.mkdir()
        with refusing(bundle):
            manifest = open_bundle(bundle, folder, limit_bytes=bundle.stat().st_size)
            (folder / MANIFEST_NAME).unlink()
            named = folder.rename(scratch / f"{manifest.name}-{manifest.version}")
            yield manifest, named


@contextmanager
def _signing(key: Path) -> Iterator[None]:
    if not key.is_file():
        raise UsageError(f"argument --key: no such file: {key}")
    try:
        yield
    except (CannotSign, SignatureRejected, PublisherError) as exc:
        raise CommandError(str(exc)) from exc
