"""A catalog run in a process of its own, to be killed: `python -m tests.run.driver CATALOG OUTPUT`."""

import json
import logging
import sys
from pathlib import Path

from ezigen.config import CatalogInputs, ClusterConfig, ModelConfig, SamplerConfig
from tasks.actors import CatalogWorker
from tasks.catalog.outcome import RunOutcome
from tasks.catalog.plan import CatalogPlan, plan_catalog
from tasks.catalog.run import run_catalog
from tasks.storage import RunOutput
from tasks.storage.lease import Lease
from tests.run.light import LightWorker

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
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    catalog, output = sys.argv[1:]
    cluster = ClusterConfig(num_workers=2, num_slots=2, num_ahead=2, shard_size=4, flush_interval_s=1.0)
    outcome = run(CatalogInputs(catalog_uri=catalog, output_uri=output), cluster=cluster)
    Path(output, "outcome.json").write_text(json.dumps({"state": outcome.state, "done": outcome.done}))


if __name__ == "__main__":
    main()
