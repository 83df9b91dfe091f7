"""A signed bundle as the metadata describes it, before a byte of it is fetched. Pure.

The rules that python-tuf does not have:

1. A bundle of model M in version V is the target `M/M-V.bundle`, and its signed facts say the same
   M and V. The path decides whose key may sign it, so nobody signs for a model of another team.
2. It has a sha256. Other hashes alone (md5 is one that python-tuf would take) are not believed.
3. Its facts repeat the manifest, so that a bundle for another device is refused before it is
   fetched. Whoever opens the bundle checks that they do (`disagreement`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from updater.desired import Counter, ModelName, Version  # noqa: TC001 - msgspec looks them up
from updater.errors import TrustReason, Untrusted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from updater.manifest import Manifest

_SHA256 = re.compile(r"[0-9a-f]{64}")
_Word = Annotated[str, Meta(min_length=1, max_length=128)]
_Words = Annotated[tuple[_Word, ...], Meta(max_length=64)]


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the signed metadata says of a bundle; the names are the manifest's.

    Attributes:
        release_counter: grows with each release of the model that must not be undone.
        runtime: which runtimes can run it, e.g. "litert>=2.3,<3".
        architectures: Debian's names, "amd64"; empty: any.
        accelerators: kinds it cannot do without.
        memory_mib: what it takes to run it; None: not said.
    """

    name: ModelName
    version: Version
    release_counter: Counter
    runtime: _Word
    architectures: _Words = ()
    accelerators: _Words = ()
    memory_mib: Annotated[int, Meta(ge=1, le=1 << 30)] | None = None


@dataclass(frozen=True, slots=True)
class SignedFile:
    """A target as TUF knows it.

    Attributes:
        path: the TUF target path.
        location: where its bytes lie below the repository, "targets/digits/SHA256.digits-2.bundle".
        length: bytes.
        hashes: algorithm to hex digest.
        custom: what the signer added, not checked.
        role: whose metadata lists it: "targets" or a delegation's name.
    """

    path: str
    location: str
    length: int
    hashes: Mapping[str, str]
    custom: object
    role: str


@dataclass(frozen=True, slots=True)
class Target:
    """A signed bundle that follows the rules above.

    Attributes:
        path, location, length, role: as in `SignedFile`.
        sha256: of the bundle.
    """

    path: str
    location: str
    length: int
    sha256: str
    role: str
    facts: Facts


def bundle_path(model: str, version: int) -> str:
    """The TUF target path of a bundle (rule 1)."""
    return f"{model}/{model}-{version}.bundle"


def sha256_of(file: SignedFile) -> str:
    """Its sha256 (rule 2).

    Raises:
        Untrusted: MALFORMED, it has none.
    """
    digest = file.hashes.get("sha256", "")
    if not _SHA256.fullmatch(digest):
        named = ", ".join(sorted(file.hashes)) or "none"
        message = f"{file.path} is signed without a sha256 (hashes: {named})"
        raise Untrusted(TrustReason.MALFORMED, message, role=file.role)
    return digest


def read_target(file: SignedFile) -> Target:
    """Check what is signed of a bundle.

    Raises:
        Untrusted: MALFORMED, it breaks one of the rules.
    """
    try:
        facts = msgspec.convert(file.custom, Facts)
    except (msgspec.ValidationError, RecursionError) as exc:
        message = f"{file.path} is signed with facts this device cannot follow: {exc}"
        raise Untrusted(TrustReason.MALFORMED, message, role=file.role) from exc
    if file.path != bundle_path(facts.name, facts.version):
        message = f"{file.path} is signed as {facts.name} version {facts.version}"
        raise Untrusted(TrustReason.MALFORMED, message, role=file.role)
    return Target(file.path, file.location, file.length, sha256_of(file), file.role, facts)


def facts_of(manifest: Manifest) -> Facts:
    """The facts that are signed of a bundle with this manifest."""
    names = Facts.__struct_fields__
    return Facts(**{name: getattr(manifest, name) for name in names})


def disagreement(signed: Facts, manifest: Facts) -> str:
    """In what a bundle's manifest differs from its signed facts (rule 3); "" when in nothing."""
    differing = [
        f"{name} is {getattr(manifest, name)!r}, signed as {getattr(signed, name)!r}"
        for name in Facts.__struct_fields__
        if getattr(manifest, name) != getattr(signed, name)
    ]
    return "; ".join(differing)
