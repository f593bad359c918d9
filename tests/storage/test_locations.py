import os
import pickle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ezigen.config import CatalogInputs, ConfigurationError, ErrorCode, ItemError
from tasks.storage import Location, Locations, locate

DENIED, UNKNOWN = ErrorCode.LOCATION_DENIED, ErrorCode.LOCATION_UNKNOWN_SCHEME


@pytest.fixture
def tree(tmp_path):
    """in/ may be read; out/ and the neighbour in-other/ may not."""
    for name in ("in/sub", "out", "in-other"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.png").write_bytes(b"data")
    (tmp_path / "in/x.png").write_bytes(b"data")
    return tmp_path


@pytest.fixture
def locations(tree):
    return Locations(allowed_roots=(str(tree / "in"), "s3://bucket/in"), base_uri=str(tree / "in"))


def code_of(action):
    with pytest.raises(ItemError) as raised:
        action()
    return raised.value.code


@pytest.mark.parametrize(
    "uri", ["x.png", "./x.png", "sub/../x.png", "{tree}/in/x.png", "{tree}//in///x.png",
            "file://{tree}/in/x.png", "file:{tree}/in/x.png", "file://localhost{tree}/in/x.png", "FILE://{tree}/in/x.png",
            "file://{tree}/in/%78.png"],
)  # fmt: skip
def test_forms_of_one_file(locations, tree, uri):
    assert locations.check(uri.format(tree=tree)).path == str(tree / "in/x.png")
    assert locations.read_bytes(uri.format(tree=tree)) == b"data"


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("../out/x.png", DENIED),
        ("sub/../../out/x.png", DENIED),
        ("{tree}/out/x.png", DENIED),
        ("{tree}/in/../out/x.png", DENIED),
        ("{tree}/in-other/x.png", DENIED),
        ("{tree}", DENIED),
        ("/etc/passwd", DENIED),
        ("~/x.png", DENIED),
        ("file://{tree}/in/../out/x.png", DENIED),
        ("file://{tree}/in/%2e%2e/out/x.png", DENIED),
        ("file://{tree}/in/..%2fout/x.png", DENIED),
        ("file://{tree}/in/x.png%00.jpg", DENIED),
        ("file://{tree}/in/%ff.png", DENIED),
        ("file://host/x.png", DENIED),
        ("file:///etc/passwd", DENIED),
        ("x.png\x00.jpg", DENIED),
        ("x\n.png", DENIED),
        ("", DENIED),
        (" ", DENIED),
        ("s3://bucket/out/x.png", DENIED),
        ("s3://bucket/in-other/x.png", DENIED),
        ("s3://bucket/in/../out/x.png", DENIED),
        ("s3://bucket/in/./x.png", DENIED),
        ("s3://other/in/x.png", DENIED),
        ("s3://user:secret@bucket/in/x.png", DENIED),
        ("s3:///in/x.png", DENIED),
        ("s3:/bucket/in/x.png", DENIED),
        ("s3://", DENIED),
        ("ftp://host/x.png", UNKNOWN),
        ("http://169.254.169.254/latest/meta-data", UNKNOWN),
        ("https://host/x.png", UNKNOWN),
        ("local://{tree}/in/x.png", UNKNOWN),
        ("s3a://bucket/in/x.png", UNKNOWN),
        ("javascript://x", UNKNOWN),
        ("reference://x", UNKNOWN),
    ],
)
def test_what_may_not_be_opened(locations, tree, uri, code):
    assert code_of(lambda: locations.check(uri.format(tree=tree))) is code
    assert code_of(lambda: locations.read_bytes(uri.format(tree=tree))) is code


@pytest.mark.parametrize(
    "uri", ["simplecache::s3://bucket/in/x", "zip://x::{tree}/in/x.png", "in%2f..%2f..%2fx", "a:b.png"]
)
def test_chains_and_encoded_plain_paths_are_only_odd_names(locations, tree, uri):
    """Nothing is unchained or decoded, so nothing outside is reached."""
    with pytest.raises(ItemError) as raised:
        locations.read_bytes(uri.format(tree=tree))
    assert raised.value.code in (ErrorCode.IMAGE_MISSING, UNKNOWN)


