#!/usr/bin/env python3
"""Makes a signed apt repository of packages: a folder for any static web server.

    python packaging/build_apt_repo.py --key ID --out dist/apt dist/inferd_*.deb

Run again with newer packages, it keeps the older ones, so that a device can be put back to one
(`apt-get install inferd=VERSION`). What aptly knows of them is in OUT/.aptly, which need not be
published.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

SUITES = {"": "bookworm", "~deb13": "trixie"}
KEYRING = "inferd-archive-keyring.gpg"


def main() -> None:
    """Make or renew the repository."""
    parser = argparse.ArgumentParser(description="Make a signed apt repository.")
    parser.add_argument("packages", nargs="+", type=Path, metavar="DEB")
    parser.add_argument("--key", required=True, help="of gpg, which signs: fingerprint or e-mail")
    parser.add_argument("--out", type=Path, default=Path("dist/apt"))
    options = parser.parse_args()
    for program in ("aptly", "gpg"):
        if shutil.which(program) is None:
            sys.exit(f"build_apt_repo: {program} is not installed: apt-get install {program}")
    exported = _run("gpg", "--export", options.key)
    if not exported:
        sys.exit(f"build_apt_repo: gpg has no key {options.key}: gpg --quick-generate-key NAME")
    state = options.out.resolve() / ".aptly"
    state.mkdir(parents=True, exist_ok=True)
    config = state / "aptly.conf"
    config.write_text(json.dumps(_settings(state, options.out.resolve())))
    for suffix, suite in SUITES.items():
        packages = [path for path in options.packages if _suffix(path) == suffix]
        if packages:
            _publish(("aptly", f"-config={config}"), suite, packages, options.key)
    (options.out / KEYRING).write_bytes(exported)
    print(f"{options.out}: publish this folder; devices need {KEYRING} in /usr/share/keyrings")


def _settings(state: Path, out: Path) -> dict[str, object]:
    point = {"rootDir": str(out), "linkMethod": "copy", "verifyMethod": "md5"}
    return {
        "rootDir": str(state),
        "architectures": ["amd64", "arm64"],
        "FileSystemPublishEndpoints": {"out": point},
    }


def _publish(aptly: tuple[str, ...], suite: str, packages: list[Path], key: str) -> None:
    name = f"inferd-{suite}"
    known = _run(*aptly, "repo", "list", "-raw").decode().split()
    if name not in known:
        _run(*aptly, "repo", "create", f"-distribution={suite}", "-component=main", name)
    _run(*aptly, "repo", "add", "-force-replace", name, *map(str, packages))
    published = f"filesystem:out:. {suite}" in _run(*aptly, "publish", "list", "-raw").decode()
    if published:
        _run(*aptly, "publish", "update", "-batch", f"-gpg-key={key}", suite, "filesystem:out:")
    else:
        facts = ("-origin=inferd", "-label=inferd", "-architectures=amd64,arm64")
        signing = ("-batch", f"-gpg-key={key}")
        _run(*aptly, "publish", "repo", *signing, *facts, name, "filesystem:out:")


def _suffix(package: Path) -> str:
    """What follows the version: `~deb13` in inferd_1.0.0~deb13_amd64.deb."""
    version = package.name.split("_")[1]
    return next((suffix for suffix in SUITES if suffix and version.endswith(suffix)), "")


def _run(*command: str) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip() or done.stdout.decode().strip()
        sys.exit(f"build_apt_repo: {' '.join(command[:4])} ...: {message}")
    return done.stdout


if __name__ == "__main__":
    main()
