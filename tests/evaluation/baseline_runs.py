"""An evaluation beside two tiny baselines; as a process of its own, to be killed: `python -m ... FOLDER ADDRESS`."""

import sys
from pathlib import Path

from ezigen.adapters import adapter_fingerprint
from ezigen.config import BaselineConfig, BenchmarkConfig, ClusterConfig, ModelConfig, SamplerConfig
from ezigen.models import model_fingerprint
from tasks.evaluation import baselines, read_benchmark
from tasks.evaluation.baselines import plan_baselines
from tasks.evaluation.paper import TEXT_ONLY, PaperTable
from tasks.evaluation.plan import EvaluationPlan, Method, plan_evaluation
from tasks.evaluation.run import Hooks, run_evaluation
from tasks.evaluation.tables import MeasuredTable
from tasks.storage import OutputFolder

SAMPLER = SamplerConfig(num_steps=2, guidance_scale=1.0)
TABLE = PaperTable("small", "", "One mode", "generation", ("clip_t", "dino", "seconds"), (TEXT_ONLY,))


class BaselineRun:
    """In a folder: benchmark/ (four cases), model/ and ip-adapter/ (tiny ones); and an output, there or elsewhere."""

    def __init__(self, folder: Path, output: str = "out", cases_per_shard: int = 1):
        config = BenchmarkConfig(
            kind="mini-dreambench", folder_uri=str(folder / "benchmark"), num_subjects=2, num_prompts=2, num_runs=1
        )
        self.folder = folder
        self.benchmark, self.output = read_benchmark(config), OutputFolder(str(folder / output))
        model = str(folder / "model")
        self.configs = {
            "Plain": BaselineConfig(pipeline=model, num_steps=2),
            "IP-Adapter": BaselineConfig(pipeline=model, ip_adapter=str(folder / "ip-adapter"), num_steps=2),
        }
        baselines.CASES_PER_SHARD = cases_per_shard

    def plan(self) -> EvaluationPlan:
        prints = model_fingerprint("mini"), adapter_fingerprint("auto", "mini")
        method = Method("shipped", ModelConfig(), SAMPLER, *prints, image_size_px=64, unet_flop=1e9)
        planned = {self.benchmark.name: plan_baselines(self.configs, self.benchmark, self.output)}
        roots = [str(self.folder / "benchmark")]
        return plan_evaluation(method, self.output, [self.benchmark], [TABLE], allowed_roots=roots, baselines=planned)

    def run(self, cluster: ClusterConfig, **hooks) -> tuple[MeasuredTable, ...]:
        return run_evaluation(self.plan(), self.output, cluster, Hooks(**hooks))

    def images(self) -> dict[str, Path]:
        """By baseline and case, wherever they lie."""
        return {
            f"{one.name}/{case.case_id}": path
            for one in plan_baselines(self.configs, self.benchmark, self.output)
            for case in self.benchmark.cases
            if (path := Path(one.folder(self.output).path(f"{case.case_id}.png"))).exists()
        }


if __name__ == "__main__":
    BaselineRun(Path(sys.argv[1]), sys.argv[3]).run(ClusterConfig(address=sys.argv[2], num_workers=1))
