"""How one image is made: the knobs of the paper's sections 3.1 to 3.4."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ezigen.config.base import Config, digest_values

Mode = Literal["text_only", "full_injection", "decoupled", "iterative"]

SubjectTimestep = Annotated[int, Field(ge=0, le=999)] | Literal["adaptive"]
"""A timestep index, or adaptive: the one that the image itself is at (paper, Table 4)."""


class LoopConfig(Config):
    """When the appearance-transfer loops stop (paper 3.3).

    The first transfer is not a loop; re-noising its result starts loop 1.
    """

    stop: Literal["similarity", "fixed"] = Field(
        default="similarity",
        description="similarity: stop when an image no longer differs from the previous one; fixed: run "
        "num_loops loops.",
    )
    num_loops: int = Field(default=5, ge=0, le=100, description="Loops to run when stop is fixed; ignored otherwise.")
    min_loops: int = Field(default=3, ge=0, le=100, description="Loops that always run when stop is similarity.")
    max_loops: int = Field(
        default=10, ge=0, le=100, description="Loops after which an image is final when stop is similarity."
    )
    threshold: float = Field(
        default=0.99,
        ge=-1.0,
        le=1.0,
        description="Mean cosine between two consecutive images above which the loops stop; see measure.",
    )
    measure: Literal["image", "latent", "clip"] = Field(
        default="image",
        description="What the similarity compares. image: DINOv2 patch tokens of decoded images (the paper). latent: "
        "the latents themselves, position by position, which needs no decoding; its thresholds are other ones. clip: "
        "one CLIP vector per image (the released code).",
    )
    renoise_timestep: int = Field(
        default=0,
        ge=0,
        le=999,
        description="Timestep to whose level a loop noises the last image; 0: that of the step which it starts with.",
    )
    through_pixels: bool = Field(
        default=False,
        description="Loops start from the last image as an 8-bit picture that is encoded again, instead of its latent.",
    )
    keeps_negative_prompt: bool = Field(
        default=True, description="False: the negative prompt guides the first pass alone, and loops have none."
    )

    LATER: ClassVar[frozenset[str]] = frozenset({"renoise_timestep", "through_pixels", "keeps_negative_prompt"})

    def renoise_from(self, first_t: int) -> int:
        """The timestep to whose level a loop that starts with the step at first_t noises the last image."""
        return self.renoise_timestep or first_t

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_loops > self.max_loops:
            raise ValueError(f"loops.min_loops ({self.min_loops}) must not exceed loops.max_loops ({self.max_loops})")
        return self


class EditConfig(Config):
    """What is different where a subject is put into a source picture (paper 3.4). Steps, split and loops are those of
    the sampler.
    """

    guidance_scale: float = Field(
        default=2.0, ge=1.0, le=50.0, description="Classifier-free guidance of edits; 1 switches it off."
    )
    feather: float = Field(
        default=0.02,
        ge=0.0,
        le=0.25,
        description="Width of the soft edge around the mask, as a share of the source's shorter side; beyond it the "
        "result is the source.",
    )
    exceptional_token: int = Field(
        default=7788,
        ge=0,
        le=1_000_000,
        description="Id of the token that all of the prompt consists of during inversion; a smaller vocabulary takes "
        "its remainder.",
    )
    background_lag: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="Steps by which the source's latents outside the mask are behind the edit's, that is noisier.",
    )
    keeps_background: bool = Field(
        default=True,
        description="Outside the mask the result is the source. False leaves there what the last steps made of it.",
    )

    LATER: ClassVar[frozenset[str]] = frozenset({"background_lag", "keeps_background"})


class SamplerConfig(Config):
    """The sampler of one image; a changed value makes every item of a catalog a new item (one of `edit` every edit)."""

    mode: Mode = Field(
        default="iterative",
        description="iterative: sketch, transfer, loops (the method). decoupled: no loops. full_injection: "
        "adapters at every step. "
        "text_only: no subject at all.",
    )
    num_steps: int = Field(
        default=50, ge=1, le=1000, description="Denoising steps of one full pass from noise to image."
    )
    split_ratio: float = Field(
        default=0.4,
        ge=0.0,
        le=1.0,
        description="Share of the steps that transfer appearance; the first 1 - split_ratio draw the sketch from text.",
    )
    guidance_scale: float = Field(
        default=7.5, ge=1.0, le=50.0, description="Classifier-free guidance; 1 switches it off."
    )
    guidance_min_timestep: int = Field(
        default=0, ge=0, le=999, description="Guidance is left out at timesteps below this one; 0 never leaves it out."
    )
    guidance_max_timestep: int = Field(
        default=999, ge=0, le=999, description="Guidance is left out at timesteps above this one."
    )
    solver: Literal["ddim", "ddpm", "dpmpp_2m"] = Field(
        default="ddim",
        description="ddim: deterministic, first order. ddpm: stochastic. dpmpp_2m: second order, good with fewer "
        "steps.",
    )
    loops: LoopConfig = Field(default_factory=LoopConfig, description="When the appearance-transfer loops stop.")
    t_sub: SubjectTimestep = Field(
        default=1,
        description="Timestep index at which the subject picture is encoded, once. adaptive: at every step anew, at "
        "its timestep, which costs one more UNet evaluation per picture and step.",
    )
    subject_prompt: str = Field(
        default="a photo of a {subject_class}.",
        max_length=500,
        description="Prompt under which the subject is encoded; {subject_class} is replaced by the item's class.",
    )
    subject_tokens: Literal["all", "foreground"] = Field(
        default="all",
        description="foreground: adapters attend only to the tokens that the subject's mask touches; pictures without "
        "a mask (alpha channel, or subject_mask_uri) keep all.",
    )
    subject_noise: Literal["fixed", "item"] = Field(
        default="fixed",
        description="fixed: every subject picture is noised alike, and encoded once for all items. item: by the item's "
        "seed, each of its pictures by itself.",
    )
    subject_fit: Literal["pad", "squash"] = Field(
        default="pad",
        description="How a subject picture becomes square: padded with white, or squashed.",
    )
    subject_crop: Literal["none", "face"] = Field(
        default="none",
        description="face: subject pictures are cropped to a square around their largest face before they become "
        "square; one without a face fails its item.",
    )
    subject_slots: int = Field(
        default=0,
        ge=0,
        le=16,
        description="Pictures that adapters always attend to, blank ones where the item has fewer; 0: the item's own. "
        "Items that mix pictures keep theirs.",
    )
    negative_prompt: str = Field(default="", max_length=2000, description="Used for items that give none of their own.")
    edit: EditConfig = Field(default_factory=EditConfig, description="Items that edit a source picture.")

    LATER: ClassVar[frozenset[str]] = frozenset({"subject_noise", "subject_fit", "subject_crop", "subject_slots"})

    @model_validator(mode="after")
    def _phases_exist(self) -> Self:
        if self.mode in ("decoupled", "iterative") and self.num_transfer_steps == 0:
            raise ValueError(
                f"split_ratio {self.split_ratio} of num_steps {self.num_steps} leaves no step for appearance transfer; "
                "raise split_ratio or use mode text_only"
            )
        return self

    @model_validator(mode="after")
    def _guidance_somewhere(self) -> Self:
        if self.guidance_min_timestep > self.guidance_max_timestep:
            raise ValueError(
                f"guidance_min_timestep ({self.guidance_min_timestep}) must not exceed guidance_max_timestep "
                f"({self.guidance_max_timestep}); use guidance_scale 1 to switch guidance off"
            )
        return self

    def digest(self) -> str:
        """As every configuration's, but without `edit`: it has its own digest and concerns edits alone."""
        values = self.identity()
        del values["edit"]
        return digest_values(values)

    def guidance_of(self, *, edits: bool) -> float:
        """The guidance scale of edits, or of everything else."""
        return self.edit.guidance_scale if edits else self.guidance_scale

    def is_guided(self, t: int, *, edits: bool = False) -> bool:
        """Whether the step at timestep t, of an edit or not, evaluates both guidance branches."""
        scale = self.guidance_of(edits=edits)
        return scale != 1.0 and self.guidance_min_timestep <= t <= self.guidance_max_timestep

    @property
    def stops_by_image(self) -> bool:
        """Whether loops stop by what an image encoder sees, so that one has to be there."""
        return self.mode == "iterative" and self.loops.stop == "similarity" and self.loops.measure != "latent"

    @property
    def loops_through_pixels(self) -> bool:
        """Whether there are loops that start from pictures."""
        return self.mode == "iterative" and self.loops.through_pixels

    @property
    def is_adaptive(self) -> bool:
        """Whether subjects are encoded at every step."""
        return self.t_sub == "adaptive"

    @property
    def num_transfer_steps(self) -> int:
        """Steps of one appearance transfer: 20 of 50 at split ratio 0.4."""
        return self.num_steps - self.num_sketch_steps

    @property
    def num_sketch_steps(self) -> int:
        """Steps drawn from text alone before the subject enters: 30 of 50 at split ratio 0.4."""
        return round(self.num_steps * (1.0 - self.split_ratio))

    @property
    def num_steps_before_edit(self) -> int:
        """Steps that an edit leaves out: it begins at the split, in mode full_injection at the noisiest timestep."""
        return 0 if self.mode == "full_injection" else self.num_sketch_steps
