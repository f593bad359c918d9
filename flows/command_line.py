"""The command line `ezigen`. Every command that makes something runs the flow of the same name in this process.

Exit codes: 0 done (tolerated failures included), 1 failed, 2 wrong usage or configuration, 3 the output is held by
another run, 130 stopped by Ctrl-C, 143 stopped by SIGTERM.
"""

import os
from typing import Annotated

import typer

from ezigen.config import ConfigurationError, ModelConfig
from flows.adapter_commands import adapters_app
from flows.evaluation_options import EvaluationOptions
from flows.exits import EXIT_FAILED, plain_errors
from flows.feature_options import FeatureOptions
from flows.option_sets import with_options
from flows.outputs import open_output
from flows.pair_options import PairOptions
from flows.pipeline_options import PipelineOptions
from flows.plan_commands import load_options, plan_app
from flows.results_listing import list_results
from flows.results_options import ResultsOptions
from flows.review_commands import review_app
from flows.run_options import RunOptions
from flows.stack_commands import down, up
from flows.study_commands import study_app
from flows.training_options import TrainingOptions

QUIET_ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # The terminal belongs to the progress bar; the run's page and log files get every record.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}

app = typer.Typer(
    name="ezigen",
    help="Every product of a catalog in new scenes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 the output is held by another run, "
    "130 and 143 stopped.",
)
app.add_typer(plan_app, name="plan")
app.add_typer(adapters_app, name="adapters")
app.add_typer(study_app, name="study")
app.add_typer(review_app, name="review")
app.command()(up)
app.command()(down)


def main() -> None:
    """The entry point of `ezigen`."""
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    app()


@app.callback()
def set_up(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and every log record.")] = False,
) -> None:
    """Options that hold for every command."""
    if debug:
        os.environ["EZIGEN_DEBUG"] = "1"


@app.command()
@with_options(RunOptions)
def personalize(options: RunOptions) -> None:
    """Make the images of a catalog that are missing in the output: flow [bold]personalize_catalog[/], here and now."""
    with plain_errors():
        parameters = options.parameters()
        from flows.planning import check_early

        check_early(parameters)
        from flows.local_run import run_here

        code = run_here("personalize_catalog", parameters)
    raise typer.Exit(code)


@app.command()
@with_options(PairOptions)
def pairs(options: PairOptions) -> None:
    """Make training pairs of COCO and YouTube-VIS: flow [bold]build_pairs[/], here and now."""
    with plain_errors():
        parameters = options.parameters()
        from flows.pairs_job import check_early

        check_early(parameters)
        from flows.local_run import run_here

        code = run_here("build_pairs", parameters)
    raise typer.Exit(code)


@app.command()
@with_options(FeatureOptions)
def features(options: FeatureOptions) -> None:
    """Compute once what training needs of the frozen networks: flow [bold]precompute_features[/], here and now."""
    with plain_errors():
        parameters = options.parameters()
        from flows.features_job import check_early

        check_early(parameters)
        from flows.local_run import run_here

        code = run_here("precompute_features", parameters)
    raise typer.Exit(code)


@app.command()
@with_options(TrainingOptions)
def train(options: TrainingOptions) -> None:
    """Train the adapters on a feature store and publish them: flow [bold]train_adapter[/], here and now."""
    with plain_errors():
        parameters = options.parameters()
        from flows.training_job import check_early

        check_early(parameters)
        from flows.local_run import run_here

        code = run_here("train_adapter", parameters)
    raise typer.Exit(code)


@app.command()
@with_options(PipelineOptions)
def pipeline(options: PipelineOptions) -> None:
    """From data sets to a measured adapter, skipping what is there: flow [bold]run_pipeline[/], here and now."""
    with plain_errors():
        parameters = options.parameters()
        from flows.pipeline_job import check_early

        check_early(parameters)
        from flows.local_run import run_here

        code = run_here("run_pipeline", parameters)
    raise typer.Exit(code)


