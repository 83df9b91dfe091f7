"""A Debian that boots: real systemd in a container, over a tree that stays as it is.

    tree = make_tree("bookworm", folder)                  # once, half a minute
    with Machine(tree, binds={"/drop": packages}).running() as machine:
        machine.run("apt-get", "install", "-y", "/drop/inferd.deb")
        assert machine.ask("systemctl", "is-active", "inferd") == "active"

Whatever a machine writes is gone when it stops. It has a network of its own with nothing but
loopback, so ports are free. It works without systemd on the host: nothing is registered.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CGROUPS = Path("/sys/fs/cgroup")
_PACKAGES = (
    "systemd,systemd-sysv,dbus,libnss-systemd,python3,ca-certificates,udev,procps,iproute2,"
    "python3-systemd,mosquitto,mosquitto-clients,curl,gpgv"
)
_NEEDS = ("systemd-nspawn", "mmdebstrap", "nsenter")
_BOOT_S = 60.0


def why_not() -> str | None:
    """Why no machine can be booted here; None when one can."""
    if os.geteuid() != 0:
        return "a machine needs root to boot"
    missing = [name for name in _NEEDS if shutil.which(name) is None]
    if missing:
        return f"a machine needs {', '.join(missing)}"
    return None


def make_tree(
    suite: str,
    tree: Path,
    *,
    sources: str,
    options: tuple[str, ...] = ("--variant=minbase",),
    packages: str = _PACKAGES,
) -> Path:
    """Debian in a folder, from the mirror this machine uses; there already: as it is.

    Args:
        sources: of apt, for the suite: a file's path or a mirror's URL.
        options: further ones of mmdebstrap.
    """
    done = tree.with_name(f"{tree.name}.done")
    if not done.exists():
        shutil.rmtree(tree, ignore_errors=True)
        tree.parent.mkdir(parents=True, exist_ok=True)
        languages = "--aptopt=Acquire::Languages none"
        command = ("mmdebstrap", "--quiet", *options, languages)
        _run(*command, f"--include={packages}", suite, str(tree), sources)
        (tree / "etc/machine-id").write_text("")  # each boot is a machine of its own
        done.touch()
    return tree


@dataclass
class Machine:
    """One boot.

    Attributes:
        binds: folders of the host that it sees, read-only, by where it sees them.
        options: more for systemd-nspawn.
    """

    tree: Path
    binds: Mapping[str, Path] = field(default_factory=dict)
    options: tuple[str, ...] = ("--volatile=overlay",)
    leader: int = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[Machine]:
        """Boot, and halt at the end."""
        name = f"inferd-{uuid.uuid4().hex[:8]}"
        with _own_cgroups(name) as groups:
            nspawn = self._start(name, groups)
            try:
                self._wait_until_up(nspawn)
                yield self
            finally:
                nspawn.terminate()  # nspawn halts the machine
                try:
                    nspawn.wait(30)
                except subprocess.TimeoutExpired:
                    nspawn.kill()
                    nspawn.wait()
                    if self.leader:  # it would go on without nspawn
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(self.leader, signal.SIGKILL)

    def run(
        self, *command: str, check: bool = True, timeout_s: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in it, as root."""
        inside = ("nsenter", "-t", str(self.leader), "-a", "env", "-i", f"PATH={_PATH}")
        clean = ("LC_ALL=C.UTF-8", "HOME=/root", "TERM=dumb", "SYSTEMD_PAGER=", *command)
        done = subprocess.run(
            (*inside, "DEBIAN_FRONTEND=noninteractive", *clean),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(
                f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done

    def ask(self, *command: str) -> str:
        """What a program prints, whatever its exit status."""
        return self.run(*command, check=False).stdout.strip()

    def sh(self, script: str, *, check: bool = True, timeout_s: float = 120.0) -> str:
        """What a shell script prints."""
        return self.run("sh", "-ec", script, check=check, timeout_s=timeout_s).stdout.strip()

    def write(self, path: str, content: str | bytes) -> None:
        """Make a file in it."""
        raw = content.encode() if isinstance(content, str) else content
        inside = ("nsenter", "-t", str(self.leader), "-a", "sh", "-c", 'cat > "$1"', "sh", path)
        subprocess.run(inside, input=raw, check=True, env={"PATH": _PATH})

    def wait_for(self, condition: str, *, timeout_s: float = 60.0) -> None:
        """Until a shell condition holds."""
        deadline = time.monotonic() + timeout_s
        while self.run("sh", "-c", condition, check=False).returncode:
            if time.monotonic() > deadline:
                journal = self.ask("journalctl", "-u", "inferd*", "-n", "50", "--no-pager")
                raise AssertionError(f"after {timeout_s:g} s still not: {condition}\n{journal}")
            time.sleep(0.1)

    def put_model(self, name: str, model: bytes, tables: str = "") -> None:
        """Let an operator put a model where the daemon looks."""
        folder = f"/var/lib/inferd/models/{name}"
        self.run("mkdir", "-p", folder)
        self.write(f"{folder}/model.toml", tables)
        self.write(f"{folder}/model.tflite", model)

    def wait_until_ready(self, model: str) -> None:
        """Until the daemon serves it."""
        self.wait_for(f"curl -sf -m 5 http://127.0.0.1:8080/v2/models/{model}/ready")

    def predict(self, model: str, *values: float) -> list[float]:
        """What a model makes of a row of numbers, over HTTP."""
        shape = [1, len(values)]
        inputs = [{"name": "x", "shape": shape, "datatype": "FP32", "data": values}]
        url = f"http://127.0.0.1:8080/v2/models/{model}/infer"
        body = json.dumps({"inputs": inputs})
        answer = json.loads(self.run("curl", "-sS", "-m", "20", "-d", body, url).stdout)
        assert "outputs" in answer, answer
        return list(answer["outputs"][0]["data"])

    def _start(self, name: str, groups: tuple[Path, ...]) -> subprocess.Popen[bytes]:
        join = "".join(f"echo $$ > {group}/cgroup.procs; " for group in groups)
        binds = [f"--bind-ro={folder}:{place}" for place, folder in self.binds.items()]
        command = ["systemd-nspawn", "-q", "--register=no", "--keep-unit", "-M", name]
        command += ["-D", str(self.tree), "--private-network", *self.options, *binds, "--boot"]
        return subprocess.Popen(
            ["sh", "-c", f'{join}exec "$@"', "sh", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _wait_until_up(self, nspawn: subprocess.Popen[bytes]) -> None:
        """Its first process is nspawn's last child: an earlier one makes it and ends."""
        children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")
        deadline = time.monotonic() + _BOOT_S
        state = ""
        while time.monotonic() < deadline:
            if nspawn.poll() is not None:
                raise AssertionError(f"systemd-nspawn ended with {nspawn.returncode}")
            if found := children.read_text().split():
                self.leader = int(found[-1])
                state = self.ask("systemctl", "is-system-running")
                if state in {"running", "degraded"}:
                    return
            time.sleep(0.1)
        raise AssertionError(f"the machine is not up after {_BOOT_S:g} s: {state!r}")


@contextlib.contextmanager
def _own_cgroups(name: str) -> Iterator[tuple[Path, ...]]:
    """A group below ours in every hierarchy, so that two machines do not meet."""
    groups = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers:
            base = _CGROUPS / controllers.removeprefix("name=")
        else:
            unified = _CGROUPS / "unified"
            base = unified if unified.is_dir() else _CGROUPS
        ours = base / path.lstrip("/")
        group = ours / name
        group.mkdir()
        if controllers == "cpuset":
            for key in ("cpuset.cpus", "cpuset.mems"):
                (group / key).write_text((ours / key).read_text())
        groups.append(group)
    try:
        yield tuple(groups)
    finally:
        for group in groups:
            for folder in sorted(group.glob("**/"), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{command[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
