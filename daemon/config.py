"""The daemon's configuration: its tables, their bounds and defaults. Pure.

`configfiles.py` reads `/etc/inferd/inferd.toml` and `conf.d/*.toml`; this module takes their text.
`config/inferd.toml` shows every key; a test holds the two together.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from daemon.errors import ConfigError
from daemon.modelfile import EXTERNAL_NAME, AcceleratorWish, ModelName
from daemon.tables import (
    SECRET,
    Check,
    KeyPath,
    Name,
    Problem,
    Table,
    accepts,
    changed,
    check_tables,
    has_key,
    parse_toml,
    unknown_key,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ENVIRONMENT_PREFIX = "INFERD_"
_ENVIRONMENT_SEPARATOR = "__"
_CREDENTIALS = "$CREDENTIALS_DIRECTORY"
"""What a path may begin with, instead of being below the root. Source: systemd.exec(5)."""
_FILES = {
    "http": ("tokens_file", "tls_certificate", "tls_key", "tls_client_ca"),
    "mqtt": ("password_file", "ca_file", "certificate_file", "key_file"),
}


@dataclass(frozen=True, slots=True)
class Address:
    """A host and port to listen on or to connect to.

    Attributes:
        host: a name or an IP address, without brackets.
        port: 0 takes a free one.
    """

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """True when only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_address(text: str) -> Address:
    """Read "host:port", with an IPv6 host in brackets.

    Raises:
        ValueError: it is not of that form; the message says what was expected.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    well_formed = _is_ipv6(bare) if bracketed else _HOST.fullmatch(bare) is not None
    if not (colon and well_formed and _PORT.fullmatch(port) and int(port) <= _HIGHEST_PORT):
        raise ValueError(f"expected {_ADDRESS_FORM}")
    return Address(bare, int(port))


_HIGHEST_PORT = 65535
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_PORT = re.compile(r"[0-9]{1,5}")
_ADDRESS_FORM = '"host:port" with a port from 0 to 65535, e.g. "127.0.0.1:8080" or "[::1]:8080"'


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _check_address(text: str) -> str:
    parse_address(text)
    return text


_MQTT_FORM = "mqtt://HOST[:PORT] or mqtts://HOST[:PORT], the user name in mqtt.username"
_MQTT_PORTS = {"mqtt": 1883, "mqtts": 8883}


def parse_mqtt_url(text: str) -> tuple[Address, bool]:
    """Read a broker's URL: its address, and whether TLS is spoken.

    Raises:
        ValueError: it is not of the form; the message says what was expected, never the text, for
            that may hold a password.
    """
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError(f"expected {_MQTT_FORM}") from None
    host = url.hostname or ""
    plain = not (url.path.strip("/") or url.query or url.fragment or "@" in url.netloc)
    well_formed = _HOST.fullmatch(host) or _is_ipv6(host)
    plain = plain and text.isprintable()  # urlsplit drops line ends in silence
    if url.scheme not in _MQTT_PORTS or port == 0 or not (plain and well_formed):
        raise ValueError(f"expected {_MQTT_FORM}")
    return Address(host, port or _MQTT_PORTS[url.scheme]), url.scheme == "mqtts"


def _check_mqtt_url(text: str) -> str:
    if text:
        parse_mqtt_url(text)
    return text


_SOURCE_FORM = "http://HOST/..., https://HOST/... or an absolute path; no user name in it"


def _check_source(text: str) -> str:
    if text and not (text.startswith("/") or _is_web_address(text)):
        raise ValueError(f"expected {_SOURCE_FORM}")
    return _check_printable(text)


def _is_web_address(text: str) -> bool:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        return False
    host = url.hostname or ""
    plain = not (url.query or url.fragment or "@" in url.netloc) and port != 0
    return (
        url.scheme in {"http", "https"} and plain and bool(_HOST.fullmatch(host) or _is_ipv6(host))
    )


def _check_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected text without control characters")
    return text


def _check_root(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("expected an absolute path")
    return path


class DeviceTable(Table, frozen=True):
    """`[device]`: who this appliance is."""

    id: Annotated[
        str,
        Meta(
            max_length=64,
            pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]*)?\Z",
            description="up to 64 letters, digits, '_', '.' and '-', a letter or digit first",
        ),
    ] = ""
    """Names it in MQTT topics; empty for the host name."""
    labels: dict[Name, Name] = msgspec.field(default_factory=dict)
    """What the fleet's wishes pick devices by."""


