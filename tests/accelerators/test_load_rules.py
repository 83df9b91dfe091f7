"""The small rules of loading: names, texts, outlines, choices, back-off."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tflite_builder as models

from accelerators.backoff import LONGEST_AFTER_SERVING_S, Backoff
from accelerators.flatbuffer import Buffer, DamagedFile
from accelerators.interpreter import cut_names, shorten_text
from accelerators.outline import Outline, read_outline
from accelerators.registry import KINDS, HardwareSettings


@pytest.mark.parametrize(
    ("names", "cut"),
    [
        (["serving_default_x:0"], ("serving_default_x",)),
        (["Post", "Post:1", "Post:2"], ("Post", "Post:1", "Post:2")),
        (["a:0", "a:0", "a:0"], ("a", "a:0", "a_2")),
        ([""], ("tensor_0",)),
        (["tensor_1", ""], ("tensor_1", "tensor_1_1")),
    ],
    ids=str,
)
def test_names_are_cut_and_stay_different(names, cut):
    assert cut_names(names) == cut


@given(st.lists(st.sampled_from(["", "a", "a:0", "a:1", "a_1", "tensor_1", "tensor_1_1", ":"])))
def test_names_are_always_different_and_never_empty(names):
    cut = cut_names(names)

    assert len(set(cut)) == len(names)
    assert all(cut)


def test_text_is_one_printable_line():
    assert shorten_text(" a\n\tb\x1b[31m c ") == "a b?[31m c"


def test_long_text_keeps_its_start_and_its_end():
    short = shorten_text("start " + "x" * 5000 + " end")

    assert len(short) <= 300
    assert short.startswith("start ")
    assert short.endswith(" end")


def test_outline_names_custom_operators_and_state():
    assert read_outline(memoryview(models.custom("FlexErf"))).flex == ("Erf",)
    assert read_outline(memoryview(models.custom("edgetpu-custom-op"))).edgetpu
    assert read_outline(memoryview(models.accumulator())).stateful
    assert read_outline(memoryview(models.counter())).stateful
    assert not read_outline(memoryview(models.mlp())).stateful


def test_outline_has_the_order_of_inputs_by_subgraph():
    outline = read_outline(memoryview(models.two_signatures()))

    assert outline.inputs == ((0, 1), (0, 1))
    assert outline.outputs == ((2,), (2,))


def test_damaged_models_have_an_outline_or_are_refused():
    rng = random.Random(3)
    original = models.counter()
    outlined = 0

    for _ in range(3000):
        data = bytearray(original)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            outlined += isinstance(read_outline(memoryview(bytes(data))), Outline)
        except DamagedFile:
            continue

    assert 0 < outlined < 3000


def test_number_of_reads_is_bounded():
    buffer = Buffer(memoryview(models.counter()), reads_left=10)

    with pytest.raises(DamagedFile, match="too many"):
        buffer.root().tables(2, limit=100)


@pytest.mark.parametrize(("kind", "takes"), [("cpu", False), ("edgetpu", True), ("external", True)])
def test_compiled_edgetpu_file_is_for_some_kinds_only(kind, takes):
    problem = KINDS[kind].check(Outline(custom=("edgetpu-custom-op",)))

    assert (problem == "") is takes


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_finds_its_devices_and_their_troubles_in_an_empty_machine(kind, tmp_path):
    devices = KINDS[kind].find(HardwareSettings(root=tmp_path))

    assert {device.kind for device in devices} == {kind}
    assert [device.up for device in devices if device.problem and not device.next_step] == []
    assert all(device.up or device.id == kind for device in devices)


def test_no_kind_loads_the_runtime_into_the_daemon():
    program = "import sys, accelerators.registry; print(sorted(sys.modules))"

    loaded = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout

    assert "accelerators.registry" in loaded
    assert "litert" not in loaded
    assert "tflite_runtime" not in loaded
    assert "openvino" not in loaded


def test_first_death_is_answered_at_once():
    assert Backoff().delay_s(lived_s=0.1) == 0


def test_quick_deaths_are_answered_ever_more_slowly_up_to_a_bound():
    backoff = Backoff()

    delays = [backoff.delay_s(lived_s=0.1) for _ in range(50)]

    assert delays[0] < delays[1] < delays[2] < delays[4]
    assert all(delay <= 12 for delay in delays)
    assert all(delay >= 8 for delay in delays[-10:])


def test_who_had_served_is_back_within_two_seconds_however_often_it_dies():
    backoff = Backoff()

    delays = [backoff.delay_s(lived_s=0.1, longest_s=LONGEST_AFTER_SERVING_S) for _ in range(50)]

    assert max(delays) < 1.5


def test_healthy_life_is_forgiven():
    backoff = Backoff()
    for _ in range(5):
        backoff.delay_s(lived_s=0.1)

    assert backoff.delay_s(lived_s=60) == 0
