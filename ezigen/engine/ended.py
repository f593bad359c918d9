"""What an engine says of a request that it is done with."""

from dataclasses import dataclass

from ezigen.config import ItemError
from ezigen.sampling.request import Sample


@dataclass(frozen=True, eq=False)
class Ended:
    """What became of one request: its sample, or the error that is its own."""

    key: str
    sample: Sample | None = None
    error: ItemError | None = None
