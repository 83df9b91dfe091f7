"""The configuration: merged from files and environment, checked as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.config import Address, Config, parse_address, parse_config, parse_mqtt_url
from daemon.errors import ConfigError


def problems_of(*texts: str, **variables: str) -> tuple[str, ...]:
    """Every problem of these sources, which are named a.toml, b.toml..."""
    sources = [(f"{letter}.toml", text) for letter, text in zip("abcd", texts, strict=False)]
    with pytest.raises(ConfigError) as caught:
        parse_config(sources, variables)
    return caught.value.problems


def test_an_empty_file_is_the_default_configuration():
    assert parse_config([("a.toml", "")], {}) == Config()


def test_a_later_file_overrides_key_by_key():
    config = parse_config(
        [
            ("a.toml", "[http]\nmax_body_mib = 5\nmax_connections = 7"),
            ("b.toml", "[http]\nmax_body_mib = 6"),
        ],
        {},
    )

    assert (config.http.max_body_mib, config.http.max_connections) == (6, 7)


def test_a_later_array_replaces_the_whole_array():
    config = parse_config(
        [
            ("a.toml", '[models]\nfolders = ["x", "y"]'),
            ("b.toml", '[models]\nfolders = ["z"]'),
        ],
        {},
    )

    assert config.models.folders == (Path("z"),)


def test_a_problem_names_the_file_the_value_came_from():
    assert problems_of("[media]\ndecode_threads = 1", "[media]\ndecode_threads = 0") == (
        "b.toml: media.decode_threads = 0: expected a whole number from 1 to 64",
    )


def test_all_problems_are_told_at_once():
    problems = problems_of(
        '[http]\nmax_body_mib = 0\nlisten = ["nowhere"]\n[logs]\nlevel = "loud"',
        "[http",
        INFERD_LIFE__DRAIN_TIMEOUT_S="0",
    )

    assert [problem.partition(" = ")[0].partition(": not")[0] for problem in problems] == [
        "b.toml",
        "a.toml: http.listen[0]",
        "a.toml: http.max_body_mib",
        "a.toml: logs.level",
        "INFERD_LIFE__DRAIN_TIMEOUT_S: life.drain_timeout_s",
    ]


def test_keys_that_contradict_each_other_are_told_beside_other_problems():
    problems = problems_of('[http]\nlisten = ["0.0.0.0:80"]\nmax_body_mib = 0')

    assert [problem.split(" = ")[0] for problem in problems] == [
        "a.toml: http.max_body_mib",
        "a.toml: http.listen[0]",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[http]\nlistn = []", "http.listn: unknown key (did you mean 'listen'?)"),
        ("[htpp]\nlisten = []", "htpp: unknown table (did you mean 'http'?)"),
        ("[http]\nlevel = 'info'", "http.level: unknown key (did you mean 'logs.level'?)"),
        ("listen = []", "listen: unknown key (did you mean 'http.listen'?)"),
        ("[http]\nzzzzzz = 1", "http.zzzzzz: unknown key"),
        (
            "[[models.serve]]\npath = 'x'\nversion_polcy = 'all'",
            "models.serve[0].version_polcy: unknown key (did you mean 'version_policy'?)",
        ),
    ],
)
def test_an_unknown_key_suggests_the_nearest_name(text, problem):
    assert problems_of(text) == (f"a.toml: {problem}",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[http]\nunix_socket = 'yes'", 'http.unix_socket = "yes": expected true or false'),
        ("[http]\nunix_socket = 1", "http.unix_socket = 1: expected true or false"),
        ("[media]\ndecode_threads = 2.0", "media.decode_threads = 2.0: expected a whole number"),
        ("[media]\ndecode_threads = true", "media.decode_threads = true: expected a whole number"),
        ("[media]\nmax_audio_s = nan", "media.max_audio_s = NaN: expected a number above 0"),
        ("[media]\nmax_audio_s = inf", "media.max_audio_s = Infinity: expected a number above 0"),
        ("[device]\nid = 2024-01-01", 'device.id = "2024-01-01": expected up to 64 letters'),
        ("[device]\nid = 'a/b'", 'device.id = "a/b": expected up to 64 letters'),
        ("[models]\nfolders = 'x'", 'models.folders = "x": expected an array, each a path'),
        ("[models]\nserve = [5]", "models.serve[0]: expected a table"),
        ("[models]\nserve = [{}]", "models.serve[0].path: must be given: a path"),
        ("[[models.serve]]\npath='x'\nname=' a'", 'models.serve[0].name = " a": expected a'),
        (
            "[[models.serve]]\npath='x'\nlabels={''=1}",
            'models.serve[0].labels."": expected as key text of 1 to 128 characters',
        ),
        (
            "[[models.serve]]\npath='x'\nlabels={stable=0}",
            "models.serve[0].labels.stable = 0: expected a whole number from 1",
        ),
        ("[defaults]\naccelerators = []", "defaults.accelerators = []: expected an array of 1 or"),
        (
            "[defaults]\naccelerators = ['gpuu']",
            (
                'defaults.accelerators[0] = "gpuu": expected "cpu", "gpu", "edgetpu", "npu", '
                '"external" or "external:NAME" (did you mean \'gpu\'?)'
            ),
        ),
        (
            "[defaults]\naccelerators = ['external:../a']",
            'defaults.accelerators[0] = "external:../a": expected "cpu", "gpu"',
        ),
        (
            "[defaults]\naccelerators = ['external']",
            'defaults.accelerators[0] = "external": expected one in [[accelerators.external]]',
        ),
        (
            (
                "[defaults]\naccelerators = ['cpu', 'external:b']\n"
                "[[accelerators.external]]\nname = 'a'\npath = 'liba.so'"
            ),
            'defaults.accelerators[1] = "external:b": expected one in [[accelerators.external]]',
        ),
        (
            (
                "[[accelerators.external]]\nname = 'a'\npath = 'liba.so'\n"
                "[[accelerators.external]]\nname = 'a'\npath = 'libb.so'"
            ),
            'accelerators.external[1].name = "a": expected each name once',
        ),
        (
            "[[accelerators.external]]\nname = 'a b'\npath = 'liba.so'",
            'accelerators.external[0].name = "a b": expected 1 to 64 letters',
        ),
        (
            "[[accelerators.external]]\nname = 'a'\npath = 'lib/a.so'",
            'accelerators.external[0].path = "lib/a.so": expected an absolute path',
        ),
        (
            "[[accelerators.external]]\nname = 'a'\npath = 'a.so'\nnode = 'dev/x'",
            'accelerators.external[0].node = "dev/x": expected an absolute path, e.g. /dev/xdma0',
        ),
        (
            "[[accelerators.external]]\nname = 'a'\npath = 'a.so'\noptions = {a = [1]}",
            "accelerators.external[0].options.a = [1]: expected text or a whole number",
        ),
        (
            "[accelerators]\nopenvino_device = 'GPU'",
            'accelerators.openvino_device = "GPU": expected "npu", "gpu" or "cpu"',
        ),
        (
            "[accelerators]\nedgetpu_library = ''",
            'accelerators.edgetpu_library = "": expected an absolute path, or the name of a file',
        ),
        ("[paths]\nroot = 'x'", 'paths.root = "x": expected an absolute path'),
        ("[mqtt]\nprotocol = 5", 'mqtt.protocol = 5: expected "5" or "3.1.1"'),
        ('[mqtt]\nusername = "a\\u0000"', 'mqtt.username = "a\\u0000": expected text without'),
        ("http = 5", "http: expected a table"),
        ("http = 5\n[logs]", "http: expected a table"),
        (
            "[logs]\nlevel = 'warn'",
            (
                'logs.level = "warn": expected "debug", "info", "warning" or "error" '
                "(did you mean 'warning'?)"
            ),
        ),
    ],
)
def test_a_bad_value_is_told_with_its_key_and_what_was_expected(text, problem):
    (only,) = problems_of(text)

    assert only.startswith(f"a.toml: {problem}")


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a = " + "9" * 5000, "a = 1\na = 2", "\0"])
def test_what_is_not_toml_is_told_and_not_raised(text):
    (only,) = problems_of(text)

    assert only.startswith("a.toml: not TOML: ")


def test_arrays_nested_beyond_all_sense_are_a_problem():
    (only,) = problems_of("[http]\nlisten = " + "[" * 400 + "]" * 400)

    assert only.startswith("a.toml: http.listen[0] = [[[")
    assert len(only) < 250


def test_a_byte_order_mark_is_tolerated():
    assert parse_config([("a.toml", "\ufeff[logs]\nlevel = 'debug'")], {}).logs.level == "debug"


def test_a_long_value_is_cut_in_its_problem():
    (only,) = problems_of(f"[logs]\nlevel = '{'x' * 5000}'")

    assert len(only) < 250


# The environment


@pytest.mark.parametrize(
    ("variable", "value", "table", "key", "expected"),
    [
        ("INFERD_DEVICE__ID", "press-7", "device", "id", "press-7"),
        ("INFERD_DEVICE__ID", "7", "device", "id", "7"),
        ("INFERD_DEVICE__ID", '"quoted"', "device", "id", "quoted"),
        ("INFERD_MQTT__PROTOCOL", "5", "mqtt", "protocol", "5"),
        ("INFERD_MQTT__KEEPALIVE_S", "7", "mqtt", "keepalive_s", 7),
        ("INFERD_HTTP__UNIX_SOCKET", "false", "http", "unix_socket", False),
        ("INFERD_HTTP__LISTEN", '["127.0.0.1:0"]', "http", "listen", ("127.0.0.1:0",)),
        ("INFERD_PATHS__RUN", "/run/x", "paths", "run", Path("/run/x")),
        ("INFERD_MODELS__POLL_INTERVAL_S", "1", "models", "poll_interval_s", 1.0),
    ],
)
def test_a_variable_overrides_its_key(variable, value, table, key, expected):
    config = parse_config([("a.toml", "")], {variable: value})

    assert getattr(getattr(config, table), key) == expected


def test_a_variable_wins_over_every_file():
    config = parse_config([("a.toml", "[logs]\nlevel = 'info'")], {"INFERD_LOGS__LEVEL": "error"})

    assert config.logs.level == "error"


def test_a_variable_cannot_smuggle_in_a_second_key():
    assert problems_of("", INFERD_MODELS__MAX_MODELS='1\nserve = "x"') == (
        (
            'INFERD_MODELS__MAX_MODELS: models.max_models = "1\\nserve = \\"x\\"": '
            "expected a whole number from 1 to 1000"
        ),
    )


@pytest.mark.parametrize(
    ("variable", "problem"),
    [
        ("INFERD_HTTP__LISTN", "http.listn: unknown key (did you mean 'listen'?)"),
        ("INFERD_HTPP__LISTEN", "htpp: unknown table (did you mean 'http'?)"),
        ("INFERD_HTTP__", 'http."": unknown key'),
        ("INFERD___ID", '"": unknown key'),
        ("INFERD_MQTT__URL__PORT", "mqtt.url__port: unknown key"),
    ],
)
def test_an_unknown_variable_is_a_problem_without_its_value(variable, problem):
    (only,) = problems_of("", **{variable: "hunter2"})

    assert only == f"{variable}: {problem}"


def test_variables_that_are_not_configuration_are_left_alone():
    environment = {"INFERD_KEY_PASSPHRASE": "x", "HOME": "/root", "MQTT__URL": "x"}

    assert parse_config([], environment) == Config()


def test_a_variable_that_is_not_utf8_is_a_problem():
    assert problems_of("", INFERD_DEVICE__ID="a\udcff") == (
        "INFERD_DEVICE__ID: device.id: expected UTF-8",
    )


def test_a_variable_does_not_hide_that_its_table_is_no_table():
    assert problems_of("mqtt = 5", INFERD_MQTT__PROTOCOL="5") == ("a.toml: mqtt: expected a table",)


# Secrets


@pytest.mark.parametrize(
    "text",
    [
        '[mqtt]\nurl = "mqtt://user:hunter2@broker"',
        '[mqtt]\nurl = "hunter2"',
        "[mqtt]\nurl = ['hunter2']",
        '[mqtt]\npassword = "hunter2"',
        'mqtt = "hunter2"',
        '[mqtt.password_file]\nx = "hunter2"',
        '[hunter]\npassword = "hunter2"',
    ],
)
def test_a_secret_is_never_shown(text):
    assert "hunter2" not in "".join(problems_of(text))


def test_the_url_is_not_in_the_configurations_repr():
    assert "broker" not in repr(parse_config([], {"INFERD_MQTT__URL": "mqtt://broker"}))


# Keys that do not go together


@pytest.mark.parametrize("address", ["0.0.0.0:80", "[::]:80", "192.168.1.2:80", "box.example:80"])
def test_an_address_others_can_reach_needs_allow_anonymous(address):
    (only,) = problems_of(f'[http]\nlisten = ["{address}"]')

    assert "http.allow_anonymous = true" in only


@pytest.mark.parametrize("address", ["127.0.0.1:80", "127.5.5.5:80", "[::1]:80", "localhost:80"])
def test_an_address_of_this_machine_needs_nothing(address):
    config = parse_config([("a.toml", f'[http]\nlisten = ["{address}"]')], {})

    assert config.http.listen == (address,)


def test_allow_anonymous_opens_every_address():
    text = '[http]\nlisten = ["0.0.0.0:80", "[::]:80"]\nallow_anonymous = true'

    assert len(parse_config([("a.toml", text)], {}).http.listen) == 2


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[http]\nlisten = ["127.0.0.1:80", "127.0.0.1:80"]', "http.listen[1]"),
        ("[http]\nlisten = []\nunix_socket = false", "http.listen"),
        ("[mqtt]\nurl = 'mqtt://h'\nca_file = 'x'", "mqtt.ca_file"),
        ("[mqtt]\nprotocol = '3.1.1'\npassword_file = 'x'", "mqtt.password_file"),
        ("[[models.serve]]\npath='x'\nversion_policy='specific'", "models.serve[0].versions"),
        ("[[models.serve]]\npath='x'\nversions=[1]", "models.serve[0].versions"),
        ("[[models.serve]]\npath='x'\nversion_policy='all'\nlatest=1", "models.serve[0].latest"),
        (
            "[[models.serve]]\npath='x'\nversion_policy='specific'\nversions=[1]\nlabels={a=2}",
            "models.serve[0].labels.a",
        ),
        (
            "[models]\nserve=[{path='x',name='m'},{path='y',name='m'}]",
            "models.serve[1].name",
        ),
    ],
)
def test_keys_that_do_not_go_together_are_a_problem(text, key):
    (only,) = problems_of(text)

    assert only.startswith(f"a.toml: {key}")


def test_free_ports_may_be_asked_for_twice():
    text = '[http]\nlisten = ["127.0.0.1:0", "127.0.0.1:0"]'

    assert len(parse_config([("a.toml", text)], {}).http.listen) == 2


# Addresses


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        ("[::1]:0", "::1", 0),
        ("box-7.local:65535", "box-7.local", 65535),
    ],
)
def test_an_address_has_a_host_and_a_port(text, host, port):
    assert parse_address(text) == Address(host, port)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":80", "host", "host:", "host:x", "host:65536", "::1:80", "[::1]", "[x]:80"),
        *("host:-1", "host:+1", "host:\u0663", "http://host:80", "[]:80", "-a:80", "host:80\n"),
        "a b:80",
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match='expected "host:port"'):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "host", "port", "tls"),
    [
        ("mqtt://broker", "broker", 1883, False),
        ("mqtts://broker", "broker", 8883, True),
        ("mqtt://[::1]:99/", "::1", 99, False),
    ],
)
def test_a_broker_url_has_a_default_port(text, host, port, tls):
    assert parse_mqtt_url(text) == (Address(host, port), tls)


@pytest.mark.parametrize(
    "text",
    [
        *("", "broker", "broker:1883", "http://broker", "mqtt://", "mqtt://u@broker"),
        *("mqtt://b:0", "mqtt://b:99999", "mqtt://b?x", "mqtt://b#x", "mqtt://[::1"),
        *("mqtt://u:p@broker", "mqtt://a b", "mqtt://a\nb", "mqtt://b/path"),
    ],
)
def test_what_is_no_broker_url_is_refused_without_repeating_it(text):
    with pytest.raises(ValueError, match=r"^expected mqtt://HOST\[:PORT\]"):
        parse_mqtt_url(text)


# Paths


def test_relative_paths_are_below_root():
    config = parse_config(
        [("a.toml", '[paths]\nroot = "/srv/box"\n[models]\nfolders = ["m", "/abs"]')], {}
    )

    assert config.run_dir == Path("/srv/box/run/inferd")
    assert config.socket_path == Path("/srv/box/run/inferd/inferd.sock")
    assert config.state_dir == Path("/srv/box/var/lib/inferd")
    assert config.model_folders == (Path("/srv/box/m"), Path("/abs"))


def test_files_of_the_mqtt_table_are_made_absolute():
    text = '[paths]\nroot = "/srv"\n[mqtt]\nurl = "mqtts://b"\nca_file = "ca.pem"\n'
    config = parse_config([("a.toml", text + 'password_file = "/abs"')], {})

    assert config.mqtt.ca_file == Path("/srv/ca.pem")
    assert config.mqtt.password_file == Path("/abs")
