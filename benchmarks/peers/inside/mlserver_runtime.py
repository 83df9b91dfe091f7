"""An MLServer runtime for one TFLite model: tensors as JSON or base64, files as base64."""

from __future__ import annotations

import base64

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse, RequestInput, ResponseOutput
from predictor import Predictor, Settings


class TFLiteRuntime(MLModel):
    """What MLServer asks for."""

    async def load(self) -> bool:
        """Load the model, in the worker process."""
        settings = Settings.from_environment()
        self._predictor = Predictor(settings)
        self._answer = {"json": self._of_json, "binary": self._of_bytes}.get(
            settings.form, self._of_file
        )
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer the single input of a request."""
        return InferenceResponse(model_name=self.name, outputs=self._answer(payload.inputs[0]))

    def _of_json(self, source: RequestInput) -> list[ResponseOutput]:
        values = NumpyCodec.decode_input(source)
        return [NumpyCodec.encode_output("output", self._predictor.predict(values))]

    def _of_bytes(self, source: RequestInput) -> list[ResponseOutput]:
        output = self._predictor.predict_bytes(_first_element(source))
        text = base64.b64encode(output.tobytes()).decode("ascii")
        return [ResponseOutput(name="output", shape=[1], datatype="BYTES", data=[text])]

    def _of_file(self, source: RequestInput) -> list[ResponseOutput]:
        answer = self._predictor.answer(_first_element(source))
        return [NumpyCodec.encode_output(name, values) for name, values in answer.items()]


def _first_element(source: RequestInput) -> bytes:
    return base64.b64decode(source.data[0])
