"""The libraries behind pictures, sounds and masks: imported when the first model needs them.

They take 4 MB, which a daemon whose models take and give tensors does without. So the modules that
use them (`images`, `sounds`, `masks`) are imported inside functions, and here before any request.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from daemon.pipeline.outputs import SegmentationOutput

if TYPE_CHECKING:
    from daemon.pipeline.profiles import ModelProfile


def load_libraries(profile: ModelProfile) -> None:
    """Import what the model's pictures, sounds or masks need, so that no request waits for it.

    Blocking: tens of milliseconds the first time.

    Raises:
        ImportError: one of them is not here.
    """
    if profile.image is not None:
        importlib.import_module("daemon.pipeline.images")
    if profile.audio is not None:
        importlib.import_module("daemon.pipeline.sounds")
    if isinstance(profile.output, SegmentationOutput):
        importlib.import_module("daemon.pipeline.masks")
