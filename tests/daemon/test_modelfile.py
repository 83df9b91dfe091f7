"""`model.toml`: every problem at once, and an identity that survives a slip of the editor."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.errors import ConfigError
from daemon.modelfile import ModelTable, ModelTables, parse_model_file, salvage_identity
from daemon.tables import check_tables


def problems_of(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_model_file(text)
    return caught.value.problems


def test_an_empty_file_is_valid():
    assert parse_model_file("") == ModelTables()


def test_every_table_is_read():
    tables = parse_model_file(
        """
        [model]
        name = "parts"
        version = 3
        [input]
        kind = "image"
        mean = 127.5
        std = [127.5, 127, 127.5]
        [output]
        kind = "detection"
        labels = ["nut", "bolt"]
        [placement]
        accelerators = ["edgetpu", "cpu"]
        required = true
        tolerance = 0.05
        cpu_model = "parts-cpu.tflite"
        [limits]
        queue = 4
        [batching]
        max_delay_ms = 2
        [health]
        max_latency_ms = 20
        [[health.samples]]
        input = "nut.jpg"
        label = "nut"
        """
    )

    assert (tables.model.name, tables.model.version) == ("parts", 3)
    assert (tables.input.mean, tables.input.std) == (127.5, (127.5, 127.0, 127.5))
    assert tables.output.labels == ("nut", "bolt")
    assert tables.placement.accelerators == ("edgetpu", "cpu")
    assert (tables.placement.required, tables.placement.tolerance) == (True, 0.05)
    assert tables.placement.cpu_model == "parts-cpu.tflite"
    assert (tables.limits.queue, tables.batching.max_delay_ms) == (4, 2.0)
    assert tables.health.samples[0].label == "nut"


def test_all_problems_are_told_at_once():
    text = '[model]\nversion = 0\n[output]\nkind = "detect"\n[inptu]\nkind = "image"'

    assert problems_of(text) == (
        "model.version = 0: expected a whole number from 1 to 9223372036854775807",
        (
            'output.kind = "detect": expected "classification", "detection", "segmentation" or '
            "\"tensor\" (did you mean 'detection'?)"
        ),
        "inptu: unknown table (did you mean 'input'?)",
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[input]\nmeen = 1", "input.meen: unknown key (did you mean 'mean'?)"),
        ("[model]\nqueue = 1", "model.queue: unknown key (did you mean 'limits.queue'?)"),
        ("[[health.samples]]\nlabel = 'x'", "health.samples[0].input: must be given: text of 1"),
        (
            "[[health.samples]]\ninput = 'x'\nlable = 'y'",
            "health.samples[0].lable: unknown key (di",
        ),
        ("[input]\nmean = ['x']", 'input.mean = ["x"]: expected a number or an array of 1 to 4'),
        ("[input]\nstd = 0", "input.std = 0: expected numbers other than 0"),
        ("[input]\nstd = [1, 0.0]", "input.std = [1, 0.0]: expected numbers other than 0"),
        ("[input]\nmean = nan", "input.mean = NaN: expected a number or an array"),
        (
            "[placement]\naccelerators = ['cpu', 'edge-tpu']",
            (
                'placement.accelerators[1] = "edge-tpu": expected "cpu", "gpu", "edgetpu", "npu", '
                '"external" or "external:NAME" (did you mean \'edgetpu\'?)'
            ),
        ),
        ("[placement]\nrequired = 1", "placement.required = 1: expected true or false"),
        ("[placement]\ntolerance = 2", "placement.tolerance = 2: expected a number from 0 to 1"),
        (
            "[placement]\ntolerance = -0.1",
            "placement.tolerance = -0.1: expected a number from 0 to 1",
        ),
        (
            "[placement]\ncpu_model = 'parts.h5'",
            (
                'placement.cpu_model = "parts.h5": expected the name of a .tflite file beside the '
                "model, none that is hidden"
            ),
        ),
        (
            "[placement]\ncpu_model = '.parts.tflite'",
            'placement.cpu_model = ".parts.tflite": expected the name of a .tflite file beside',
        ),
        ("[output]\nlabels = 5", "output.labels = 5: expected text or an array, each text"),
        ("[model", "not TOML: "),
        ("health = 2024-01-01", "health: expected a table"),
        ("[health]\nx = 2024-01-01", "health.x: unknown key"),
        ("[input]\nkind = 2024-01-01", 'input.kind = "2024-01-01": expected "image", "audio" or'),
        ("[output]\nlabels = [12:30:00]", 'output.labels = ["12:30:00"]: expected text or an arr'),
        (
            "[[health.samples]]\ninput = 'x'\noutputs = 2024-01-01",
            'health.samples[0].outputs = "2024-01-01": expected a table, each value text',
        ),
    ],
)
def test_a_bad_value_is_told_with_its_key_and_what_was_expected(text, problem):
    (only,) = problems_of(text)

    assert only.startswith(problem)


@pytest.mark.parametrize("name", ["", "x" * 129, "a\\u0007b", ".", "..", " a"])
def test_a_name_that_cannot_stand_in_a_topic_or_url_is_refused(name):
    (only,) = problems_of(f'[model]\nname = "{name}"')

    assert only.startswith("model.name = ")


@pytest.mark.parametrize("file", ["../x", "/etc/passwd", "a/b", "..", ".", "", "a\\u0000b"])
def test_a_label_file_outside_the_models_folder_is_refused(file):
    (only,) = problems_of(f'[output]\nlabels = "{file}"')

    assert only.endswith("expected the name of a file beside model.toml, without folders")


@pytest.mark.parametrize("file", ["../x.tflite", "/x.tflite", "a/b.tflite", "a\\u0000b.tflite"])
def test_a_cpu_model_outside_the_models_folder_is_refused(file):
    (only,) = problems_of(f'[placement]\ncpu_model = "{file}"')

    assert only.endswith("expected the name of a file beside model.toml, without folders")


@pytest.mark.parametrize(
    "text",
    [
        '[model]\nname = "parts"\nversion = 3\n[input]\nstd = [1,',
        '[model]\nname = "parts"\nversion = 3\n[input]\nstd = 0',
        "# [model]\n  [model] # who\nversion=3 # third\r\n\n  name = 'parts' # yes",
    ],
)
def test_name_and_version_are_found_in_a_broken_file(text):
    assert salvage_identity(text) == ModelTable(name="parts", version=3)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[model",
        "name = 'a'\nversion = 3",
        "[model]\n[input]\nname = 'a'\nversion = 3",
        "[model]\nname = ' a'\nversion = 0",
        "[model]\nname = a\nversion = 3x",
        "[model]\nversion = 9999999999999999999",
    ],
)
def test_nothing_is_guessed_that_is_not_there(text):
    assert salvage_identity(text) == ModelTable()


KEYS = st.sampled_from(
    ["model", "input", "output", "health", "samples", "labels", "std", "name", "version", "x"]
)
VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(KEYS | st.text(), VALUES, max_size=4))
def test_whatever_the_tables_hold_every_problem_is_one_line(raw_tables):
    _, problems = check_tables(ModelTables, raw_tables)

    assert all(str(problem).isprintable() for problem in problems)


@settings(deadline=None)
@given(st.text() | st.text(alphabet='[]{}="\n\\#.1a'))
def test_whatever_the_text_is_it_is_tables_or_problems(text):
    with suppress(ConfigError):
        assert isinstance(parse_model_file(text), ModelTables)
