"""The options of `ezigen study create`."""

from dataclasses import dataclass
from typing import Annotated

from typer import Argument, Option


@dataclass(frozen=True)
class StudyOptions:
    """What stands on the command line."""

    output: Annotated[str, Argument(metavar="OUTPUT.html", help="The page; its key is written beside it.")]
    sets: Annotated[
        list[str],
        Option(
            "--set",
            metavar="NAME=LOCATION",
            help="A method and its images: the output of a run, or a folder of images. Two or more of them.",
        ),
    ]
    cases: Annotated[int, Option(min=0, help="How many cases, drawn at random; 0 takes all that every set has.")] = 0
    seed: Annotated[int, Option(help="Of the draw of cases.")] = 0
    questions: Annotated[
        list[str] | None,
        Option(
            "--question",
            "--questions",
            metavar="NAME",
            help="flexibility, identity, quality (all three unless given), or NAME=TEXT for one of your own.",
        ),
    ] = None
    catalog: Annotated[
        str, Option(help="Catalog that tells prompts and subjects by item_id; needed for folders of images.")
    ] = ""
    subjects: Annotated[
        str, Option(metavar="FOLDER", help="Instead of a catalog: a folder with <case>.png and <case>.txt, the prompt.")
    ] = ""
    side: Annotated[
        int, Option(min=0, max=1024, help="Longest side of an image in the page; 0 chooses by their number.")
    ] = 0
    storage_block: Annotated[str, Option(help="Prefect block ezigen-s3/NAME with endpoint and keys.")] = ""
