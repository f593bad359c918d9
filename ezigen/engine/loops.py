"""How many loops are still to come."""

from collections import Counter

from ezigen.config import SamplerConfig


class LoopForecast:
    """The expected number of loops that an image still needs, learned from the images that have ended."""

    def __init__(self, sampler: SamplerConfig) -> None:
        self._loops = sampler.loops if sampler.mode == "iterative" else None
        self._seen: Counter[int] = Counter()

    def record(self, num_loops: int) -> None:
        """An image ended after so many loops."""
        self._seen[num_loops] += 1

    def expected_left(self, num_loops: int) -> float:
        """Loops that an image needs beyond those it had: the mean over the images that needed more, as far as any did.

        Before there are any, half of what its limits allow.
        """
        loops = self._loops
        if loops is None:
            return 0.0
        if loops.stop == "fixed":
            return float(max(0, loops.num_loops - num_loops))
        beyond = {count: times for count, times in self._seen.items() if count > num_loops}
        if beyond:
            return sum(count * times for count, times in beyond.items()) / sum(beyond.values()) - num_loops
        return max(0.0, (max(loops.min_loops, num_loops) + loops.max_loops) / 2 - num_loops)
