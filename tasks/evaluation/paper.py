"""The paper's tables: which variants they compare, what it published, and what it claims by them.

The published figures are of the real models on the real benchmarks. Where the embedded model is measured, its own small
encoders judge: then only the order of a table compares, never a number.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from ezigen.config import ConfigurationError, LoopConfig, SamplerConfig
from tasks.evaluation.benchmarks import KINDS, Kind, kind_of


@dataclass(frozen=True)
class Variant:
    """One line of a table: a sampler, an adapter if it needs one of its own, and what was published for it."""

    name: str
    """Unique within all tables: the same name is the same variant."""
    title: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the sampler that differ from the one that is evaluated."""
    published: Mapping[str, float] = field(default_factory=dict)
    encoder: str = ""
    """The subject encoder that its adapter was trained with, where that is another adapter than the evaluated one."""
    is_external: bool = False
    """Whether its images come from another method."""

    @property
    def is_own(self) -> bool:
        """Whether the evaluated adapter makes it."""
        return not self.encoder and not self.is_external

    def sampler(self, base: SamplerConfig) -> SamplerConfig:
        """The evaluated sampler with this variant's changes."""
        return SamplerConfig.model_validate({**dict(base), **self.changes})


@dataclass(frozen=True)
class Claim:
    """That one variant measures higher than another: the paper says so, or one asks."""

    measure: str
    higher: str
    lower: str
    is_published: bool = True


