"""YouTube-VIS in both of its layouts: videos with the masks of their objects, read as units."""

import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec

from ezigen.config import VideoSelection
from ezigen.pairs import Refusal, RefusalReason, count_frame_pairs
from tasks.datasets.defects import Defect, ReadingLog
from tasks.datasets.folder import WRONG_ENTRY, DatasetFolder, check_name
from tasks.datasets.units import Unit, VideoFrame, VideoObject
from tasks.storage.locations import Locations

FRAMES, MASKS = "JPEGImages", "Annotations"
INSTANCE_FILES = ("instances.json", "train.json")
META_FILE = "meta.json"

T = TypeVar("T")
Id = int | str
Side = Annotated[int, msgspec.Meta(ge=0)]
Counts = Counter[RefusalReason]


class YoutubeVisReader:
    """YouTube-VIS in a folder. Picklable; opens nothing by itself.

    The layout is detected by what is there: `instances.json` (or `train.json`) beside `JPEGImages/`, or else
    `meta.json` beside `JPEGImages/` and `Annotations/`. Where both are, `instances.json` wins.
    """

    def __init__(self, root_uri: str, locations: Locations | None = None) -> None:
        self._folder = DatasetFolder(root_uri, "youtube_vis_uri", locations)

    @property
    def locations(self) -> Locations:
        """What pairs of this data set may open: its own folders. Use its `read_bytes` in `build_unit`."""
        return self._folder.locations((FRAMES, MASKS))

    def find_layout(self) -> str:
        """The annotation file that is read. Raises ConfigurationError if the folder has neither layout."""
        if self._folder.has(FRAMES):
            for name in INSTANCE_FILES:
                if self._folder.has(name):
                    return name
            if self._folder.has(META_FILE) and self._folder.has(MASKS):
                return META_FILE
        raise self._folder.refusal(
            f"this is no layout of YouTube-VIS: it takes {' or '.join(INSTANCE_FILES)} beside {FRAMES}/, or "
            f"{META_FILE} beside {FRAMES}/ and {MASKS}/ ({self._folder.describe()})."
        )

    def fingerprint(self) -> str:
        """Changes when the annotation file does. Raises ConfigurationError if there is none."""
        return self._folder.signature(self.find_layout())

    def read(
        self,
        selection: VideoSelection,
        refused: Counts | None = None,
        on_defect: Callable[[Defect], None] | None = None,
    ) -> Iterator[Unit]:
        """The objects that are in at least two frames, in the file's order; others are counted in `refused`.

        `on_defect` gets what is wrong with the data set, entry by entry. Raises ConfigurationError if the file is
        absent or damaged.
        """
        name = self.find_layout()
        log = ReadingLog("youtube_vis", refused, on_defect)
        layout = _palettes if name == META_FILE else _instances
        for group_id, found in layout(self._folder, name, log):
            num_candidates = count_frame_pairs(len(found.frames), selection)
            if num_candidates:
                yield Unit("youtube_vis", group_id, num_candidates, found.subject_class, msgspec.json.encode(found))
            else:
                log.leave_out(RefusalReason.TOO_FEW_FRAMES)


Found = tuple[str, VideoObject]
"""An object's group_id, and the object with the frames that show it."""


class _Video(msgspec.Struct):
    id: Id
    file_names: list[str]
    width: Side = 0
    height: Side = 0


class _Track(msgspec.Struct):
    """One object of a video: a segmentation or null per frame."""

    id: Id
    video_id: Id
    category_id: Id
    segmentations: list[msgspec.Raw]
    iscrowd: int | bool = 0


class _Category(msgspec.Struct):
    id: Id
    name: str


class _Instances(msgspec.Struct):
    """Layout (a); entries are read one by one, so that a wrong one costs only itself."""

    videos: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[_Category]


class _MetaVideo(msgspec.Struct):
    objects: dict[str, msgspec.Raw]


class _MetaObject(msgspec.Struct):
    category: str = ""
    frames: list[str] = []


class _Meta(msgspec.Struct):
    """Layout (b)."""

    videos: dict[str, msgspec.Raw]


@dataclass(frozen=True)
class _Frames:
    """The frames of one video of layout (a)."""

    video: str
    names: Sequence[str]
    uris: Sequence[str]
    width: int
    height: int


def _instances(folder: DatasetFolder, file_name: str, log: ReadingLog) -> Iterator[Found]:
    parsed = _parse(folder, file_name, _Instances)
    classes = {category.id: _readable(category.name) for category in parsed.categories}
    videos = _videos(folder, parsed.videos, log)
    decoder, seen = msgspec.json.Decoder(_Track), set[Id]()
    for number, entry in enumerate(parsed.annotations):
        entry_id = f"annotations[{number}]"
        try:
            track = _decode(decoder, entry)
            entry_id = f"{_video_name(videos, track.video_id)}/{track.id}"
            if track.iscrowd:
                log.leave_out(RefusalReason.CROWD)
                continue
            found = _instance(track, videos, classes)
        except Refusal as refusal:
            log.refuse(entry_id, refusal.reason, refusal.message)
            continue
        if track.id in seen:
            message = "an earlier annotation has this id"
            log.refuse(entry_id, RefusalReason.DUPLICATE_ID, message, subject_class=found[1].subject_class)
        else:
            seen.add(track.id)
            yield found


