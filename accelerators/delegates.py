"""Delegate: a driver's library that runs parts of a model, by TFLite's external interface.

The library is called directly and not by way of the runtime's own class, so that every failure has
its own words, the interpreter's lock is free while a driver opens its device, and each runtime can
use it. A library that is built for another layout of the runtime's structures kills its process
when a model is handed to it: only a worker may do that.
Source: tensorflow/lite/delegates/external/external_delegate_interface.h.
"""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING

from accelerators.delegatewatch import Watch
from accelerators.interpreter import DeviceFailure, shorten_text

if TYPE_CHECKING:
    from collections.abc import Sequence

CREATE, DESTROY = "tflite_plugin_create_delegate", "tflite_plugin_destroy_delegate"

_WORDS_MAX = 10  # pieces of text that a library gives while it makes a delegate
_WORD_BYTES_MAX = 500

_REPORT = ctypes.CFUNCTYPE(None, ctypes.c_char_p)

# Models that share a process share the driver too, and drivers expect one at a time here. A thread
# may come twice: while it makes a delegate, Python may find that another can go.
_one_at_a_time = threading.RLock()


class NotCreated(DeviceFailure):
    """The library made no delegate.

    Attributes:
        said: its reason, in its own words; "" when it gave none.
    """

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said


class Delegate:
    """One delegate; it goes when the last reference does, which must be after its interpreter's."""

    def __init__(self, library: str, options: Sequence[tuple[str, str]]) -> None:
        """Load the library, and let it open its device.

        Raises:
            DeviceFailure: the library cannot be loaded, or is none of delegates.
            NotCreated: it refuses.
        """
        self.address = 0
        self._library = open_library(library)
        problem = lacks_interface(library, self._library)
        if problem:
            raise DeviceFailure(problem)
        words: list[bytes] = []

        def report(text: bytes | None) -> None:
            if len(words) < _WORDS_MAX:
                words.append((text or b"")[:_WORD_BYTES_MAX])

        self._report = _REPORT(report)  # kept: a library may call it at any time
        create = self._library[CREATE]
        create.restype = ctypes.c_void_p
        keys = (ctypes.c_char_p * len(options))(*(key.encode() for key, _ in options))
        values = (ctypes.c_char_p * len(options))(*(value.encode() for _, value in options))
        with _one_at_a_time:
            address = create(keys, values, ctypes.c_size_t(len(options)), self._report)
        if not address:
            said = shorten_text(b"".join(words).decode("utf-8", "replace"))
            reason = f": {said}" if said else ", and does not say why"
            raise NotCreated(f"its driver {library} cannot open it{reason}", said)
        self.address = int(address)
        self._watch = Watch(self.address)

    @property
    def let_go(self) -> bool:
        """Whether it has not taken again a model that it had taken."""
        return self._watch.let_go

    def __del__(self) -> None:
        if self.address:
            self._watch.end()
            destroy = self._library[DESTROY]
            destroy.restype = None
            with _one_at_a_time:
                destroy(ctypes.c_void_p(self.address))


def open_library(library: str) -> ctypes.CDLL:
    """Load a library, by path or name.

    Raises:
        DeviceFailure: it cannot be loaded; the message says why.
    """
    try:
        return ctypes.CDLL(library)
    except (OSError, ValueError) as exc:
        raise DeviceFailure(_explain(library, str(exc))) from exc


def lacks_interface(path: str, library: ctypes.CDLL) -> str:
    """Why a library is no driver for a runtime, in one sentence; "" when it may be one."""
    for symbol in (CREATE, DESTROY):
        try:
            library[symbol]
        except AttributeError:
            return f"its driver {path} is no TFLite delegate: it lacks {symbol}"
    return ""


def _explain(library: str, text: str) -> str:
    """The loader's words, with which file it is that is missing."""
    name, _, missing = text.partition(": cannot open shared object file: ")
    if "No such file" not in missing:
        return f"its driver cannot be loaded: {shorten_text(text)}"
    if name == library:
        return f"its driver {library} is not here"
    return f"its driver {library} needs {name[:200]}, which is not here"
