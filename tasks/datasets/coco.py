"""COCO 2014: pictures with the outlines of their objects and captions, read as units."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, TypeVar

import msgspec

from ezigen.config import CocoSelection
from ezigen.pairs import Refusal, RefusalReason, check_object, rank_objects
from tasks.datasets.defects import Defect, ReadingLog
from tasks.datasets.folder import WRONG_ENTRY, DatasetFolder
from tasks.datasets.units import CocoObject, CocoPicture, Unit
from tasks.storage.locations import Locations

logger = logging.getLogger(__name__)

Split = Literal["train", "val"]
SPLITS: Mapping[str, tuple[Split, ...]] = {"train": ("train",), "val": ("val",), "both": ("train", "val")}

T = TypeVar("T")
Id = int | str
Counts = Counter[RefusalReason]


class CocoReader:
    """COCO 2014 in a folder: `train2014/` and `val2014/` beside `annotations/`. Picklable; opens nothing by itself.

    Of each split it needs `annotations/instances_<split>2014.json` and `annotations/captions_<split>2014.json`.
    """

    def __init__(
        self, root_uri: str, split: Literal["train", "val", "both"] = "train", locations: Locations | None = None
    ) -> None:
        self._folder = DatasetFolder(root_uri, "coco_uri", locations)
        self._splits = SPLITS[split]

    @property
    def locations(self) -> Locations:
        """What pairs of this data set may open: its own folders. Use its `read_bytes` in `build_unit`."""
        return self._folder.locations([f"{split}2014" for split in self._splits])

    def fingerprint(self) -> str:
        """Changes when an annotation file does. Raises ConfigurationError if one is absent."""
        self._check()
        return "; ".join(self._folder.signature(name) for split in self._splits for name in _files(split))

    def read(
        self,
        selection: CocoSelection,
        refused: Counts | None = None,
        on_defect: Callable[[Defect], None] | None = None,
    ) -> Iterator[Unit]:
        """The pictures that have subjects, in the files' order; what is left out is counted in `refused`.

        `on_defect` gets what is wrong with the data set, entry by entry. Holds one split's annotation file in memory
        and, of its objects, those that may be subjects. Raises ConfigurationError if a file is absent or damaged.
        """
        self._check()
        for split in self._splits:
            yield from _SplitReader(self._folder, split, selection, ReadingLog("coco", refused, on_defect)).read()

    def _check(self) -> None:
        wanted = [name for split in self._splits for name in (*_files(split), f"{split}2014")]
        absent = [name for name in wanted if not self._folder.has(name)]
        if absent:
            raise self._folder.refusal(
                f"this is not the folder of COCO 2014: {', '.join(absent)} is missing ({self._folder.describe()}). "
                "Point to the folder that holds annotations/ and the pictures, or choose another coco_split."
            )


class _Image(msgspec.Struct, gc=False):
    id: Id
    file_name: str
    width: int = 0
    height: int = 0


class _Object(msgspec.Struct, gc=False):
    id: Id
    image_id: Id
    category_id: Id
    area: float
    # Most of the file, and most of it is never needed: kept as a reference to its bytes.
    segmentation: msgspec.Raw = msgspec.Raw(b"null")
    iscrowd: int | bool = 0


class _Category(msgspec.Struct):
    id: Id
    name: str


class _Instances(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Object]
    categories: list[_Category]


class _LenientInstances(msgspec.Struct):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[_Category]


class _Caption(msgspec.Struct, gc=False):
    image_id: Id
    caption: str


class _Captions(msgspec.Struct):
    annotations: list[_Caption]


class _SplitReader:
    """One reading of one split."""

    def __init__(self, folder: DatasetFolder, split: Split, selection: CocoSelection, log: ReadingLog) -> None:
        self._folder = folder
        self._split = split
        self._selection = selection
        self._log = log
        self._classes: dict[Id, str] = {}

    def read(self) -> Iterator[Unit]:
        captions = self._read_captions()
        instances = self._read_instances()
        self._classes = {category.id: " ".join(category.name.split()) for category in instances.categories}
        objects = self._group(instances.annotations)
        instances.annotations.clear()
        for image in instances.images:
            # A second picture of the same id finds nothing: its pairs would have the ids of the first one's.
            found = objects.pop(image.id, None)
            unit = None if found is None else self._unit(image, found, captions.get(image.id, ""))
            if unit is not None:
                yield unit
        for image_id, left in objects.items():
            self._refuse(left, image_id, RefusalReason.PICTURE_MISSING, f"the picture {image_id} is not listed")

    def _read_captions(self) -> dict[Id, str]:
        """The longest caption by picture, the first of equally long ones."""
        name = _files(self._split)[1]
        try:
            parsed = self._folder.parse(name, self._folder.load(name), _Captions)
        except msgspec.ValidationError as error:
            raise self._folder.invalid(name, error) from error
        longest: dict[Id, str] = {}
        for entry in parsed.annotations:
            text = " ".join(entry.caption.split())
            if len(text) > len(longest.get(entry.image_id, "")):
                longest[entry.image_id] = text
        return longest

    def _read_instances(self) -> _Instances:
        name = _files(self._split)[0]
        data = self._folder.load(name)
        try:
            return self._folder.parse(name, data, _Instances)
        except msgspec.ValidationError as error:
            logger.warning("%s: %s; reading its entries one by one", name, error)
        try:
            lenient = self._folder.parse(name, data, _LenientInstances)
        except msgspec.ValidationError as error:
            raise self._folder.invalid(name, error) from error
        return _Instances(
            list(self._each("images", lenient.images, msgspec.json.Decoder(_Image))),
            list(self._each("annotations", lenient.annotations, msgspec.json.Decoder(_Object))),
            lenient.categories,
        )

    def _each(self, name: str, entries: list[msgspec.Raw], decoder: msgspec.json.Decoder[T]) -> Iterator[T]:
        for number, entry in enumerate(entries):
            try:
                yield decoder.decode(entry)
            except WRONG_ENTRY as error:
                self._log.refuse(f"{self._split}/{name}[{number}]", RefusalReason.ANNOTATION_INVALID, str(error))

    def _group(self, objects: Iterable[_Object]) -> dict[Id, list[_Object]]:
        """Those that may be subjects, by picture."""
        groups: dict[Id, list[_Object]] = {}
        for entry in objects:
            reason = check_object(entry.area, bool(entry.iscrowd), self._selection)
            if reason is not None:
                self._log.leave_out(reason)
            elif entry.category_id not in self._classes:
                message = f"the category {entry.category_id} is not listed"
                self._refuse([entry], entry.image_id, RefusalReason.CLASS_UNKNOWN, message)
            else:
                groups.setdefault(entry.image_id, []).append(entry)
        return groups

    def _unit(self, image: _Image, found: list[_Object], caption: str) -> Unit | None:
        distinct = list({entry.id: entry for entry in reversed(found)}.values())[::-1]
        first = {id(entry) for entry in distinct}
        again = [entry for entry in found if id(entry) not in first]
        self._refuse(again, image.id, RefusalReason.DUPLICATE_ID, "an earlier annotation of the picture has this id")
        kept = [distinct[i] for i in rank_objects([e.area for e in distinct], [False] * len(distinct), self._selection)]
        self._log.leave_out(RefusalReason.NOT_RANKED, len(distinct) - len(kept))
        if not caption:
            self._refuse(kept, image.id, RefusalReason.NO_CAPTION, f"the picture {image.id} has no caption")
            return None
        try:
            uri = self._folder.uri_of(f"{self._split}2014", image.file_name)
        except Refusal as refusal:
            self._refuse(kept, image.id, refusal.reason, refusal.message)
            return None
        image_id = f"{self._split}/{image.id}"
        subjects = [CocoObject(str(e.id), self._classes[e.category_id], e.area, e.segmentation) for e in kept]
        picture = CocoPicture(uri, image_id, image.width, image.height, caption, subjects)
        return Unit("coco", f"coco/{image_id}", len(subjects), None, msgspec.json.encode(picture))

    def _refuse(self, entries: Iterable[_Object], image_id: Id, reason: RefusalReason, message: str) -> None:
        group_id = f"{self._split}/{image_id}"
        for entry in entries:
            name = self._classes.get(entry.category_id)
            self._log.refuse(f"{group_id}/{entry.id}", reason, message, group_id=group_id, subject_class=name)


def _files(split: Split) -> tuple[str, str]:
    return f"annotations/instances_{split}2014.json", f"annotations/captions_{split}2014.json"