def test_links_are_followed_only_inside(locations, tree):
    (tree / "in/inside.png").symlink_to(tree / "in/x.png")
    (tree / "in/outside.png").symlink_to(tree / "out/x.png")
    (tree / "in/folder").symlink_to(tree / "out")
    (tree / "in/loop.png").symlink_to(tree / "in/loop.png")
    assert locations.read_bytes("inside.png") == b"data"
    assert code_of(lambda: locations.read_bytes("outside.png")) is DENIED
    assert code_of(lambda: locations.read_bytes("folder/x.png")) is DENIED
    assert code_of(lambda: locations.read_bytes("loop.png")) is ErrorCode.IMAGE_MISSING


@pytest.mark.parametrize("swapped", ["sub", "sub/x.png"])
def test_a_link_that_is_put_in_after_the_check_is_not_followed(locations, tree, monkeypatch, swapped):
    (tree / "out/x.png").write_bytes(b"secret")
    filesystem = locations.filesystem(locate(str(tree)))
    look = filesystem.info

    def swap(path):
        found = look(path)
        (tree / "in" / swapped).rename(tree / "in/moved")
        (tree / "in" / swapped).symlink_to(tree / "out" / swapped.removeprefix("sub").lstrip("/"))
        return found

    monkeypatch.setattr(filesystem, "info", swap)
    assert code_of(lambda: locations.read_bytes("sub/x.png")) is ErrorCode.IMAGE_MISSING
    assert (tree / "in/sub/x.png").read_bytes() == b"secret"


@pytest.mark.timeout(30)
def test_a_pipe_that_is_put_in_after_the_check_is_not_waited_for(locations, tree, monkeypatch):
    filesystem = locations.filesystem(locate(str(tree)))
    os.mkfifo(tree / "in/pipe.png")
    monkeypatch.setattr(filesystem, "info", lambda _: {"type": "file", "size": 10})
    assert code_of(lambda: locations.read_bytes("pipe.png")) is ErrorCode.IMAGE_MISSING


def test_a_root_that_is_a_link_is_a_root(tree):
    (tree / "link").symlink_to(tree / "in")
    locations = Locations(allowed_roots=(str(tree / "link"),), base_uri=str(tree / "link"))
    assert locations.read_bytes("x.png") == b"data"


def test_objects_inside_a_root(locations):
    for uri in ("s3://bucket/in/x.png", "S3://bucket/in/a b/%2e%2e/ü?.png", "s3://bucket/in//x.png"):
        assert locations.check(uri).scheme == "s3"
    assert locations.check("s3://bucket/in/%2e%2e/x").path == "bucket/in/%2e%2e/x"


def test_relative_locations_of_a_catalog_on_s3():
    locations = Locations(allowed_roots=("s3://bucket/a", "s3://bucket/b"), base_uri="s3://bucket/a")
    assert locations.check("p/x.png") == Location("s3", "bucket/a/p/x.png")
    assert locations.check("../b/x.png") == Location("s3", "bucket/b/x.png")
    assert code_of(lambda: locations.check("../c/x.png")) is DENIED
    assert code_of(lambda: locations.check("../../other/x.png")) is DENIED
    assert code_of(lambda: locations.check("../../../../x.png")) is DENIED
    assert code_of(lambda: locations.check("/etc/passwd")) is DENIED


def test_no_root_allows_nothing(tree):
    assert code_of(lambda: Locations(base_uri=str(tree)).check("x.png")) is DENIED


def test_the_root_of_the_disk_allows_every_file(tree):
    assert Locations(allowed_roots=("/",), base_uri="/").read_bytes(str(tree / "out/x.png")) == b"data"


def test_messages_show_no_credentials_and_no_control_characters(locations):
    with pytest.raises(ItemError) as raised:
        locations.check("s3://key:hunter2@bucket/in/x\x1b[31m")
    assert "hunter2" not in raised.value.message
    assert "\x1b" not in raised.value.message
    with pytest.raises(ItemError) as raised:
        locations.check("ftp://" + "x" * 100_000)
    assert len(raised.value.message) < 1000


def test_secrets_are_not_printed():
    locations = Locations(storage_options={"secret": "hunter2"})
    assert "hunter2" not in repr(locations)
    assert pickle.loads(pickle.dumps(locations)).storage_options == {"secret": "hunter2"}


