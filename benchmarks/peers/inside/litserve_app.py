"""LitServe serving one TFLite model on a port of loopback: raw bytes in and out, or JSON."""

# No `from __future__ import annotations`: LitServe looks at them to learn how to read bodies.
import sys
from typing import Annotated

import litserve
import numpy as np
from fastapi import Body, Response
from predictor import Predictor, Settings


class JsonApi(litserve.LitAPI):
    """`{"data": [numbers]}` in and out."""

    def setup(self, device: str) -> None:  # noqa: ARG002 (LitServe's signature)
        """Load the model, in the worker process."""
        self.predictor = Predictor(Settings.from_environment())

    def decode_request(self, request: dict) -> np.ndarray:
        """The tensor."""
        numbers = np.array(request["data"], self.predictor.dtype)
        return numbers.reshape(self.predictor.shape)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The first output."""
        return self.predictor.predict(x)

    def encode_response(self, output: np.ndarray) -> dict:
        """As JSON."""
        return {"data": output.reshape(-1).tolist()}


class BinaryApi(JsonApi):
    """The tensor's bytes in and out."""

    def decode_request(self, request: Annotated[bytes, Body()]) -> bytes:
        """As they are."""
        return request

    def predict(self, x: bytes) -> np.ndarray:
        """The first output."""
        return self.predictor.predict_bytes(x)

    def encode_response(self, output: np.ndarray) -> Response:
        """Its bytes."""
        return Response(output.tobytes(), media_type="application/octet-stream")


class FileApi(BinaryApi):
    """A file in, what is in it out, as JSON."""

    def predict(self, x: bytes) -> dict[str, np.ndarray]:
        """Best first."""
        return self.predictor.answer(x)

    def encode_response(self, output: dict[str, np.ndarray]) -> dict:
        """As JSON."""
        return {name: values.tolist() for name, values in output.items()}


APIS = {"json": JsonApi, "binary": BinaryApi, "jpeg": FileApi, "wav": FileApi}


def main() -> None:
    """Serve until stopped: `litserve_app.py PORT WORKERS`."""
    api = APIS[Settings.from_environment().form]()
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=int(sys.argv[2]), fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
