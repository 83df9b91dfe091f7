"""Watch: sees whether a delegate takes a model again when the runtime plans it anew.

For inputs of another shape a runtime takes a model back from its delegate, plans it, and hands it
over again. When the delegate fails then, or takes nothing this time, it can go on with the CPU
and say nothing at all: answers would name a device that had no part in them. So the function by
which a delegate takes a model, the second field of its structure, is called by way of this module.
Source: TfLiteDelegate and TfLiteContext in tensorflow/lite/core/c/common.h, whose first fields have
never changed; the silence was measured on LiteRT 2.3.0 and tflite-runtime 2.14.0.
"""

from __future__ import annotations

import ctypes

_PREPARE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_GET_PLAN = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p))


class _Delegate(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("prepare", ctypes.c_void_p))


class _Context(ctypes.Structure):
    _fields_ = (("tensors", ctypes.c_size_t), ("get_plan", ctypes.c_void_p))


_watching: set[int] = set()
"""Addresses of our own functions that stand in delegates' structures."""


class Watch:
    """Of one delegate, for its whole life. Not for several threads at a time.

    A library may give the same delegate to several models. Only the first of these is watched: what
    is between a delegate and its runtime must go in the order in which it came.
    """

    def __init__(self, address: int) -> None:
        """Begin.

        Args:
            address: of the delegate's structure, which must live until `end`.
        """
        self._structure = _Delegate.from_address(address)
        self._original = self._structure.prepare
        self._takings = _Takings(self._original)
        self._callback = _PREPARE(self._takings)
        self._own = ctypes.cast(self._callback, ctypes.c_void_p).value or 0
        self._is_on = self._original is not None and self._original not in _watching
        if self._is_on:  # without a function, it is of a kind that is asked otherwise
            _watching.add(self._own)
            self._structure.prepare = self._own

    @property
    def let_go(self) -> bool:
        """Whether it has not taken again a graph that it had taken."""
        return self._takings.let_go

    def end(self) -> None:
        """Leave the delegate as it was."""
        if self._is_on:
            self._is_on = False
            _watching.discard(self._own)
            self._structure.prepare = self._original


class _Takings:
    """What the runtime calls. Apart from the watch, which must not be held by what it holds."""

    def __init__(self, original: int | None) -> None:
        self.let_go = False
        self._prepare = _PREPARE(original or 0)
        self._taken: set[int] = set()  # graphs, by their context

    def __call__(self, context: int, delegate: int) -> int:
        before = _plan(context)
        status = int(self._prepare(context, delegate))
        if not status and _plan(context) - before:  # nodes that stand for what it took
            self._taken.add(context)
        elif context in self._taken:
            self.let_go = True
        return status


def _plan(context: int) -> frozenset[int]:
    """Numbers of the nodes that the graph consists of now; none where it cannot be told."""
    get_plan = _GET_PLAN(_Context.from_address(context).get_plan)
    plan = ctypes.c_void_p()
    if get_plan(context, ctypes.byref(plan)) or not plan.value:
        return frozenset()
    size = ctypes.c_int.from_address(plan.value).value
    numbers = (ctypes.c_int * size).from_address(plan.value + ctypes.sizeof(ctypes.c_int))
    return frozenset(numbers)
