"""The stage on a store, in this process or on Ray."""

from pathlib import Path
from typing import Any

from ezigen.config import FeatureConfig, FeatureInputs, RayConfig, StackConfig
from tasks.features.build import FeatureWork
from tasks.features.manifest import write_index, write_store
from tasks.features.outcome import FeatureOutcome
from tasks.features.plan import FeaturePlan, plan_features
from tasks.features.reader import FeatureStore
from tasks.features.run import run_features
from tasks.features.writer import ShardFiles
from tasks.storage import Locations, OutputFolder
from tasks.storage.lease import Lease


class Stage:
    """precompute_features of some pairs into a store, as often as one likes."""

    def __init__(
        self,
        pairs: Path | str,
        store: Path | str,
        model: Path | str,
        *,
        locations: Locations | None = None,
        **config: Any,
    ) -> None:
        self.locations = locations or Locations()
        self.pairs_uri, self.output = str(pairs), OutputFolder(str(store), self.locations)
        self.config = FeatureConfig(**{"batch_size": 3, **config})
        self.model = StackConfig(model=str(model), device="cpu")

    def plan(self, *, cluster: RayConfig | None = None, **inputs: Any) -> FeaturePlan:
        wanted = FeatureInputs(pairs_uri=self.pairs_uri, output_uri=self.output.root_uri, **inputs)
        return plan_features(wanted, self.config, self.model, self.output, self.locations, cluster=cluster)

    def run(self, plan: FeaturePlan | None = None, **options: Any) -> FeatureOutcome:
        """Plan and run under a lease, as the flow does."""
        cluster = options.pop("cluster", None) or RayConfig(num_workers=1)
        with Lease(self.output, "test", ttl_s=5) as lease:
            plan = plan or self.plan()
            return run_features(plan, self.output, cluster=cluster, locations=self.locations, lease=lease, **options)

    def make_here(self, plan: FeaturePlan | None = None) -> FeatureStore:
        """The store that a run would make, made in this process, shard after shard, without Ray."""
        plan = plan or self.plan()
        work = self.work(plan)
        write_store(self.output, plan.identity)
        reports = [work.make(shard) for shard in plan.to_do]
        made = {report.shard: ShardFiles(report.shard, report.counts["pairs"], report.files) for report in reports}
        write_index(self.output, plan.identity, {**plan.done, **made})
        return self.open()

    def open(self) -> FeatureStore:
        return FeatureStore.open(self.output.root_uri, self.locations)

    def work(self, plan: FeaturePlan) -> FeatureWork:
        """The work of a plan, opened here."""
        work = FeatureWork(
            pairs=plan.pairs,
            output=self.output,
            identity=plan.identity,
            config=plan.config,
            model=plan.model,
            owned=plan.owned,
            locations=self.locations,
        )
        work.open()
        return work