def test_reading_what_is_no_picture(locations, tree):
    os.mkfifo(tree / "in/pipe.png")
    (tree / "in/empty.png").touch()
    (tree / "in/large.png").write_bytes(b"x" * 101)
    assert code_of(lambda: locations.read_bytes("pipe.png")) is ErrorCode.IMAGE_MISSING
    assert code_of(lambda: locations.read_bytes("sub")) is ErrorCode.IMAGE_MISSING
    assert code_of(lambda: locations.read_bytes("none.png")) is ErrorCode.IMAGE_MISSING
    assert code_of(lambda: locations.read_bytes("x.png/none.png")) is ErrorCode.IMAGE_MISSING
    assert code_of(lambda: locations.read_bytes("n" * 300)) is ErrorCode.IMAGE_MISSING
    assert code_of(lambda: locations.read_bytes("large.png", max_bytes=100)) is ErrorCode.IMAGE_TOO_LARGE
    assert locations.read_bytes("large.png", max_bytes=101) == b"x" * 101
    assert locations.read_bytes("empty.png") == b""


def test_a_file_that_grows_while_it_is_read_stays_bounded(locations, tree, monkeypatch):
    """The size that was looked up may be out of date when the bytes are read."""
    (tree / "in/grows.png").write_bytes(b"x" * 1000)
    filesystem = locations.filesystem(locate(str(tree)))
    monkeypatch.setattr(filesystem, "info", lambda _: {"type": "file", "size": 10})
    assert code_of(lambda: locations.read_bytes("grows.png", max_bytes=100)) is ErrorCode.IMAGE_TOO_LARGE


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(locations, tree):
    (tree / "in/x.png").chmod(0)
    assert code_of(lambda: locations.read_bytes("x.png")) is DENIED


def test_trouble_that_passes_is_tried_again(locations, monkeypatch):
    filesystem, tries = locations.open("x.png")[0], []
    info = filesystem.info

    def busy(path):
        tries.append(path)
        if len(tries) < 3:
            raise OSError(16, "busy")
        return info(path)

    monkeypatch.setattr(filesystem, "info", busy)
    monkeypatch.setattr("tasks.storage.filesystems.RETRY_DELAYS_S", (0.0, 0.0, 0.0))
    assert locations.read_bytes("x.png") == b"data"
    assert len(tries) == 3
    tries.extend([None] * -100)
    monkeypatch.setattr(filesystem, "info", lambda _: (_ for _ in ()).throw(TimeoutError("slow")))
    assert code_of(lambda: locations.read_bytes("x.png")) is ErrorCode.STORAGE_ERROR


def test_a_catalogs_own_folder_is_the_default_root(tree):
    inputs = CatalogInputs(catalog_uri=f"{tree}/in/catalog.csv", output_uri="out")
    assert Locations.for_catalog(inputs).read_bytes("x.png") == b"data"
    assert code_of(lambda: Locations.for_catalog(inputs).read_bytes("../out/x.png")) is DENIED
    other = CatalogInputs(catalog_uri=f"{tree}/in/catalog.csv", output_uri="out", allowed_roots=[f"{tree}/out"])
    assert Locations.for_catalog(other).read_bytes("../out/x.png") == b"data"
    assert code_of(lambda: Locations.for_catalog(other).read_bytes("x.png")) is DENIED


def test_an_operators_relative_location_starts_at_the_working_folder(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert locate("in/x.png").uri == str(tree / "in/x.png")
    inputs = CatalogInputs(catalog_uri="in/catalog.csv", output_uri="out", allowed_roots=["in"])
    locations = Locations.for_catalog(inputs)
    monkeypatch.chdir("/")
    assert locations.read_bytes("x.png") == b"data"


@pytest.mark.parametrize("uri", ["ftp://x", "s3://", "a\x00b", " ", "s3://k:s@bucket/x"])
def test_an_operators_wrong_location_is_a_configuration_error(uri):
    with pytest.raises(ConfigurationError):
        locate(uri)


pieces = st.sampled_from(
    ["..", ".", "/", "//", "a", "in", "out", "%2e", "%2f", "file:", "s3:", "~", ":", "\\", "\x00", " "]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(pieces, max_size=12).map("".join) | st.text(max_size=20))
@example("file:in/../../out")
def test_no_text_leads_outside(uri):
    locations = Locations(allowed_roots=("/data/in",), base_uri="/data/in")
    try:
        location = locations.check(uri)
    except ItemError:
        return
    assert os.path.commonpath(["/data/in", os.path.realpath(location.path)]) == "/data/in"
