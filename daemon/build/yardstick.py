"""What variants of a model are measured by: the same items, asked of each in a worker."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice, repeat
from typing import TYPE_CHECKING

from daemon.build.choose import Figures
from daemon.build.compare import Comparison, best_class
from daemon.build.healthsamples import Evaluated
from daemon.build.rows import read_rows
from daemon.models.store import MODEL_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon.build.choose import Variant
    from daemon.build.data import Data
    from daemon.build.evaluate import Evaluator
    from daemon.build.rows import Row
    from daemon.pipeline.profiles import ModelProfile
    from daemon.tensors import PredictResult

_MAX_CANDIDATES = 500  # items that health samples are chosen of
_MAX_CANDIDATE_BYTES = 256 << 20  # of their inputs and outputs, which are held in memory


@dataclass(frozen=True, slots=True)
class Yardstick:
    """Items, and what is known of them.

    Attributes:
        rows: the items, as a file of rows.
        originals: what the original made of them, another such file; None without one.
        class_numbers: the right ones; () where nobody knows.
        scores: the output that tells classes apart; "" for none.
    """

    data: Data
    rows: Path
    originals: Path | None
    class_numbers: tuple[int, ...]
    scores: str

    def measure(
        self, evaluator: Evaluator, variant: Variant, folder: Path
    ) -> tuple[Figures, Comparison]:
        """Ask a variant every item.

        Args:
            folder: the variant's, as it would be served.

        Raises:
            NotServable: no worker runs it, or it does not answer.
        """
        comparison = Comparison(self.scores)
        originals = self._originals()

        def add(number: int, result: PredictResult) -> None:
            comparison.add(result.outputs, next(originals), self._class_of(number))

        latency_ms = evaluator.run(folder, self.rows, add)
        figures = Figures(
            variant=variant,
            size_bytes=(folder / MODEL_FILE).stat().st_size,
            quality=comparison.quality,
            loss=comparison.loss,
            latency_ms=latency_ms,
            problem=comparison.problem,
        )
        return figures, comparison

    def candidates(
        self, evaluator: Evaluator, folder: Path, profile: ModelProfile
    ) -> tuple[Evaluated, ...]:
        """Items to choose health samples of, and what the model of a folder makes of them.

        Raises:
            NotServable: as for `measure`.
        """
        found: list[Evaluated] = []
        left_bytes = _MAX_CANDIDATE_BYTES
        every = -(-len(self.data.names) // _MAX_CANDIDATES)
        inputs = islice(read_rows(self.rows), 0, None, every)
        originals = islice(self._originals(), 0, None, every)

        def add(number: int, result: PredictResult) -> None:
            nonlocal left_bytes
            row, original = next(inputs), next(originals)
            given = self.data.encoded(number) or row
            size_bytes = _size_bytes(given) + _size_bytes(result.outputs)
            if size_bytes > left_bytes:
                return
            left_bytes -= size_bytes
            found.append(
                Evaluated(
                    name=self.data.names[number],
                    inputs=given,
                    outputs=result.outputs,
                    meaning=result.meaning[0] if result.meaning else None,
                    expected=self._expected(number, original, profile),
                )
            )

        evaluator.run(folder, self.rows, add, every=every)
        return tuple(found)

    def _expected(self, number: int, original: Row | None, profile: ModelProfile) -> str | None:
        """The right label, else the original's; None where nobody knows or there are no labels."""
        if not self.scores:
            return None
        known = self._class_of(number)
        if known is None and original is not None:
            known = best_class(original[self.scores])
        if known is None:
            return None
        return profile.labels[known] if known < len(profile.labels) else str(known)

    def _originals(self) -> Iterator[Row | None]:
        return read_rows(self.originals) if self.originals else repeat(None)

    def _class_of(self, number: int) -> int | None:
        return self.class_numbers[number] if self.class_numbers else None


def _size_bytes(given: bytes | Row) -> int:
    if isinstance(given, bytes):
        return len(given)
    return sum(array.nbytes for array in given.values())
