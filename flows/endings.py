"""How a flow run ends, in Prefect's words."""

import logging
import signal
from typing import Any

import httpx
from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Crashed, Failed

from flows.job import Summary, UnfinishedRun

logger = logging.getLogger(__name__)


def to_state(summary: Summary) -> State[Any]:
    """The final state of a flow run. Its data is the summary, or an UnfinishedRun that holds it."""
    if summary.stopped_by is not None:
        message = f"stopped by {signal.Signals(summary.stopped_by).name}: {summary.describe()}"
        # A run that somebody cancelled stays cancelled; one whose machine was taken away may be started again.
        kind = Cancelled if was_cancelled(summary.stopped_by) else Crashed
        return kind(message=message, data=UnfinishedRun(message, summary))
    if summary.failure:
        return Failed(message=summary.failure, data=UnfinishedRun(summary.failure, summary))
    return Completed(message=summary.describe(), data=summary)


def was_cancelled(signal_number: int) -> bool:
    """Whether a person ended the run: Ctrl-C, or a cancellation on its page, after which SIGTERM follows."""
    if signal_number == signal.SIGINT:
        return True
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(runtime.flow_run.id).state
    except httpx.HTTPError as error:
        logger.warning("Prefect does not say whether the run was cancelled: %s", error)
        return False
    return state is not None and state.is_cancelling()
