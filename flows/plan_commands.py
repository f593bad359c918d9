"""`ezigen plan`: what a run would do, without doing it. Starts no server and no Ray."""

from typing import Any

import typer
from typer.core import TyperGroup

from flows.exits import plain_errors
from flows.feature_options import FeatureOptions
from flows.option_sets import with_options
from flows.pair_options import PairOptions
from flows.run_options import RunOptions
from flows.terminal import print_table
from flows.training_options import TrainingOptions

DEFAULT = "catalog"


class PlanGroup(TyperGroup):
    """`ezigen plan CATALOG OUTPUT` is `ezigen plan catalog CATALOG OUTPUT`.

    Nothing is ambiguous: a catalog's name ends in .csv, .jsonl or .parquet, a command's does not.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts the default command before arguments that name none."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


plan_app = typer.Typer(
    cls=PlanGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Say what a run would do and cost, without doing it.\n\n"
    "[bold]ezigen plan CATALOG OUTPUT[/] plans a catalog; it is short for ezigen plan catalog CATALOG OUTPUT.\n\n"
    "[bold]ezigen plan pairs[/], [bold]features[/] and [bold]train[/] take what the commands of these names take.\n\n"
    "Nothing is written, and neither a server nor Ray is started.",
)


@plan_app.command(DEFAULT)
@with_options(RunOptions)
def plan_catalog(options: RunOptions) -> None:
    """Check every row, count the work and its cost. Reads no picture, loads no model, starts nothing."""
    with plain_errors():
        parameters = options.parameters()
        from flows.catalog_job import print_plan
        from flows.planning import make_plan

        print_plan(make_plan(parameters, load_options(parameters.inputs.storage_block)))


@plan_app.command("pairs")
@with_options(PairOptions)
def plan_pairs(options: PairOptions) -> None:
    """Read the annotations and count candidates, wanted pairs and shards. Reads no picture, writes nothing."""
    with plain_errors():
        parameters = options.parameters()
        from flows.pairs_job import PairsJob, print_plan

        job = PairsJob(parameters, load_options(parameters.inputs.storage_block))
        print_plan(job.look_at_plan())


@plan_app.command("features")
@with_options(FeatureOptions)
def plan_features(options: FeatureOptions) -> None:
    """Print rows, bytes, hours and when reading features beats computing them again. Writes nothing."""
    with plain_errors():
        parameters = options.parameters()
        from flows.features_job import FeaturesJob

        job = FeaturesJob(parameters, load_options(parameters.inputs.storage_block))
        print_table(("", ""), job.look_at_plan().describe())


@plan_app.command("train")
@with_options(TrainingOptions)
def plan_train(options: TrainingOptions) -> None:
    """Name the run's folder and count samples, steps and what is done of them. Reads no features, writes nothing."""
    with plain_errors():
        parameters = options.parameters()
        from flows.training_job import TrainingJob

        job = TrainingJob(parameters, load_options(parameters.inputs.storage_block))
        print_table(("", ""), job.look_at_plan().describe())


def load_options(storage_block: str) -> dict[str, Any]:
    """Storage options of a block; Prefect is imported only if there is one to load."""
    if not storage_block:
        return {}
    from flows.storage_block import load_storage_options

    return load_storage_options(storage_block)
