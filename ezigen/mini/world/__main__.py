"""Write the miniature world in the format of a real data set: `python -m ezigen.mini.world coco OUT --images 100`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ezigen.mini.world.benchmarks import write_dreambench, write_dreamedit
from ezigen.mini.world.catalog import write_catalog
from ezigen.mini.world.coco import write_coco
from ezigen.mini.world.compose import Composer
from ezigen.mini.world.products import PICTURES, make_variants, select_products
from ezigen.mini.world.youtube_vis import write_instances, write_palette

Writer = Callable[[Composer, argparse.Namespace], None]
FORMATS: dict[str, tuple[str, Writer]] = {
    "coco": ("COCO 2014: instances and captions", lambda c, a: write_coco(c, a.out, a.images, a.seed)),
    "youtube-vis": ("YouTube-VIS, instances.json", lambda c, a: write_instances(c, a.out, a.videos, a.frames, a.seed)),
    "youtube-vos": (
        "YouTube-VIS, meta.json and palette masks",
        lambda c, a: write_palette(c, a.out, a.videos, a.frames, a.seed),
    ),
    "dreambench": ("DreamBench: subjects x prompts", lambda c, a: write_dreambench(c, a.out, a.subjects, a.seed)),
    "dreamedit": (
        "DreamEditBench: subjects x sources",
        lambda c, a: write_dreamedit(c, a.out, a.subjects, a.images, a.seed),
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ezigen.mini.world", description=__doc__)
    formats = parser.add_subparsers(dest="format", required=True)
    formats.add_parser("catalog", help="the sample catalog").add_argument("out", type=Path)
    for name, (text, _) in FORMATS.items():
        command = formats.add_parser(name, help=text)
        command.add_argument("out", type=Path, help="folder to write into")
        command.add_argument(
            "--pictures", type=Path, default=PICTURES, help="folder of cut-outs (default: the committed ones)"
        )
        command.add_argument(
            "--held-out", action="store_true", help="products held out of all training instead of trained ones"
        )
        command.add_argument("--side", type=int, default=256, help="side of a picture in px")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument(
            "--images",
            "--num-images",
            type=int,
            default=10,
            help="training pictures (coco), source pictures per subject (dreamedit)",
        )
        command.add_argument("--videos", "--num-videos", type=int, default=4)
        command.add_argument("--frames", "--num-frames", type=int, default=12, help="frames per video")
        command.add_argument("--subjects", "--num-subjects", type=int, default=8)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Write what the command line asks for."""
    args = build_parser().parse_args(arguments)
    if args.format == "catalog":
        write_catalog(args.out)
        return
    products = select_products(held_out=args.held_out, folder=args.pictures)
    composer = Composer(make_variants(products, args.pictures, args.side), args.side, num_backgrounds=8, seed=args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    FORMATS[args.format][1](composer, args)


if __name__ == "__main__":
    main()
