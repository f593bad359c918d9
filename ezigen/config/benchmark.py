"""Which benchmark is evaluated, and how much of it."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ezigen.config.base import Config

BenchmarkKind = Literal[
    "dreambench", "dreamedit", "people", "own", "mini", "mini-dreambench", "mini-dreamedit", "mini-people"
]

PUBLISHED_RUNS = {"dreambench": 6, "people": 4}
"""Images of a subject and a prompt: six in EZIGen's Section 4, four in the released evaluation of FastComposer."""


class BenchmarkConfig(Config):
    """A benchmark: subjects, what is asked of them, and how often."""

    kind: BenchmarkKind = Field(
        description="DreamBench, DreamEditBench, people, own subjects and prompts, one of the first three made of the "
        "embedded model's world, or mini: for each table the one of these that it is of."
    )
    folder_uri: str = Field(
        default="",
        description="Folder or s3:// prefix that holds the benchmark. A mini-* one is written there, in a folder of "
        "its own, unless it is there already; empty: beside what is made of it.",
    )
    prompts_uri: str = Field(
        default="",
        description="Of people and own: text file with a prompt per line, the subject as {subject_class}. Empty: "
        "prompts.txt in the folder.",
    )
    num_runs: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="Images of each subject and prompt, each with its own seed; scores are averaged over them. 0: as "
        "published, 6 of dreambench and 4 of people, 1 of the others.",
    )
    num_subjects: int = Field(
        default=0, ge=0, description="The first so many subjects alone, which the benchmark then says; 0: all."
    )
    num_prompts: int = Field(
        default=0,
        ge=0,
        description="The first so many prompts of each subject (of an editing benchmark: sources) alone; 0: all.",
    )
    subject_pictures: Literal["first", "all"] = Field(
        default="first",
        description="Which pictures of a subject are given: the first by name, or all, up to the four that an image "
        "takes.",
    )

    @property
    def runs(self) -> int:
        """Images of each subject and prompt."""
        return self.num_runs or PUBLISHED_RUNS.get(self.kind, 1)

    @property
    def is_miniature(self) -> bool:
        """Whether it is made of the embedded model's world, of which no other model knows anything."""
        return self.kind.startswith("mini")

    @model_validator(mode="after")
    def _lies_somewhere(self) -> Self:
        if not self.folder_uri and not self.is_miniature:
            raise ValueError(f"folder_uri is empty; give the folder that holds {self.kind}")
        return self

    @model_validator(mode="after")
    def _has_its_own_prompts(self) -> Self:
        if self.prompts_uri and self.kind not in ("people", "own"):
            raise ValueError(f"prompts_uri is of kind people and own; {self.kind} brings its own prompts")
        return self