def _videos(folder: DatasetFolder, entries: list[msgspec.Raw], log: ReadingLog) -> dict[Id, _Frames | Refusal]:
    """The videos by id; for one whose frames cannot be used, why."""
    videos: dict[Id, _Frames | Refusal] = {}
    decoder = msgspec.json.Decoder(_Video)
    for number, entry in enumerate(entries):
        try:
            video = _decode(decoder, entry)
        except Refusal as refusal:
            log.refuse(f"videos[{number}]", refusal.reason, refusal.message)
            continue
        if video.id in videos:
            message = f"an earlier video has the id {video.id}"
            log.refuse(f"videos[{number}]", RefusalReason.DUPLICATE_ID, message)
            continue
        try:
            videos[video.id] = _frames(folder, video)
        except Refusal as refusal:
            videos[video.id] = refusal
    return videos


def _frames(folder: DatasetFolder, video: _Video) -> _Frames:
    uris = [folder.uri_of(FRAMES, name) for name in video.file_names]
    names = [posixpath.splitext(posixpath.basename(name))[0] for name in video.file_names]
    if len(set(names)) < len(names):
        names = [f"{index:05d}" for index in range(len(names))]
    parents = {posixpath.dirname(name) for name in video.file_names}
    # People look for a video by its folder; frames that lie about leave only the number.
    name = parents.pop() if len(parents) == 1 else ""
    return _Frames(name or str(video.id), names, uris, video.width, video.height)


def _instance(track: _Track, videos: dict[Id, _Frames | Refusal], classes: dict[Id, str]) -> Found:
    video = videos.get(track.video_id)
    if video is None:
        raise Refusal(RefusalReason.PICTURE_MISSING, f"the video {track.video_id} is not listed")
    if isinstance(video, Refusal):
        raise video
    if track.category_id not in classes:
        raise Refusal(RefusalReason.CLASS_UNKNOWN, f"the category {track.category_id} is not listed")
    if len(track.segmentations) != len(video.uris):
        message = f"{len(track.segmentations)} segmentations for {len(video.uris)} frames"
        raise Refusal(RefusalReason.MASK_MISMATCH, message)
    frames = [
        VideoFrame(name, uri, segmentation)
        for name, uri, segmentation in zip(video.names, video.uris, track.segmentations, strict=True)
        if bytes(segmentation) != b"null"
    ]
    found = VideoObject(video.video, classes[track.category_id], video.width, video.height, frames)
    return f"youtube_vis/{video.video}/{track.id}", found


def _video_name(videos: Mapping[Id, _Frames | Refusal], video_id: Id) -> str:
    """As ids of pairs have it, where it is known."""
    video = videos.get(video_id)
    return video.video if isinstance(video, _Frames) else str(video_id)


def _palettes(folder: DatasetFolder, file_name: str, log: ReadingLog) -> Iterator[Found]:
    parsed = _parse(folder, file_name, _Meta)
    videos, objects = msgspec.json.Decoder(_MetaVideo), msgspec.json.Decoder(_MetaObject)
    for video, raw_video in parsed.videos.items():
        try:
            check_name(video)
            entries = _decode(videos, raw_video).objects
        except Refusal as refusal:
            log.refuse(video, refusal.reason, refusal.message)
            continue
        for value, entry in entries.items():
            try:
                yield f"youtube_vis/{video}/{value}", _palette(folder, video, value, _decode(objects, entry))
            except Refusal as refusal:
                log.refuse(f"{video}/{value}", refusal.reason, refusal.message)


def _palette(folder: DatasetFolder, video: str, value: str, entry: _MetaObject) -> VideoObject:
    if not (value.isascii() and value.isdigit() and 1 <= int(value) <= 255):
        raise Refusal(RefusalReason.ANNOTATION_INVALID, f"the object {value!r} is no value of a palette, 1 to 255")
    if not entry.category.strip():
        raise Refusal(RefusalReason.CLASS_UNKNOWN, f"the object {value} has no category")
    frames = [
        VideoFrame(
            name,
            folder.uri_of(f"{FRAMES}/{video}", f"{name}.jpg"),
            mask_uri=folder.uri_of(f"{MASKS}/{video}", f"{name}.png"),
        )
        for name in dict.fromkeys(entry.frames)
    ]
    return VideoObject(video, _readable(entry.category), 0, 0, frames, int(value))


def _parse(folder: DatasetFolder, file_name: str, form: type[T]) -> T:
    try:
        return folder.parse(file_name, folder.load(file_name), form)
    except msgspec.ValidationError as error:
        raise folder.invalid(file_name, error) from error


def _decode(decoder: msgspec.json.Decoder[T], entry: msgspec.Raw) -> T:
    try:
        return decoder.decode(entry)
    except WRONG_ENTRY as error:
        raise Refusal(RefusalReason.ANNOTATION_INVALID, str(error)) from error


def _readable(name: str) -> str:
    """A category as a caption takes it; the data set writes giant_panda."""
    return " ".join(name.replace("_", " ").split())
