"""The data card: what is in a set of pairs, as card.json and as a page."""

from collections.abc import Iterator
from typing import Any

from ezigen.config import ConfigurationError
from tasks.pairs.layout import PLAN_PATH, write_json
from tasks.pairs.stored_plan import StoredPlan
from tasks.pairs.survey import PairsSurvey, read_sample, survey_pairs
from tasks.reports.figures import SparseBins
from tasks.reports.pairs_card import CardPair, CardSource, PairsCard, RefusalGroup, make_strip, render_card
from tasks.storage import OutputFolder

CARD_JSON, CARD_HTML = "card.json", "card.html"
NUM_SAMPLES = 24
_AREA_STEP = 0.02


def write_card(output: OutputFolder, num_samples: int = NUM_SAMPLES) -> str:
    """Writes card.json and card.html beside the pairs and returns the page's location.

    Reads shard by shard: memory does not grow with the number of pairs. Writing it again gives the same card. Raises
    ConfigurationError if there is no plan, or for a damaged shard, naming it.
    """
    plan = StoredPlan.load(output)
    if plan is None:
        raise ConfigurationError(f"{output.root_uri} holds no {PLAN_PATH}: build pairs there first.")
    survey = survey_pairs(output, plan.shards, plan.identity, num_samples, has_defects=plan.defects is not None)
    # The list ends somewhere; the counts do not.
    for name, source in plan.sources.items():
        survey.refused.update({(name, reason): count for reason, count in source.refused.items()})
    write_json(output, CARD_JSON, describe_card(plan, survey))
    pairs = [_to_card_pair(row) for row in read_sample(output, survey.sample.pairs(), plan.identity)]
    name = output.root_uri.rstrip("/").rpartition("/")[2] or output.root_uri
    page = render_card(_to_card(name, plan, survey, pairs), output.read_run())
    return output.write(CARD_HTML, page.encode())


def describe_card(plan: StoredPlan, survey: PairsSurvey) -> dict[str, Any]:
    """The content of card.json: plain numbers, for machines."""
    return {
        "kind": "pairs-card",
        "version": 1,
        "identity": plan.identity,
        "pairs": survey.by_source.total(),
        "sources": {
            name: {
                "wanted": source.wanted,
                "built": survey.by_source[name],
                "candidates": source.candidates,
                "groups": source.groups,
                "classes": dict(_classes_of(survey, name)),
                "refused": dict(_refused_of(survey, name)),
                "not_selected": dict(source.not_selected),
            }
            for name, source in plan.sources.items()
        },
        "refused": dict(survey.refused_by_reason.most_common()),
        "flipped": survey.num_flipped,
        "bytes": dict(sorted(survey.column_bytes.items())),
        "shards": survey.num_shards,
        "rounds": len(plan.rounds),
        "histograms": {
            **{f"area_share/{name}": _histogram(bins, _AREA_STEP) for name, bins in sorted(survey.areas.items())},
            "frame_distance": _histogram(survey.distances, survey.distances.width),
        },
        "settings": dict(plan.settings),
    }


def _histogram(bins: SparseBins, width: float) -> dict[str, Any]:
    """Counts of columns of one width: the first begins at `start`."""
    entries = bins.items()
    if not entries:
        return {"start": 0.0, "width": width, "counts": []}
    first = int(entries[0][0] // width)
    counts = [0] * (int(entries[-1][0] // width) - first + 1)
    for edge, count in entries:
        counts[int((edge + bins.width / 2) // width) - first] += count
    return {"start": round(first * width, 9), "width": width, "counts": counts}


def _classes_of(survey: PairsSurvey, source: str) -> Iterator[tuple[str, int]]:
    """Pairs by class, the most frequent first."""
    found = [(name, count) for (other, name), count in survey.by_class.items() if other == source]
    yield from sorted(found, key=lambda entry: (-entry[1], entry[0]))


def _refused_of(survey: PairsSurvey, source: str) -> Iterator[tuple[str, int]]:
    found = [(reason, count) for (other, reason), count in survey.refused.items() if other == source]
    yield from sorted(found, key=lambda entry: (-entry[1], entry[0]))


def _to_card(name: str, plan: StoredPlan, survey: PairsSurvey, pairs: list[CardPair]) -> PairsCard:
    return PairsCard(
        name=name,
        sources=tuple(
            CardSource(
                source,
                stored.wanted,
                survey.by_source[source],
                stored.candidates,
                stored.groups,
                tuple(_classes_of(survey, source)),
                tuple(stored.not_selected.items()),
            )
            for source, stored in plan.sources.items()
        ),
        refusals=tuple(_refusal_groups(survey)),
        areas=dict(sorted(survey.areas.items())),
        distances=survey.distances,
        column_bytes=dict(survey.column_bytes),
        num_shards=survey.num_shards,
        num_rounds=len(plan.rounds),
        settings=dict(plan.settings),
        pairs=tuple(pairs),
    )


def _refusal_groups(survey: PairsSurvey) -> Iterator[RefusalGroup]:
    for reason, count in survey.refused_by_reason.most_common():
        pair_id, message = survey.examples[reason]
        yield RefusalGroup(reason, count, pair_id, message)


def _to_card_pair(row: dict[str, Any]) -> CardPair:
    return CardPair(
        pair_id=row["pair_id"],
        caption=row["caption"],
        subject_class=row["subject_class"],
        area_share=row["mask_share"],
        frame_distance=row["frame_distance"],
        strip=make_strip(row["subject"], row["subject_mask"], row["target"], row["target_box"], row["size_px"]),
    )