@dataclass(frozen=True)
class Published:
    """Another method's row, which the paper printed and nobody here makes."""

    title: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper. others: rows of other methods, printed beside ours."""

    name: str
    number: str
    title: str
    kind: Kind
    measures: tuple[str, ...]
    variants: tuple[Variant, ...]
    claims: tuple[Claim, ...] = ()
    others: tuple[Published, ...] = ()

    @property
    def last_own(self) -> Variant:
        """The last line that the evaluated adapter makes."""
        return [one for one in self.variants if one.is_own][-1]


def beside(table: PaperTable, others: Sequence[str]) -> PaperTable:
    """The table with a line for each of the other methods, and the question whether its own last line is better."""
    lines = tuple(Variant(name, name, is_external=True) for name in others)
    own = table.last_own.name
    asked = tuple(
        Claim(measure, own, name, is_published=False)
        for name in others
        for measure in table.measures
        if measure in _ASKED
    )
    return replace(table, variants=(*table.variants, *lines), claims=(*table.claims, *asked))


def makeable(table: PaperTable, encoders: Container[str]) -> PaperTable:
    """The table without the lines that need an adapter which is not there; these are printed as published alone.

    encoders: the subject encoders for which there is an adapter.
    """
    made = tuple(variant for variant in table.variants if not variant.encoder or variant.encoder in encoders)
    names = {variant.name for variant in made}
    rest = tuple(Published(variant.title, variant.published) for variant in table.variants if variant.name not in names)
    claims = tuple(claim for claim in table.claims if {claim.higher, claim.lower} <= names)
    return replace(table, variants=made, claims=claims, others=(*rest, *table.others))


def _chain(measure: str, *names: str) -> tuple[Claim, ...]:
    """Each of the names measures higher than the next."""
    return tuple(Claim(measure, high, low) for high, low in pairwise(names))


def _loops(number: int) -> LoopConfig:
    return LoopConfig(stop="fixed", num_loops=number)


def _row(clip_t: float, dino: float) -> dict[str, float]:
    return {"clip_t": clip_t, "dino": dino}


_ASKED = frozenset({"clip_t", "dino", "dino_sub", "face", "product"})
"""Measures of quality: those in which one asks who is better."""

TEXT_ONLY = Variant("text_only", "text only", {"mode": "text_only"}, _row(0.327, 0.362))
FULL_INJECTION = Variant("full_injection", "full injection", {"mode": "full_injection"}, _row(0.286, 0.762))
DECOUPLED = Variant("decoupled", "decoupled, no loop", {"mode": "decoupled"}, _row(0.321, 0.560))
ITERATIVE = Variant("iterative", "decoupled, loops until they settle", {"mode": "iterative"}, _row(0.316, 0.718))


def _fixed_loops(number: int, clip_t: float, dino: float) -> Variant:
    title = "1 loop" if number == 1 else f"{number} loops"
    return Variant(f"loops_{number}", title, {"mode": "iterative", "loops": _loops(number)}, _row(clip_t, dino))


def _encoded_at(t_sub: int | Literal["adaptive"], dino: float) -> Variant:
    title = "at each step's own timestep" if t_sub == "adaptive" else f"at timestep {t_sub}"
    return Variant(f"t_sub_{t_sub}", title, {"mode": "full_injection", "t_sub": t_sub}, {"dino": dino})


_ENCODED_AT = tuple(_encoded_at(t, dino) for t, dino in ((100, 0.725), (300, 0.661), (500, 0.598), (800, 0.427)))
_ADAPTIVE = _encoded_at("adaptive", 0.615)


def _encoded_by(encoder: str, title: str, dino: float, **changes: Any) -> Variant:
    sampler = {"mode": "full_injection", **changes}
    return Variant(f"encoder_{encoder}", title, sampler, {"dino": dino}, encoder=encoder)


_TRAINED = _encoded_by("trained", "by a trained copy of the UNet, at timestep 1", 0.668)
_TRAINED_ADAPTIVE = _encoded_by(
    "trained_adaptive", "by a trained copy of the UNet, at each step's own timestep", 0.589, t_sub="adaptive"
)

ADAPTER = PaperTable(
    name="adapter",
    number="",
    title="The adapter, decoupled and without loops",
    kind="generation",
    measures=("product", "scene", "clip_t", "clip_i", "dino", "dino_patch", "face"),
    variants=(DECOUPLED,),
)
MODES = PaperTable(
    name="modes",
    number="3",
    title="Modes of generation",
    kind="generation",
    measures=("clip_t", "dino", "product", "scene_margin"),
    variants=(TEXT_ONLY, FULL_INJECTION, DECOUPLED, ITERATIVE),
    claims=(
        *_chain("dino", "full_injection", "iterative", "decoupled", "text_only"),
        *_chain("clip_t", "text_only", "decoupled", "iterative", "full_injection"),
    ),
)
LOOPS = PaperTable(
    name="loops",
    number="7",
    title="Number of loops",
    kind="generation",
    measures=("clip_t", "dino", "product", "scene_margin", "num_loops", "tflop"),
    variants=(
        DECOUPLED,
        _fixed_loops(1, 0.317, 0.627),
        _fixed_loops(5, 0.316, 0.694),
        _fixed_loops(10, 0.308, 0.720),
        ITERATIVE,
    ),
    claims=(
        *_chain("dino", "loops_10", "loops_5", "loops_1", "decoupled"),
        *_chain("clip_t", "decoupled", "loops_1", "loops_5", "loops_10"),
        Claim("clip_t", "iterative", "loops_10"),
    ),
)
SUBJECT_TIMESTEP = PaperTable(
    name="t_sub",
    number="4",
    title="Timestep at which the subject is encoded",
    kind="generation",
    measures=("dino", "product", "clip_t", "scene_margin"),
    variants=(
        Variant("full_injection", "at timestep 1", {"mode": "full_injection"}, {"dino": 0.762}),
        *_ENCODED_AT,
        _ADAPTIVE,
        _TRAINED,
        _TRAINED_ADAPTIVE,
    ),
    claims=(
        *_chain("dino", "full_injection", "t_sub_100", "t_sub_300", "t_sub_500", "t_sub_800"),
        Claim("dino", "full_injection", "t_sub_adaptive"),
        Claim("dino", "full_injection", "encoder_trained"),
        Claim("dino", "encoder_trained", "encoder_trained_adaptive"),
    ),
)
ENCODERS = PaperTable(
    name="encoders",
    number="5",
    title="Subject encoders",
    kind="generation",
    measures=("dino", "product", "clip_t"),
    variants=(
        Variant("full_injection", "the frozen UNet", {"mode": "full_injection"}, {"dino": 0.762}),
        _encoded_by("dino", "DINO and a projector", 0.421),
        _encoded_by("clip", "CLIP and a projector", 0.433),
    ),
    claims=(Claim("dino", "full_injection", "encoder_dino"), Claim("dino", "full_injection", "encoder_clip")),
)
DREAMBENCH = PaperTable(
    name="dreambench",
    number="1 and 8",
    title="Subject-driven generation",
    kind="generation",
    measures=("clip_t", "clip_i", "dino", "dino_patch", "product", "scene", "num_loops", "tflop", "seconds"),
    variants=(ITERATIVE,),
    others=tuple(
        Published(title, _row(clip_t, dino))
        for title, clip_t, dino in (
            ("Textual Inversion", 0.261, 0.561),
            ("DreamBooth", 0.306, 0.672),
            ("ELITE", 0.296, 0.647),
            ("BLIP-Diffusion", 0.298, 0.589),
            ("IP-Adapter", 0.274, 0.608),
            ("SSR-Encoder", 0.308, 0.612),
            ("BootPIG", 0.311, 0.674),
            ("Subject-Diffusion", 0.293, 0.711),
            ("EZIGen on Stable Diffusion XL", 0.323, 0.722),
        )
    ),
)
EDITING = PaperTable(
    name="editing",
    number="2",
    title="Subject-driven editing",
    kind="editing",
    measures=("dino_sub", "psnr", "ssim", "perceptual"),
    variants=(
        Variant("edit_once", "no loop", {"mode": "decoupled"}),
        Variant("edit", "loops until they settle", {"mode": "iterative"}, {"dino_sub": 0.650}),
    ),
    claims=(Claim("dino_sub", "edit", "edit_once"),),
)
PEOPLE = PaperTable(
    name="people",
    number="6",
    title="Human content",
    kind="people",
    measures=("face", "clip_t"),
    variants=(Variant("people", "EZIGen", {"mode": "iterative"}, {"face": 0.598, "clip_t": 0.237}),),
)

_ALL = (DREAMBENCH, EDITING, MODES, SUBJECT_TIMESTEP, ENCODERS, PEOPLE, LOOPS)

TABLES = {table.name: table for table in (ADAPTER, *_ALL)}
"""By name, in the paper's order; the first one is not the paper's."""


def choose_tables(names: Sequence[str], benchmark: str, encoders: Container[str]) -> tuple[PaperTable, ...]:
    """The tables of these names, each once; "all" stands for those of the paper that a kind of benchmark allows.

    encoders: see `makeable`. Raises ConfigurationError for a table that compares nothing without their adapters.
    """
    chosen: dict[str, PaperTable] = {}
    for name in names:
        if name != "all":
            if not _compares(TABLES[name], encoders):
                needed = ", ".join(variant.encoder for variant in TABLES[name].variants if variant.encoder)
                raise ConfigurationError(
                    f"table {name} compares adapters that were trained with other subject encoders; give one of "
                    f"{needed}, as in `--encoder dino=ADAPTER`"
                )
            chosen[name] = TABLES[name]
            continue
        kinds = set(KINDS) if benchmark == "mini" else {kind_of(benchmark)}
        chosen |= {table.name: table for table in _ALL if table.kind in kinds and _compares(table, encoders)}
    return tuple(chosen.values())


def _compares(table: PaperTable, encoders: Container[str]) -> bool:
    """Whether something is left to compare of a table that compares subject encoders."""
    needed = [variant.encoder for variant in table.variants if variant.encoder]
    return not needed or len(needed) < len(table.variants) - 1 or any(encoder in encoders for encoder in needed)
