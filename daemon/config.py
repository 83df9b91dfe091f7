"""The daemon's configuration: its tables, their bounds and defaults. Pure.

`/etc/inferd/inferd.toml` and `conf.d/*.toml` are read by `daemon/__main__.py`; this module takes
their text. `config/inferd.toml` shows every key; a test holds the two together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from daemon.modelfile import Name, Table

Port = Annotated[int, Field(ge=0, le=65535)]


class DeviceTable(Table):
    """`[device]`: who this appliance is."""

    id: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$|^$")] = ""
    """Names it in MQTT topics; empty for the host name."""


class PathsTable(Table):
    """`[paths]`: where things lie. Relative paths are below `root`."""

    root: Path = Path("/")
    state: Path = Path("var/lib/inferd")
    run: Path = Path("run/inferd")


class HttpTable(Table):
    """`[http]`: the HTTP front end."""

    listen: tuple[str, ...] = ("127.0.0.1:8080",)
    """host:port each; port 0 takes a free one; () for none."""
    unix_socket: bool = True
    """Also listen on `run`/inferd.sock."""
    allow_anonymous: bool = False
    """Allow an address that others on the network can reach, without tokens."""
    max_body_mib: Annotated[int, Field(ge=1, le=1024)] = 64
    max_connections: Annotated[int, Field(ge=1, le=65536)] = 512
    header_timeout_s: Annotated[float, Field(gt=0, le=600)] = 15.0
    body_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """A body that has not arrived after so long is refused (408)."""
    keepalive_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 75.0


class MqttTable(Table):
    """`[mqtt]`: the MQTT front end; off while `url` is empty."""

    url: Annotated[str, Field(max_length=500)] = ""
    """mqtt://HOST[:PORT] or mqtts://HOST[:PORT]."""
    protocol: Literal["5", "3.1.1"] = "5"
    client_id: Annotated[str, Field(max_length=128)] = ""
    """Empty for inferd-<device id>."""
    username: Annotated[str, Field(max_length=256)] = ""
    password_file: Path | None = None
    ca_file: Path | None = None
    keepalive_s: Annotated[int, Field(ge=5, le=3600)] = 30
    max_payload_mib: Annotated[int, Field(ge=1, le=256)] = 16
    max_inflight: Annotated[int, Field(ge=1, le=1000)] = 20
    """Requests taken up at a time; the rest wait at the broker."""
    outbox_max_messages: Annotated[int, Field(ge=1, le=1000000)] = 10000
    outbox_max_mib: Annotated[int, Field(ge=1, le=10240)] = 64
    shared_group: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{0,64}$")] = "inferd"
    """Group of the shared subscription to inferd/any/...; empty to take no part."""


class ServedModel(Table):
    """`[[models.serve]]`: one model by path, with what the defaults do not say."""

    path: Path
    name: Name | None = None
    version_policy: Literal["latest", "all", "specific"] = "latest"
    latest: Annotated[int, Field(ge=1, le=100)] = 1
    """For "latest": how many of the newest versions are served."""
    versions: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """For "specific"."""
    labels: dict[Name, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Version labels, e.g. {stable = 3, canary = 4}."""


class ModelsTable(Table):
    """`[models]`: what is served."""

    folders: tuple[Path, ...] = (Path("var/lib/inferd/models"),)
    """Every model found directly below is served, latest version."""
    serve: tuple[ServedModel, ...] = ()
    poll_interval_s: Annotated[float, Field(ge=0.05, le=3600)] = 2.0
    max_models: Annotated[int, Field(ge=1, le=1000)] = 64


class DefaultsTable(Table):
    """`[defaults]`: for every model whose model.toml does not say."""

    accelerators: Annotated[tuple[Name, ...], Field(min_length=1)] = ("cpu",)
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    instances: Annotated[int, Field(ge=1, le=64)] = 1
    isolation: Literal["process", "thread"] = "process"
    queue: Annotated[int, Field(ge=1, le=100000)] = 64
    """Requests that may wait or run for one version; more are refused at once."""
    timeout_ms: Annotated[int, Field(ge=1, le=3600000)] = 30000
    """A request's time limit, and the time after which a running call gets its worker killed."""
    load_timeout_ms: Annotated[int, Field(ge=100, le=3600000)] = 60000
    memory_mib: Annotated[int, Field(ge=16, le=1048576)] = 1024
    top_k: Annotated[int, Field(ge=1, le=10000)] = 5
    recycle_after_calls: Annotated[int, Field(ge=0)] = 0


class MediaTable(Table):
    """`[media]`: bounds of pictures and sounds."""

    max_pixels: Annotated[int, Field(ge=1, le=2**31)] = 50_000_000
    max_audio_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    decode_threads: Annotated[int, Field(ge=1, le=64)] = 2


class LogsTable(Table):
    """`[logs]`."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class LifeTable(Table):
    """`[life]`: start and stop."""

    drain_timeout_s: Annotated[float, Field(gt=0, le=600)] = 20.0
    """At SIGTERM, requests under way may take so long; then the daemon stops."""


class Config(Table):
    """The whole configuration."""

    device: DeviceTable = DeviceTable()
    paths: PathsTable = PathsTable()
    http: HttpTable = HttpTable()
    mqtt: MqttTable = MqttTable()
    models: ModelsTable = ModelsTable()
    defaults: DefaultsTable = DefaultsTable()
    media: MediaTable = MediaTable()
    logs: LogsTable = LogsTable()
    life: LifeTable = LifeTable()
