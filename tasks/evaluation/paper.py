"""The paper's tables: which variants they compare, what it published, and what it claims by them.

The published figures are of the real models on the real benchmarks. Where the embedded model is measured, its own small
encoders judge: then only the order of a table compares, never a number.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from ezigen.config import LoopConfig, SamplerConfig

Kind = Literal["generation", "editing", "people"]


@dataclass(frozen=True)
class Variant:
    """One row of a table: a sampler, an adapter if it needs one of its own, and what was published for it."""

    name: str
    """Unique within all tables: the same name is the same variant."""
    title: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the sampler that differ from the one that is evaluated."""
    published: Mapping[str, float] = field(default_factory=dict)
    adapter: str = ""
    """Which adapter it takes, by what training made of it: another one than the evaluated; empty: that one."""
    is_external: bool = False
    """Whether its images come from another method."""

    @property
    def is_shown(self) -> bool:
        """Whether there are images of it: no adapter of its own is made."""
        return not self.adapter

    @property
    def is_own(self) -> bool:
        """Whether the evaluated adapter makes it."""
        return not self.adapter and not self.is_external

    def sampler(self, base: SamplerConfig) -> SamplerConfig:
        """The evaluated sampler with this variant's changes."""
        return SamplerConfig.model_validate({**dict(base), **self.changes})


@dataclass(frozen=True)
class Claim:
    """The paper's claim that one variant measures higher than another."""

    measure: str
    higher: str
    lower: str


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


def _chain(measure: str, *names: str) -> tuple[Claim, ...]:
    """Each of the names measures higher than the next."""
    return tuple(Claim(measure, high, low) for high, low in pairwise(names))


def _loops(number: int) -> LoopConfig:
    return LoopConfig(stop="fixed", num_loops=number)


def _row(clip_t: float, dino: float) -> dict[str, float]:
    return {"clip_t": clip_t, "dino": dino}


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
    measures=("clip_t", "dino", "product", "scene_margin"),
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
    ),
    claims=(
        *_chain("dino", "full_injection", "t_sub_100", "t_sub_300", "t_sub_500", "t_sub_800"),
        Claim("dino", "full_injection", "t_sub_adaptive"),
    ),
    others=(
        Published("trained copy of the UNet, timestep 1", {"dino": 0.668}),
        Published("trained copy of the UNet, each step's own", {"dino": 0.589}),
    ),
)
ENCODERS = PaperTable(
    name="encoders",
    number="5",
    title="Subject encoders",
    kind="generation",
    measures=("dino",),
    variants=(
        Variant("full_injection", "the frozen UNet", {"mode": "full_injection"}, {"dino": 0.762}),
        Variant("encoder_dino", "DINO and a projector", {"mode": "full_injection"}, {"dino": 0.421}, adapter="dino"),
        Variant("encoder_clip", "CLIP and a projector", {"mode": "full_injection"}, {"dino": 0.433}, adapter="clip"),
    ),
    claims=(Claim("dino", "full_injection", "encoder_dino"), Claim("dino", "full_injection", "encoder_clip")),
)
DREAMBENCH = PaperTable(
    name="dreambench",
    number="1 and 8",
    title="Subject-driven generation",
    kind="generation",
    measures=("clip_t", "clip_i", "dino", "dino_patch", "product", "scene", "num_loops", "seconds"),
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

TABLES = {
    table.name: table for table in (ADAPTER, DREAMBENCH, EDITING, MODES, SUBJECT_TIMESTEP, ENCODERS, PEOPLE, LOOPS)
}
"""By name, in the paper's order; the first one is not the paper's."""
