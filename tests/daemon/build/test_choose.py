"""The smallest variant that loses no more than is allowed."""

from __future__ import annotations

from daemon.build.choose import Figures, Variant, choose, why_not


def figures(variant: Variant, size_bytes: int, loss: float | None = 0.0, problem: str = ""):
    return Figures(variant, size_bytes=size_bytes, loss=loss, problem=problem)


def chosen(*candidates: Figures, max_loss: float = 0.01) -> Variant | None:
    found = choose(candidates, max_loss=max_loss)
    return found and found.variant


def test_the_smallest_is_taken():
    assert (
        chosen(
            figures(Variant.NONE, 400),
            figures(Variant.FLOAT16, 200),
            figures(Variant.DYNAMIC, 101),
            figures(Variant.INT8, 100),
        )
        is Variant.INT8
    )


def test_one_that_loses_too_much_is_passed_over():
    assert (
        chosen(figures(Variant.DYNAMIC, 101, 0.01), figures(Variant.INT8, 100, 0.0101))
        is Variant.DYNAMIC
    )


def test_one_that_could_not_be_made_is_passed_over():
    broken = figures(Variant.INT8, 0, None, "no ranges")

    assert chosen(figures(Variant.NONE, 400), broken) is Variant.NONE
    assert why_not(broken, max_loss=1.0) == "no ranges"


def test_of_two_of_one_size_the_one_that_loses_less_is_taken():
    assert (
        chosen(figures(Variant.FLOAT16, 100, 0.005), figures(Variant.INT8, 100, 0.004))
        is Variant.INT8
    )


def test_of_two_alike_the_one_that_changes_least_is_taken():
    assert chosen(figures(Variant.INT8, 100), figures(Variant.NONE, 100)) is Variant.NONE


def test_what_was_not_measured_can_be_taken():
    assert chosen(figures(Variant.DYNAMIC, 100, None)) is Variant.DYNAMIC


def test_nothing_is_taken_where_all_lose_too_much():
    assert chosen(figures(Variant.NONE, 1, 0.5), figures(Variant.INT8, 1, 0.02)) is None
    assert why_not(figures(Variant.INT8, 1, 0.02), max_loss=0.01) == "loses 0.02, allowed is 0.01"
