"""Why no bundle can be made of what was given. Each message is for the publisher."""

from __future__ import annotations


class CannotBuild(Exception):
    """Base: nothing was written."""


class BadSource(CannotBuild):
    """The source is no model that a bundle can be made of."""


class BadData(CannotBuild):
    """Labels, or the data to calibrate or evaluate with, cannot be used with this model."""


class TensorFlowMissing(CannotBuild):
    """TensorFlow is needed and is not installed; the message has the command that installs it."""


class ConversionFailed(CannotBuild):
    """TensorFlow cannot read the source, or cannot make a TFLite file of it.

    Attributes:
        operators: that the model needs and a device's runtime does not have; () for other reasons.
        details: the last that TensorFlow said before it died; "" where it lives.
    """

    def __init__(self, message: str, operators: tuple[str, ...] = (), *, details: str = "") -> None:
        super().__init__(message)
        self.operators = operators
        self.details = details


class NotServable(CannotBuild):
    """The daemon's own worker refuses the converted model."""


class BadMetadata(CannotBuild):
    """The metadata cannot be written: it does not fit the model, or nobody could read it."""


class CannotSign(CannotBuild):
    """The model cannot be signed or checked: there is no library, no key, or no signature."""


class SignatureRejected(CannotBuild):
    """The signature is not that key's for these files; the message says what differs."""