class PathsTable(Table, frozen=True):
    """`[paths]`: where things lie. Relative paths are below `root`."""

    root: Annotated[Path, Check(_check_root), Meta(description="an absolute path")] = Path("/")
    state: Path = Path("var/lib/inferd")
    run: Path = Path("run/inferd")
    updater_state: Path = Path("var/lib/inferd-updater")


class HttpTable(Table, frozen=True):
    """`[http]`: the HTTP front end."""

    listen: tuple[Annotated[str, Check(_check_address), Meta(description=_ADDRESS_FORM)], ...] = (
        "127.0.0.1:8080",
    )
    """host:port each; port 0 takes a free one; () for none."""
    unix_socket: bool = True
    """Also listen on `run`/inferd.sock."""
    allow_anonymous: bool = False
    """Allow an address that others on the network can reach, though nothing asks who they are."""
    tokens_file: Path | None = None
    """Who comes by the network must bring a token of this file (`daemon/tokens.py`)."""
    tls_certificate: Path | None = None
    """PEM, with those it was signed by: the addresses speak https."""
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    """Clients must bring a certificate that was signed by one of these."""
    tls_client_scopes: Annotated[
        tuple[Literal["predict", "read", "admin"], ...], Meta(min_length=1)
    ] = ("predict", "read")
    """What a client's certificate is for, where there is no file of tokens."""
    max_body_mib: Annotated[int, Meta(ge=1, le=1024)] = 64
    max_connections: Annotated[int, Meta(ge=1, le=65536)] = 512
    header_timeout_s: Annotated[float, Meta(gt=0, le=600)] = 15.0
    body_timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 30.0
    """A body that has not arrived after so long is refused (408)."""
    keepalive_timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 75.0


class MqttTable(Table, frozen=True):
    """`[mqtt]`: the MQTT front end; off while `url` is empty."""

    url: Annotated[
        str,
        Check(_check_mqtt_url),
        SECRET,
        Meta(max_length=500, description=_MQTT_FORM),
    ] = ""
    """mqtt://HOST[:PORT] or mqtts://HOST[:PORT]. Never shown: somebody may put a password in it."""
    protocol: Literal["5", "3.1.1"] = "5"
    client_id: Annotated[str, Check(_check_printable), Meta(max_length=128)] = ""
    """Empty for inferd-<device id>."""
    username: Annotated[str, Check(_check_printable), Meta(max_length=256)] = ""
    password_file: Path | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    """PEM; shown to a broker that asks who we are."""
    key_file: Path | None = None
    keepalive_s: Annotated[int, Meta(ge=5, le=3600)] = 30
    max_payload_mib: Annotated[int, Meta(ge=1, le=256)] = 16
    max_inflight: Annotated[int, Meta(ge=1, le=1000)] = 20
    """Requests taken up at a time; the rest wait at the broker."""
    outbox_max_messages: Annotated[int, Meta(ge=1, le=1000000)] = 10000
    outbox_max_mib: Annotated[int, Meta(ge=1, le=10240)] = 64
    shared_group: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9_-]{0,64}\Z",
            description="up to 64 letters, digits, '_' and '-'",
        ),
    ] = "inferd"
    """Group of the shared subscription to inferd/any/...; empty to take no part."""


class ServedModel(Table, frozen=True):
    """`[[models.serve]]`: one model by path, with what the defaults do not say."""

    path: Path
    name: ModelName | None = None
    version_policy: Literal["latest", "all", "specific"] = "latest"
    latest: Annotated[int, Meta(ge=1, le=100)] = 1
    """For "latest": how many of the newest versions are served."""
    versions: tuple[Annotated[int, Meta(ge=1)], ...] = ()
    """For "specific"."""
    labels: dict[Name, Annotated[int, Meta(ge=1)]] = msgspec.field(default_factory=dict)
    """Version labels, e.g. {stable = 3, canary = 4}."""


