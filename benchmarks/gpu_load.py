"""How much of the time a GPU has nothing to do, by the driver's own count."""

import statistics
import threading
from types import TracebackType
from typing import Self

_PERIOD_SECONDS = 0.1


class GpuLoad:
    """Samples the driver's utilisation of the first GPUs while the `with` block runs; nothing without `pynvml`.

    The driver counts the share of its last sampling period (a sixth of a second on an H100) in which a kernel ran.
    """

    def __init__(self, num_gpus: int = 1) -> None:
        self._num_gpus = num_gpus
        self._samples: list[float] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def forget(self) -> None:
        """Count from now on: what came before was warm-up."""
        self._samples.clear()

    def stop(self) -> None:
        """Count no further: what follows is not the steady state."""
        self._end.set()

    @property
    def idle_share(self) -> float | None:
        """The mean share of time with no kernel running, or None where it was not counted."""
        return 1 - statistics.mean(self._samples) / 100 if self._samples else None

    def _sample(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            gpus = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(self._num_gpus)]
        except Exception:
            return  # no driver, or no bindings for it: nothing is counted
        while not self._end.wait(_PERIOD_SECONDS):
            self._samples.append(statistics.mean(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu for gpu in gpus))
