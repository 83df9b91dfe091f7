"""The small rules of loading: names, texts, outlines, choices, back-off."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tflite_builder as models

from accelerators import registry
from accelerators.backoff import LONGEST_AFTER_SERVING_S, Backoff
from accelerators.errors import ModelRefused
from accelerators.flatbuffer import Buffer, DamagedFile
from accelerators.interpreter import cut_names, shorten_text
from accelerators.outline import Outline, read_outline


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


def test_first_wish_that_can_be_met_is_chosen():
    choice = registry.choose(("gpu", "cpu"), Outline())

    assert choice.device == "cpu"
    assert "'gpu'" in choice.degraded_reason


def test_no_reason_where_the_first_wish_is_met():
    assert registry.choose(("cpu",), Outline()).degraded_reason == ""


def test_every_wish_that_fails_is_named():
    with pytest.raises(ModelRefused, match=r"'gpu'.*Edge TPU"):
        registry.choose(("gpu", "cpu"), Outline(custom=("edgetpu-custom-op",)))


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