class ModelsTable(Table, frozen=True):
    """`[models]`: what is served."""

    folders: tuple[Path, ...] = (Path("var/lib/inferd/models"),)
    """Every model found directly below is served, latest version."""
    serve: tuple[ServedModel, ...] = ()
    poll_interval_s: Annotated[float, Meta(ge=0.05, le=3600)] = 2.0
    max_models: Annotated[int, Meta(ge=1, le=1000)] = 64


class DefaultsTable(Table, frozen=True):
    """`[defaults]`: for every model whose model.toml does not say."""

    accelerators: Annotated[tuple[AcceleratorWish, ...], Meta(min_length=1)] = ("cpu",)
    threads: Annotated[int, Meta(ge=1, le=64)] = 1
    instances: Annotated[int, Meta(ge=1, le=64)] = 1
    isolation: Literal["process", "thread"] = "process"
    queue: Annotated[int, Meta(ge=1, le=100000)] = 64
    """Requests that may wait or run for one version; more are refused at once."""
    timeout_ms: Annotated[int, Meta(ge=1, le=3600000)] = 30000
    """A request's time limit, and the time after which a running call gets its worker killed."""
    load_timeout_ms: Annotated[int, Meta(ge=100, le=3600000)] = 60000
    memory_mib: Annotated[int, Meta(ge=16, le=1048576)] = 1024
    top_k: Annotated[int, Meta(ge=1, le=10000)] = 5
    recycle_after_calls: Annotated[int, Meta(ge=0)] = 0


_LIBRARY_FORM = "an absolute path, or the name of a file that the system's loader finds"


def _check_library(text: str) -> str:
    if not text or ("/" in text and not text.startswith("/")) or not text.isprintable():
        raise ValueError(f"expected {_LIBRARY_FORM}")
    return text


def _check_node(text: str) -> str:
    if text and not (text.startswith("/") and text.isprintable()):
        raise ValueError(f"expected {_NODE_FORM}")
    return text


_NODE_FORM = "an absolute path, e.g. /dev/xdma0"
Library = Annotated[
    str, Check(_check_library), Meta(min_length=1, max_length=500, description=_LIBRARY_FORM)
]


class ExternalDelegate(Table, frozen=True):
    """`[[accelerators.external]]`: a TFLite external delegate: FPGA, DSP, a vendor's NPU."""

    name: Annotated[
        str,
        Meta(
            pattern=rf"^{EXTERNAL_NAME}\Z",
            description="1 to 64 letters, digits, '_', '.' and '-', a letter or digit first",
        ),
    ]
    """Its device is external:NAME."""
    path: Library
    options: dict[Name, str | int | float | bool] = msgspec.field(default_factory=dict)
    """For the delegate; which there are, its maker says."""
    node: Annotated[str, Check(_check_node), Meta(max_length=500, description=_NODE_FORM)] = ""
    """A file that is there while the device is; empty where there is none."""
    exclusive: bool = False
    """Only one process may have the device open: its models share one."""


class AcceleratorsTable(Table, frozen=True):
    """`[accelerators]`: what devices are opened with."""

    external: Annotated[tuple[ExternalDelegate, ...], Meta(max_length=16)] = ()
    edgetpu_library: Library = "libedgetpu.so.1"
    openvino_device: Literal["npu", "gpu", "cpu"] = "npu"
    """What OpenVINO runs models on for the kind npu."""


class MediaTable(Table, frozen=True):
    """`[media]`: bounds of pictures and sounds."""

    max_pixels: Annotated[int, Meta(ge=1, le=2**31)] = 25_000_000
    max_audio_s: Annotated[float, Meta(gt=0, le=3600)] = 60.0
    decode_threads: Annotated[int, Meta(ge=1, le=64)] = 2


