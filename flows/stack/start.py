"""A stack from its settings to the last deployment."""

import time
from collections.abc import Iterator

from flows.stack import standing
from flows.stack.parts import list_parts
from flows.stack.settings import Stack
from flows.stack.supervisor import Supervisor


def start_stack(stack: Stack) -> Iterator[tuple[str, float]]:
    """Starts what does not run yet, and sees to what a stack has besides: names with seconds, as they are there.

    Raises PartFailedError where a part does not become healthy; the others go on.
    """
    supervisor, parts = Supervisor(stack), list_parts(stack)
    if not supervisor.runs():
        supervisor.start(parts)
    yield from supervisor.start_parts(parts)
    began = time.monotonic()
    standing.fill_bucket(stack)
    standing.deploy(stack)
    standing.automate(stack)
    yield "deployments", time.monotonic() - began
