"""Wall-clock timing of contenders in turn, so that a machine's drift meets all of them alike."""

import time
from collections.abc import Callable, Sequence


def interleaved(contenders: Sequence[Callable[[], object]], repetitions: int) -> list[list[float]]:
    """Seconds of each contender's runs: A B A B ....

    A contender returns when its work is done on the device, and has run before (compilation,
    allocation and caches are not what is measured).

    Returns:
      A list of `repetitions` seconds for each contender.
    """
    seconds: list[list[float]] = [[] for _ in contenders]
    for _ in range(repetitions):
        for contender, times in zip(contenders, seconds, strict=True):
            started = time.perf_counter()
            contender()
            times.append(time.perf_counter() - started)
    return seconds