class LogsTable(Table, frozen=True):
    """`[logs]`."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class LifeTable(Table, frozen=True):
    """`[life]`: start and stop."""

    drain_timeout_s: Annotated[float, Meta(gt=0, le=600)] = 20.0
    """At SIGTERM, requests under way may take so long; then the daemon stops."""


class UpdatesTable(Table, frozen=True):
    """`[updates]`: where signed updates come from; for `inferd-updater`."""

    source: Annotated[
        str,
        Check(_check_source),
        SECRET,
        Meta(max_length=500, description=_SOURCE_FORM),
    ] = ""
    """Empty: nobody is asked. Never shown in a problem: somebody may put a password in it."""
    poll_interval_s: Annotated[float, Meta(ge=1, le=604800)] = 900.0
    """Between two looks, a fifth more or less."""
    least_rate_bytes_s: Annotated[float, Meta(ge=0, le=1_000_000_000)] = 1000.0
    """A download that is slower for a minute is given up, and goes on later."""
    download_deadline_s: Annotated[float, Meta(gt=0, le=604800)] = 21600.0


class Config(Table, frozen=True):
    """The whole configuration."""

    device: DeviceTable = DeviceTable()
    paths: PathsTable = PathsTable()
    http: HttpTable = HttpTable()
    mqtt: MqttTable = MqttTable()
    models: ModelsTable = ModelsTable()
    defaults: DefaultsTable = DefaultsTable()
    accelerators: AcceleratorsTable = AcceleratorsTable()
    media: MediaTable = MediaTable()
    logs: LogsTable = LogsTable()
    life: LifeTable = LifeTable()
    updates: UpdatesTable = UpdatesTable()

    @property
    def run_dir(self) -> Path:
        """Where sockets lie."""
        return self.below_root(self.paths.run)

    @property
    def socket_path(self) -> Path:
        """The unix socket of the HTTP front end."""
        return self.run_dir / "inferd.sock"

    @property
    def state_dir(self) -> Path:
        """Where the daemon keeps what must outlive it."""
        return self.below_root(self.paths.state)

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """The folders whose every model is served."""
        return tuple(self.below_root(folder) for folder in self.models.folders)

    def below_root(self, path: Path) -> Path:
        """A configured path, absolute: a relative one is below `paths.root`."""
        return self.paths.root / path


def parse_config(
    sources: Sequence[tuple[str, str]],
    environment: Mapping[str, str],
    *,
    arguments: Mapping[str, Mapping[str, object]] | None = None,
) -> Config:
    """Merge files, environment and arguments into a whole configuration.

    Later sources override earlier ones key by key; arrays are replaced. Then every variable
    `INFERD_SECTION__KEY` overrides its key: its value is read as TOML where that gives what the key
    takes, as text otherwise. Variables without `__` are not configuration and are not looked at.
    What the command line said overrides all.

    Args:
        sources: name and TOML text of each, in order.
        environment: the process's, whole.
        arguments: tables that the command line gave.

    Raises:
        ConfigError: with every problem found, one line each.
    """
    draft = _Draft()
    for source, text in sources:
        draft.add_file(source, text)
    for variable in sorted(environment):
        draft.add_variable(variable, environment[variable])
    draft.add_arguments(arguments or {})
    config, problems = check_tables(Config, draft.tables)
    lines = [*draft.lines, *(draft.place(problem) for problem in problems)]
    bad_keys = {problem.path[:2] for problem in problems}
    lines += [
        draft.place(problem)
        for problem in find_contradictions(config, draft.tables)
        if problem.path[:2] not in bad_keys
    ]
    if lines:
        raise ConfigError(tuple(lines))
    return _place_files(config, environment)


def _place_files(config: Config, environment: Mapping[str, str]) -> Config:
    """Make the paths absolute that go to a front end, which is not given `paths`.

    Raises:
        ConfigError: one is a credential of systemd's, and there are none.
    """
    credentials = environment.get("CREDENTIALS_DIRECTORY", "")

    def place(key: str, file: Path) -> Path:
        if file.parts[0] != _CREDENTIALS:
            return config.below_root(file)
        if not credentials:
            problem = f"{key}: expected LoadCredential= in the service's unit for {file}"
            raise ConfigError((problem,))
        return Path(credentials, *file.parts[1:])

    placed = {}
    for section, keys in _FILES.items():
        table = getattr(config, section)
        files = {
            key: place(f"{section}.{key}", file)
            for key in keys
            if (file := getattr(table, key)) is not None
        }
        placed[section] = changed(table, **files)
    return changed(config, **placed)


class _Draft:
    """Tables merged from several sources, and where each key came from."""

    def __init__(self) -> None:
        self.tables: dict[str, Any] = {}
        self.lines: list[str] = []
        self._origins: dict[KeyPath, str] = {}

    def add_file(self, source: str, text: str) -> None:
        try:
            tables = parse_toml(text)
        except ValueError as exc:
            self.lines.append(f"{source}: not TOML: {exc}")
            return
        self._merge(self.tables, tables, (), source)

    def add_variable(self, variable: str, raw: str) -> None:
        section, separator, key = variable.removeprefix(_ENVIRONMENT_PREFIX).partition(
            _ENVIRONMENT_SEPARATOR
        )
        if not variable.startswith(_ENVIRONMENT_PREFIX) or not separator:
            return
        path = (section.lower(), key.lower())
        if not has_key(Config, path):
            known_section = has_key(Config, path[:1])
            problem = unknown_key(Config, path if known_section else path[:1])
            self.lines.append(f"{variable}: {problem}")
            return
        if not _is_unicode(raw):
            self.lines.append(f"{variable}: {path[0]}.{path[1]}: expected UTF-8")
            return
        self._merge(self.tables, {path[0]: {path[1]: _read_variable(path, raw)}}, (), variable)

    def add_arguments(self, tables: Mapping[str, Mapping[str, object]]) -> None:
        self._merge(self.tables, tables, (), "command line")

    def place(self, problem: Problem) -> str:
        """The problem as a line that begins with where its key came from."""
        for length in range(len(problem.path), 0, -1):
            if origin := self._origins.get(problem.path[:length]):
                return f"{origin}: {problem}"
        return str(problem)

    def _merge(
        self, into: dict[str, Any], tables: Mapping[str, Any], path: KeyPath, source: str
    ) -> None:
        for key, value in tables.items():
            here = (*path, key)
            if not isinstance(value, dict):
                into[key] = value
                self._origins[here] = source
                continue
            self._origins.setdefault(here, source)
            # Where an earlier source has no table, its own problem is told and this is left out.
            if isinstance(into.setdefault(key, {}), dict):
                self._merge(into[key], value, here, source)


def _read_variable(path: tuple[str, str], raw: str) -> object:
    try:
        parsed = parse_toml(f"value = {raw}")
    except ValueError:
        return raw
    value = parsed.get("value")
    if len(parsed) == 1 and (accepts(Config, path, value) or not accepts(Config, path, raw)):
        return value
    return raw


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def find_contradictions(config: Config, tables: Mapping[str, Any]) -> tuple[Problem, ...]:
    """Keys that are each valid and do not go together. Pure.

    1. Nobody but this machine may reach an address, unless something asks who they are, or
       `allow_anonymous` says that nothing shall.
    2. There is some way in.
    3. What belongs to another choice is not given: it would be ignored in silence.
    4. A model's name, an accelerator's, and an address, is given once.
    5. An accelerator that is wished for by name is there.

    Args:
        config: as read from the tables.
        tables: as the sources gave them; they tell a default from a key that was given.
    """
    serve = config.models.serve
    served = tables["models"]["serve"] if serve else []
    return (
        *_check_http(config.http),
        *_check_ways_in(config),
        *_check_mqtt(config.mqtt),
        *_check_served(serve, served),
        *_check_accelerators(config),
    )


def _check_http(http: HttpTable) -> list[Problem]:
    problems = []
    for place, text in enumerate(http.listen):
        path: KeyPath = ("http", "listen", place)
        address = parse_address(text)
        asks = http.tokens_file is not None or http.tls_client_ca is not None
        if not (address.is_loopback or asks or http.allow_anonymous):  # rule 1
            problems.append(
                Problem(
                    path,
                    f' = "{text}": others on the network can reach this address and nothing asks '
                    "them who they are: expected http.tokens_file or http.tls_client_ca, a "
                    "loopback address, or http.allow_anonymous = true",
                )
            )
        if address.port and text in http.listen[:place]:  # rule 4
            problems.append(Problem(path, f' = "{text}": expected each address once'))
    return [
        *problems,
        *_check_pair("http", http.tls_certificate, "tls_certificate", http.tls_key, "tls_key"),
        *_check_clients(http),
    ]


def _check_pair(
    section: str, certificate: Path | None, its_name: str, key: Path | None, keys_name: str
) -> list[Problem]:
    """A certificate and its key go together (rule 3)."""
    if certificate is not None and key is None:
        return [Problem((section, its_name), f": expected only with {section}.{keys_name}")]
    if key is not None and certificate is None:
        return [Problem((section, keys_name), f": expected only with {section}.{its_name}")]
    return []


def _check_clients(http: HttpTable) -> list[Problem]:
    if http.tls_client_ca is not None and http.tls_certificate is None:  # rule 3
        return [Problem(("http", "tls_client_ca"), ": expected only with http.tls_certificate")]
    return []


def _check_ways_in(config: Config) -> list[Problem]:
    if config.http.listen or config.http.unix_socket or config.mqtt.url:  # rule 2
        return []
    return [
        Problem(
            ("http", "listen"),
            " = []: expected an address, or http.unix_socket = true, or an mqtt.url: "
            "nobody could reach the daemon",
        )
    ]


def _check_mqtt(mqtt: MqttTable) -> list[Problem]:
    problems = []
    if mqtt.ca_file is not None and mqtt.url and not parse_mqtt_url(mqtt.url)[1]:  # rule 3
        problems.append(Problem(("mqtt", "ca_file"), ": expected only with an mqtts:// url"))
    if mqtt.password_file is not None and mqtt.protocol == "3.1.1" and not mqtt.username:
        problems.append(
            Problem(
                ("mqtt", "password_file"),
                ": expected only with mqtt.username: "
                "MQTT 3.1.1 has no password without a user name",
            )
        )
    problems += _check_pair(
        "mqtt", mqtt.certificate_file, "certificate_file", mqtt.key_file, "key_file"
    )
    if mqtt.certificate_file is not None and mqtt.url and not parse_mqtt_url(mqtt.url)[1]:
        problems.append(
            Problem(("mqtt", "certificate_file"), ": expected only with an mqtts:// url")
        )
    return problems


def _check_accelerators(config: Config) -> list[Problem]:
    problems = []
    names = [each.name for each in config.accelerators.external]
    for place, name in enumerate(names):
        if name in names[:place]:  # rule 4
            path: KeyPath = ("accelerators", "external", place, "name")
            problems.append(Problem(path, f' = "{name}": expected each name once'))
    for place, wish in enumerate(config.defaults.accelerators):
        kind, _, name = wish.partition(":")
        if (kind == "external") and (name not in names if name else not names):  # rule 5
            expected = "one in [[accelerators.external]]"
            problems.append(
                Problem(("defaults", "accelerators", place), f' = "{wish}": expected {expected}')
            )
    return problems


def _check_served(
    serve: Sequence[ServedModel], served: Sequence[Mapping[str, object]]
) -> list[Problem]:
    problems = []
    for place, (entry, given) in enumerate(zip(serve, served, strict=True)):
        path: KeyPath = ("models", "serve", place)
        problems += _check_versions(entry, path, given)
        names = [other.name for other in serve[:place]]
        if entry.name is not None and entry.name in names:  # rule 4
            problems.append(
                Problem((*path, "name"), f' = "{entry.name}": expected each model name once')
            )
    return problems


def _check_versions(
    entry: ServedModel, path: KeyPath, given: Mapping[str, object]
) -> list[Problem]:
    problems = []
    specific = entry.version_policy == "specific"
    if specific and not entry.versions:
        problems.append(
            Problem((*path, "versions"), ': must name versions, for version_policy is "specific"')
        )
    if entry.versions and not specific:  # rule 3
        problems.append(
            Problem((*path, "versions"), ': expected only with version_policy = "specific"')
        )
    if "latest" in given and entry.version_policy != "latest":  # rule 3
        problems.append(
            Problem((*path, "latest"), ': expected only with version_policy = "latest"')
        )
    for label, version in entry.labels.items() if specific and entry.versions else ():
        if version not in entry.versions:
            problems.append(
                Problem(
                    (*path, "labels", label),
                    f" = {version}: expected one of the versions that are served",
                )
            )
    return problems