@app.command()
@with_options(EvaluationOptions)
def evaluate(options: EvaluationOptions) -> None:
    """Measure an adapter on a benchmark, beside the paper: flow [bold]evaluate_adapter[/], here and now."""
    with plain_errors():
        parameters = options.parameters()
        from flows.evaluation_job import check_early

        check_early(parameters)
        from flows.local_run import run_here

        code = run_here("evaluate_adapter", parameters)
    raise typer.Exit(code)


@app.command()
@with_options(ResultsOptions)
def results(options: ResultsOptions) -> None:
    """List what became of every row."""
    with plain_errors():
        list_results(open_output(options.output, options.storage_block), options.selection(), form=options.form)


@app.command()
def status(
    output: Annotated[str, typer.Argument(help="Output of a run: a folder or s3:// prefix.")],
    watch: Annotated[bool, typer.Option("--watch", help="Until the run has ended.")] = False,
    price: Annotated[
        float | None,
        typer.Option(min=0.0, help="Of a worker (as a rule a GPU) for an hour: tells the cost of an image."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    storage_block: Annotated[str, typer.Option(help="Prefect block ezigen-s3/NAME with endpoint and keys.")] = "",
) -> None:
    """Say how the last run on an output is doing: how far, how fast, what fails. Exits with 1 if it failed or died."""
    with plain_errors():
        from flows.status_listing import show_status, watch_status
        from tasks.catalog.status import StatusReader

        if watch and as_json:
            raise ConfigurationError("--watch and --json exclude each other; choose one.")
        reader = StatusReader(open_output(output, storage_block))
        code = watch_status(reader, price=price) if watch else show_status(reader, price=price, as_json=as_json)
    raise typer.Exit(code)


@app.command()
def inspect(
    location: Annotated[
        str,
        typer.Argument(
            help="Folder or s3:// prefix: pairs, a feature store, an output of a run, an adapter; or NAME@ALIAS."
        ),
    ],
    item_id: Annotated[
        str | None, typer.Option("--id", help="One pair, subject or item; its id or the beginning of it.")
    ] = None,
    save: Annotated[str, typer.Option(metavar="FOLDER", help="Where pictures are saved.")] = "build/inspect",
    adapters: Annotated[str, typer.Option(help="Where NAME@ALIAS is looked up.")] = "adapters",
    storage_block: Annotated[str, typer.Option(help="Prefect block ezigen-s3/NAME with endpoint and keys.")] = "",
) -> None:
    """Show what lies at a location: schema, counts, fingerprints, a contact sheet; of one subject its features."""
    with plain_errors():
        from flows.inspection import show_location
        from tasks.adapters import find_adapter, is_reference
        from tasks.storage import Locations

        if is_reference(location):
            location = find_adapter(location, adapters, Locations(storage_options=load_options(storage_block)))
        show_location(location, item_id, save, load_options(storage_block))


@app.command()
def doctor(
    address: Annotated[str, typer.Option(help="Ray cluster to reach; local starts one.")] = "local",
    model: Annotated[str, typer.Option(help="Model to look for.")] = "mini",
    adapter: Annotated[
        str, typer.Option(help='Adapter to look for, as in "personalize"; auto: the shipped one of mini.')
    ] = "auto",
    adapters: Annotated[str, typer.Option(help="Folder or s3:// prefix of published adapters.")] = "adapters",
    storage: Annotated[str | None, typer.Option(help="Folder or s3:// prefix to write to and read from.")] = None,
) -> None:
    """Check what this machine has, what is missing, and say what to do."""
    with plain_errors():
        from flows.doctor import examine

        networks = ModelConfig(model=model, adapter=adapter, adapters_uri=adapters)
        healthy = examine(address=address, model=networks, storage=storage)
    raise typer.Exit(0 if healthy else EXIT_FAILED)


if __name__ == "__main__":
    main()
