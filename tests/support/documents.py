"""Reads the commands and answers that documents show, so that tests can hold them to it."""

from __future__ import annotations

import json
import re
from typing import Any

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(document: str) -> list[str]:
    """Every line of every `sh` block, without its comment."""
    blocks = [text for kind, text in _BLOCK.findall(document) if kind == "sh"]
    lines = [re.sub(r"\s+#\s.*", "", line) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def json_answers(document: str) -> list[Any]:
    """Every `json` block, parsed."""
    return [json.loads(text) for kind, text in _BLOCK.findall(document) if kind == "json"]


def forget_what_differs(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer of the native API without its id and with the names of its times only."""
    times = sorted(answer["timing_ms"])
    return {**answer, "id": "", "timing_ms": times}
