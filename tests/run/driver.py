"""A catalog run in a process of its own, to be killed: `python -m tests.run.driver CATALOG OUTPUT [options]`."""

import argparse
import json
import logging
import signal
import sys
import threading
from pathlib import Path

from ezigen.config import CatalogInputs, ClusterConfig, ModelConfig, SamplerConfig
from tasks.actors import CatalogWorker
from tasks.catalog.outcome import RunOutcome
from tasks.catalog.plan import CatalogPlan, plan_catalog
from tasks.catalog.run import run_catalog
from tasks.storage import RunOutput
from tasks.storage.lease import Lease
from tests.run.light import DoomedWorker, LightWorker

WORKERS = {"light": LightWorker, "doomed": DoomedWorker, "real": CatalogWorker}
SAMPLER = SamplerConfig()


def make_plan(inputs: CatalogInputs, sampler: SamplerConfig = SAMPLER) -> CatalogPlan:
    return plan_catalog(inputs, sampler, "model-fingerprint", "adapter-fingerprint")


def run(inputs: CatalogInputs, worker: type[CatalogWorker] = LightWorker, **options) -> RunOutcome:
    """Plan and run under a lease, as the flow does."""
    output = RunOutput(inputs.output_uri)
    cluster = options.pop("cluster", None) or ClusterConfig(num_workers=2, num_slots=2, num_ahead=2, shard_size=4)
    sampler = options.pop("sampler", SAMPLER)
    model = options.pop("model", ModelConfig())
    with Lease(output, "test", ttl_s=5, wait=inputs.if_busy == "wait") as lease:
        plan = make_plan(inputs, sampler)
        return run_catalog(
            plan,
            output,
            inputs=inputs,
            model=model,
            sampler=sampler,
            cluster=cluster,
            lease=lease,
            worker=worker,
            **options,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("catalog")
    parser.add_argument("output")
    parser.add_argument("--worker", choices=WORKERS, default="light")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--shard", type=int, default=4)
    parser.add_argument("--flush", type=float, default=1.0)
    parser.add_argument("--grace", type=float, default=20.0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    cluster = ClusterConfig(
        num_workers=options.workers,
        num_slots=options.slots,
        num_ahead=2,
        shard_size=options.shard,
        flush_interval_s=options.flush,
        grace_period_s=options.grace,
    )
    inputs = CatalogInputs(catalog_uri=options.catalog, output_uri=options.output)
    outcome = run(inputs, WORKERS[options.worker], cluster=cluster, stop=stop)
    Path(options.output, "outcome.json").write_text(
        json.dumps({"state": outcome.state, "done": outcome.done, "failed": outcome.failed, "total": outcome.total})
    )


if __name__ == "__main__":
    main()
