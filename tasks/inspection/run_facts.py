"""What run.json says, as facts."""

from tasks.inspection.view import settings_facts
from tasks.reports.wording import RUN_STATES, format_span
from tasks.storage.run_record import RunRecord

_VERSIONS = ("ezigen-pipeline", "python", "torch", "diffusers", "ray", "pyarrow")


def run_facts(record: RunRecord | None) -> list[tuple[str, str]]:
    """The last run: its state and time, what it was asked for, with which versions; nothing without a record."""
    if record is None:
        return [("last run", "unknown (no run.json)")]
    ended = "" if record.finished_at is None else f", {format_span(record.seconds)}"
    facts = [
        ("last run", f"{record.run_id}: {RUN_STATES[record.state].lower()}, started {record.started_at}{ended}"),
    ]
    if record.message:
        facts.append(("message", record.message))
    if record.history:
        facts.append(("runs before", f"{len(record.history):,}"))
    for name in ("model", "sampler", "config"):
        facts += settings_facts(name, getattr(record, name))
    facts += [(f"fingerprint of {name}", value) for name, value in record.fingerprints.items()]
    versions = {name: record.versions[name] for name in _VERSIONS if name in record.versions}
    return facts + settings_facts("versions", versions)
