"""`ezigen adapters`: the registry of published adapters. Starts no server and no Ray."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ezigen.config import ConfigurationError
from flows.exits import EXIT_FAILED, plain_errors
from flows.plan_commands import load_options
from flows.terminal import out, print_table

if TYPE_CHECKING:
    from tasks.adapters import PublishedAdapter, Registry
    from tasks.adapters.alias import AliasRecord

DEFAULT_URI = "adapters"
FINGERPRINT_DIGITS = 12

Adapters = Annotated[
    str, typer.Option("--adapters", metavar="LOCATION", help="Folder or s3:// prefix of published adapters.")
]
StorageBlock = Annotated[str, typer.Option(help="Prefect block ezigen-s3/NAME with endpoint and keys.")]
Reference = Annotated[str, typer.Argument(metavar="ADAPTER", help="NAME@VERSION, NAME@ALIAS, or NAME for NAME@latest.")]

adapters_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Published adapters: versions never change, aliases such as [bold]latest[/] and [bold]production[/] point to "
    "one of them.\n\nUse one by [bold]ezigen personalize ... --adapter NAME@ALIAS[/].",
)


@adapters_app.command("list")
def list_adapters(
    name: Annotated[str, typer.Argument(help="Only versions of this name.")] = "",
    adapters: Adapters = DEFAULT_URI,
    storage_block: StorageBlock = "",
) -> None:
    """List names, versions, what was measured, and the aliases that point to them."""
    with plain_errors():
        registry = open_registry(adapters, storage_block)
        known = {name: registry.versions(name)} if name else registry.versions_by_name()
        if not any(known.values()):
            what = f"no adapter {name}" if name else "no adapters"
            raise ConfigurationError(
                f"{registry.uri} holds {what}; check --adapters, or publish one (`ezigen train`, "
                "`ezigen adapters import`)."
            )
        rows = []
        for one, versions in known.items():
            aliases = registry.aliases(one)
            rows += [_describe_version(registry.get(one, version), aliases) for version in reversed(versions)]
        print_table(("adapter", "aliases", "made", "for model", "measured"), rows)


@adapters_app.command("show")
def show_adapter(reference: Reference, adapters: Adapters = DEFAULT_URI, storage_block: StorageBlock = "") -> None:
    """Show the card of one version: what it is for, how it was trained, on what, and what was measured."""
    with plain_errors():
        registry = open_registry(adapters, storage_block)
        published = registry.resolve(reference)
        out.print(f"[bold]{escape(published.reference)}[/]")
        print_table(("", ""), _describe_card(published))
        rows = [_describe_alias(alias, record) for alias, record in registry.aliases(published.name).items()]
        if rows:
            out.print("\n[bold]aliases[/]")
            print_table(("alias", "version", "since", "before"), rows)


@adapters_app.command("promote")
def promote_adapter(
    reference: Reference,
    alias: Annotated[str, typer.Argument(help="Alias to point to that version, such as production.")],
    evaluations: Annotated[
        str,
        typer.Option(
            help="Folder or s3:// prefix where both versions were evaluated: point there only if the new one is no "
            "worse. Empty: do not ask."
        ),
    ] = "",
    margin: Annotated[
        list[str] | None,
        typer.Option(metavar="MEASURE=NUMBER", help="By how much a measure may fall; dino=0.02 and clip_t=0.02."),
    ] = None,
    adapters: Adapters = DEFAULT_URI,
    storage_block: StorageBlock = "",
) -> None:
    """Point an alias to a version, in one step. Runs that are under way keep the version that they began with."""
    with plain_errors():
        from tasks.adapters.reference import AdapterReference

        registry, wanted = open_registry(adapters, storage_block), AdapterReference.parse(reference)
        code = 0
        if evaluations:
            code = _promote_if_no_worse(registry, reference, alias, evaluations, margin or (), storage_block)
        else:
            published = registry.promote(wanted.name, wanted.label, alias)
            out.print(f"{escape(published.name)}@{escape(alias)} is {escape(published.version)} now")
    raise typer.Exit(code)


@adapters_app.command("compare")
def compare_adapters(
    new: Reference,
    old: Annotated[str, typer.Argument(metavar="OTHER", help="The adapter that it is compared with.")],
    evaluations: Annotated[str, typer.Argument(help="Folder or s3:// prefix where both were evaluated.")],
    adapters: Adapters = DEFAULT_URI,
    storage_block: StorageBlock = "",
) -> None:
    """Show by how much, and for which subjects, one evaluated adapter scores higher than another."""
    with plain_errors():
        from flows.evaluation_job import folder_name
        from flows.version_comparison import print_differences
        from tasks.adapters import is_reference
        from tasks.evaluation.comparison import compare_evaluations
        from tasks.storage import Locations, OutputFolder

        registry = open_registry(adapters, storage_block)
        new, old = (registry.resolve(one).reference if is_reference(one) else one for one in (new, old))
        output = OutputFolder(evaluations, Locations(storage_options=load_options(storage_block)))
        print_differences(new, old, compare_evaluations(output, folder_name(new), folder_name(old)))


@adapters_app.command("import")
def import_adapter(
    folder: Annotated[
        str, typer.Argument(help="Folder or s3:// prefix: one of ours, or the checkpoint that the authors published.")
    ],
    name: Annotated[str, typer.Argument(help="Name under which it becomes a version.")],
    model: Annotated[str, typer.Option(help="The model that it was trained for: mini, a folder or a hub id.")],
    alias: Annotated[str, typer.Option(help='Alias to point to the new version; "" for none.')] = "latest",
    adapters: Adapters = DEFAULT_URI,
    storage_block: StorageBlock = "",
) -> None:
    """Make an adapter that was trained elsewhere a version. Every tensor has to fit; what does not is named."""
    with plain_errors():
        from tasks.adapters.importing import import_adapter as import_folder
        from tasks.storage import Locations

        locations = Locations(storage_options=load_options(storage_block))
        registry = open_registry(adapters, storage_block)
        published = import_folder(folder, name, model, registry, alias=alias, locations=locations)
        out.print(f"{escape(published.reference)}: {escape(published.uri)}")


def _promote_if_no_worse(
    registry: "Registry", reference: str, alias: str, evaluations: str, margins: Sequence[str], storage_block: str
) -> int:
    from ezigen.config import EvaluationConfig
    from flows.promotion import parse_margins, promote_if_no_worse
    from tasks.storage import Locations, OutputFolder

    output = OutputFolder(evaluations, Locations(storage_options=load_options(storage_block)))
    wanted = parse_margins(margins) or EvaluationConfig().margins
    summary = promote_if_no_worse(registry, reference, alias, output, wanted)
    out.print(escape(summary.describe()))
    if summary.failure:
        return EXIT_FAILED
    summary.print_details()
    return 0


def open_registry(uri: str, storage_block: str) -> "Registry":
    """The registry with the keys of a Prefect block, if one is named."""
    from tasks.adapters import Registry
    from tasks.storage import Locations

    return Registry(uri, Locations(storage_options=load_options(storage_block)))


def _describe_version(published: "PublishedAdapter", aliases: Mapping[str, "AliasRecord"]) -> tuple[str, ...]:
    card = published.card
    pointing = ", ".join(alias for alias, record in aliases.items() if record.version == published.version)
    return published.reference, pointing, _to_minute(card.created_at), card.base_model, _describe_metrics(card.metrics)


def _describe_card(published: "PublishedAdapter") -> list[tuple[str, str]]:
    from tasks.inspection.view import settings_facts

    card = published.card
    facts = [
        ("location", published.uri),
        ("made", card.created_at),
        ("for model", f"{card.base_model or 'unknown'} {card.base_fingerprint[:FINGERPRINT_DIGITS]}".strip()),
        ("adapters", f"{card.num_adapters:,} with {card.num_parameters:,} numbers"),
        *([("only in", ", ".join(card.blocks))] if card.blocks else []),
        *([("subject encoder", card.describe_encoder())] if card.subject_encoder != "frozen" else []),
        ("extra residual", "yes, as in the authors' release" if card.extra_residual else "no"),
        ("weights", f"sha256 {card.weights_sha256}"),
    ]
    if card.files:
        facts.append(("beside them", ", ".join(card.files)))
    if card.run:
        facts.append(("made by", card.run))
    if card.metrics:
        facts.append(("measured", _describe_metrics(card.metrics)))
    groups: list[tuple[str, Mapping[str, Any]]] = [
        ("training", card.training), ("data", card.data), ("configuration", card.configuration)
    ]  # fmt: skip
    for label, values in groups:
        facts += settings_facts(label, values)
    return facts


def _describe_alias(alias: str, record: "AliasRecord") -> tuple[str, ...]:
    before = ", ".join(move.version for move in reversed(record.earlier))
    return alias, record.version, _to_minute(record.moved_at), before


def _describe_metrics(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _to_minute(time: str) -> str:
    """2026-11-24 05:08 of an ISO 8601 text."""
    return time[:16].replace("T", " ")
