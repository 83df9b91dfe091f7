"""Triton's Python backend serving one TFLite model: `model.py` of its repository."""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as triton
from predictor import Predictor, Settings


class TritonPythonModel:
    """What the backend asks for: every request of a call gets its answer."""

    def initialize(self, args: dict[str, str]) -> None:  # noqa: ARG002 (the backend's signature)
        """Load the model."""
        settings = Settings.from_environment()
        self._predictor = Predictor(settings)
        self._answer = self._of_file if settings.form in ("jpeg", "wav") else self._of_tensor

    def execute(self, requests: list[triton.InferenceRequest]) -> list[triton.InferenceResponse]:
        """Answer them one by one: the model takes one request's rows at a time."""
        return [triton.InferenceResponse(self._answer(request)) for request in requests]

    def _of_tensor(self, request: triton.InferenceRequest) -> list[triton.Tensor]:
        values = triton.get_input_tensor_by_name(request, "input").as_numpy()
        return [triton.Tensor("output", self._predictor.predict(values))]

    def _of_file(self, request: triton.InferenceRequest) -> list[triton.Tensor]:
        file = triton.get_input_tensor_by_name(request, "input").as_numpy()[0]
        answer = self._predictor.answer(file)
        return [triton.Tensor(name, np.ascontiguousarray(value)) for name, value in answer.items()]
