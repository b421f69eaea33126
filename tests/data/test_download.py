import http.server
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.data.samples import ref, sentence, small_set, write_picture
from tests.data.test_hub import hub_rows, write_parquet
from vg_utils.data import DataError, images, load_examples, load_image
from vg_utils.data import fetch as fetch_module
from vg_utils.data.download import DownloadError, is_download, prepare_refcocog
from vg_utils.data.hub import to_refer
from vg_utils.data.refer_files import picture_name, write_refer

NAMES = [picture_name(i) for i in (7, 8, 9)]
QUICK = {"workers": 4, "retries": 3, "timeout_s": 60, "backoff_s": 0.01, "progress": False}


ODD_HEADERS = {
    "no length": {"Content-Length": "many"},
    "negative length": {"Content-Length": "-5"},
    "two lengths": {"Content-Length": "5, 7"},
    "chunks that are none": {"Transfer-Encoding": "chunked"},
    "a strange encoding": {"Content-Encoding": "gzip"},
}
REDIRECTS = [
    "to file:///etc/hostname",
    "to ftp://127.0.0.1/a.jpg",
    "to http://[",
    "to http://127.0.0.1:99999/",
]


class Server(http.server.ThreadingHTTPServer):
    """Serves images from a folder; `faults[name]` lists what goes wrong with its first requests."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faults: dict[str, list[str]] = {}
        self.requests: list[str] = []
        self.answers: threading.Semaphore | None = None  # so many more are given; None: any number
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        self.server.requests.append(name)
        if self.server.answers:
            self.server.answers.acquire()
        faults = self.server.faults.get(name)
        fault = faults.pop(0) if faults else ""
        content = (self.server.folder / name).read_bytes()
        if fault.isdigit():
            return self._answer(b"no", int(fault))
        if fault == "garbage":
            return self._answer(b"<html>please log in</html>")
        if fault == "half":
            return self._answer(content[: len(content) // 2])
        if fault in ("truncate", "stall"):
            self._answer(content[: len(content) // 2], announced=len(content))
            if fault == "stall":
                self.rfile.read(1)  # until the client has had enough
            self.close_connection = True
            return None
        if fault == "trickle":
            return self._trickle(content)
        if fault.startswith("to "):
            return self._answer(b"", 302, headers={"Location": fault.removeprefix("to ")})
        if fault in ODD_HEADERS:
            return self._answer(content, headers=ODD_HEADERS[fault])
        return self._answer(content)

    def _answer(self, content: bytes, status: int = 200, announced: int | None = None, headers: dict = {}):  # noqa: B006
        self.send_response(status)
        headers = {"Content-Length": str(announced or len(content))} | headers
        for name, value in headers.items():
            self.send_header(name, value)
        if status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(content)

    def _trickle(self, content: bytes):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        for start in range(0, 1 << 30, 4):
            try:
                self.wfile.write(content[start : start + 4])
            except OSError:  # the client has had enough
                self.close_connection = True
                return
            time.sleep(0.02)


@pytest.fixture
def server(tmp_path):
    """A server with the images of the small set."""
    folder = tmp_path / "served"
    folder.mkdir()
    for seed, name in enumerate(NAMES):
        write_picture(folder / name, (64, 48), seed)
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def impatient(server, monkeypatch):
    """Makes the client wait so many seconds for an answer that is a fault, and as ever for the others."""
    get = fetch_module._get

    def make(seconds: float) -> None:
        def of_a_fault(session, url, timeout_s, most_bytes):
            faulty = server.faults.get(url.rpartition("/")[2])
            return get(session, url, seconds if faulty else timeout_s, most_bytes)

        monkeypatch.setattr(fetch_module, "_get", of_a_fault)

    return make


@pytest.fixture
def root(tmp_path):
    """A folder with the annotations of the small set and no images."""
    write_refer(tmp_path / "data", "umd", *small_set())
    return tmp_path / "data"


def prepare(root, server, **options):
    return prepare_refcocog(root, base_url=server.url, **(QUICK | options))


def many_pictures(root: Path, server: Server, count: int) -> None:
    """Annotations in the folder that ask for so many images, and the images on the server."""
    instances, _ = small_set()
    instances["images"] = [{"id": i, "width": 64, "height": 48} for i in range(count)]
    refs = [ref(i, i, i, "train", [sentence(i, "a car")]) for i in range(count)]
    write_refer(root, "umd", instances, refs)
    for i in range(count):
        write_picture(server.folder / picture_name(i), (64, 48), i)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_fetches_what_the_annotations_need(root, server):
    summary = prepare(root, server)
    assert (summary.wanted, summary.already, summary.fetched, summary.failed) == (3, 0, 3, {})
    assert sorted(path.name for path in (root / "images").iterdir()) == NAMES
    manifest = json.loads((root / "manifest.json").read_bytes())
    assert list(manifest) == NAMES
    assert manifest[NAMES[0]]["bytes"] == (server.folder / NAMES[0]).stat().st_size
    assert (manifest[NAMES[0]]["width"], manifest[NAMES[0]]["height"]) == (64, 48)
    assert not (root / "failed.json").exists()
    assert "3 of 3 images, 3 of them new" in str(summary)
    assert load_examples(root, "train")[0].image_id == 7


def test_a_second_run_fetches_nothing(root, server):
    prepare(root, server)
    before = contents(root)
    server.requests.clear()
    summary = prepare(root, server)
    assert (summary.already, summary.fetched, server.requests) == (3, 0, [])
    assert contents(root) == before


def test_limit(root, server):
    assert prepare(root, server, limit=1).wanted == 1
    assert server.requests == NAMES[:1]
    summary = prepare(root, server)
    assert (summary.already, summary.fetched) == (1, 2)
    assert list(json.loads((root / "manifest.json").read_bytes())) == NAMES


@pytest.mark.parametrize("fault", ["500", "503", "truncate", "half", "garbage", "stall"])
def test_passing_faults_are_tried_again(root, server, impatient, fault):
    server.faults[NAMES[1]] = [fault, fault]
    if fault == "stall":
        impatient(1.0)
    summary = prepare(root, server)
    assert (summary.fetched, summary.failed) == (3, {})
    assert server.requests.count(NAMES[1]) == 3
    assert (root / "images" / NAMES[1]).read_bytes() == (server.folder / NAMES[1]).read_bytes()


def test_429_waits_as_long_as_the_server_says(root, server):
    server.faults[NAMES[1]] = ["429"]
    start = time.monotonic()
    assert prepare(root, server).failed == {}
    assert time.monotonic() - start >= 1.0


def test_a_body_that_trickles_is_given_up(root, server, impatient):
    server.faults[NAMES[1]] = ["trickle"]
    impatient(0.2)
    summary = prepare(root, server)
    assert summary.failed == {}
    assert server.requests.count(NAMES[1]) > 1


def test_404_is_final_and_reported(root, server):
    server.faults[NAMES[1]] = ["404"] * 9
    summary = prepare(root, server)
    assert server.requests.count(NAMES[1]) == 1
    assert summary.fetched == 2
    assert list(summary.failed) == [NAMES[1]]
    assert "HTTP 404" in summary.failed[NAMES[1]]
    assert json.loads((root / "failed.json").read_bytes()) == summary.failed
    assert "1 failed, listed in failed.json" in str(summary)
    server.faults.clear()
    assert prepare(root, server).fetched == 1
    assert not (root / "failed.json").exists(), "an empty list of failures is removed"


def test_retries_end(root, server):
    server.faults[NAMES[1]] = ["500"] * 99
    summary = prepare(root, server)
    assert server.requests.count(NAMES[1]) == 4
    assert "HTTP 500" in summary.failed[NAMES[1]]
    assert "(4 tries)" in summary.failed[NAMES[1]]


def test_another_picture_under_the_name_is_refused(root, server):
    write_picture(server.folder / NAMES[1], (48, 64))
    summary = prepare(root, server)
    assert "is 48x64, annotated as (64, 48)" in summary.failed[NAMES[1]]
    assert not (root / "images" / NAMES[1]).exists()


def test_nothing_could_be_had(root, server):
    server.faults.update({name: ["404"] for name in NAMES})
    with pytest.raises(DownloadError, match=r"(?s)none of 3 images .*HTTP 404.*Ways out: .*base URL"):
        prepare(root, server)
    assert len(json.loads((root / "failed.json").read_bytes())) == 3
    with pytest.raises(DownloadError, match="none of 3"):
        prepare_refcocog(root, base_url="http://127.0.0.1:1", **QUICK)
    with pytest.raises(DownloadError, match="none of 3 images could be had from no address"):
        prepare_refcocog(root, base_url="no address", **QUICK)


def test_gives_up_when_the_server_is_gone(root, server, monkeypatch):
    monkeypatch.setattr(fetch_module, "GIVE_UP_AFTER", 2)
    many_pictures(root, server, 20)
    server.faults = {picture_name(i): ["404"] for i in range(20)}
    server.answers = threading.Semaphore(9)  # the last are not asked for, however late it is noticed
    with pytest.raises(DownloadError):
        prepare(root, server, workers=1, timeout_s=2)
    failed = json.loads((root / "failed.json").read_bytes())
    assert len(failed) == 20
    assert failed[picture_name(19)] == "not tried after 2 failures in a row"
    assert 2 <= len(server.requests) < 20


def test_damaged_pictures_are_fetched_again(root, server):
    prepare(root, server)
    (root / "images" / NAMES[0]).write_bytes(b"short")  # the manifest knows another length
    (root / "manifest.json").write_text("{damaged")
    half = (server.folder / NAMES[1]).read_bytes()
    (root / "images" / NAMES[1]).write_bytes(half[: len(half) // 2])  # a whole header, not whole pixels
    (root / "images" / f".{NAMES[2]}.part").write_bytes(b"stray")
    server.requests.clear()
    summary = prepare(root, server)
    assert (summary.already, summary.fetched) == (1, 2)
    assert sorted(server.requests) == NAMES[:2]
    assert sorted(path.name for path in (root / "images").iterdir()) == NAMES


def test_a_manifest_with_other_content_is_not_trusted(root, server):
    prepare(root, server)
    manifest = json.loads((root / "manifest.json").read_bytes())
    (root / "manifest.json").write_text(json.dumps({NAMES[0]: 1, NAMES[1]: {}, NAMES[2]: manifest[NAMES[2]]}))
    assert prepare(root, server).already == 3
    assert json.loads((root / "manifest.json").read_bytes()) == manifest


def test_pictures_of_the_zip_are_used_where_they_lie(root, server):
    (root / "train2014").mkdir()
    for name in NAMES[:2]:
        (root / "train2014" / name).write_bytes((server.folder / name).read_bytes())
    summary = prepare(root, server)
    assert (summary.already, summary.fetched) == (2, 1)
    assert [path.name for path in (root / "images").iterdir()] == NAMES[2:]
    assert all(load_examples(root, split) for split in ("train", "val", "test"))


@pytest.mark.parametrize(
    ("dataset", "partition"), [("refcocog", "umd"), ("refcoco", "unc"), ("refcoco+", "unc")]
)
def test_annotations_come_from_the_hub(tmp_path, server, dataset, partition):
    instances, refs = small_set()
    refs[2]["sentences"][0].pop("family")
    source = write_parquet(tmp_path / "hub", hub_rows(instances, refs))
    summary = prepare(tmp_path / "new", server, dataset=dataset, source=source)
    assert summary.fetched == 3
    names = sorted(path.name for path in (tmp_path / "new" / "annotations").iterdir())
    assert names == ["instances.json", f"refs({partition}).p"]
    assert len(load_examples(tmp_path / "new", "train")[0].expressions) == 3


def test_errors_before_the_first_picture(root, tmp_path, server):
    with pytest.raises(DataError, match="refcocog, refcoco, refcoco"):
        prepare(root, server, dataset="refclef")
    with pytest.raises(DataError, match="expected parquet files"):
        prepare(tmp_path / "new", server, source=tmp_path)
    (root / "annotations" / "refs(umd).p").unlink()
    before = contents(root)
    with pytest.raises(DataError, match=r"expected refs\(umd\)\.p beside instances\.json"):
        prepare(root, server)
    assert contents(root) == before
    instances, refs = small_set()
    write_refer(root, "umd", instances | {"images": instances["images"][:2]}, refs)
    with pytest.raises(DataError, match="no record of image 8"):
        prepare(root, server)
    assert server.requests == []


def test_killed_and_run_again_gives_the_same_folder(tmp_path, server):
    """kill -9 in mid-download, twice; then the folder equals the one of an uninterrupted run."""
    count = 60
    for name in ("whole", "killed"):
        many_pictures(tmp_path / name, server, count)
    prepare(tmp_path / "whole", server)

    code = (
        "import sys; from vg_utils.data.download import prepare_refcocog; "
        "prepare_refcocog(sys.argv[1], base_url=sys.argv[2], workers=2, progress=False)"
    )
    images = tmp_path / "killed" / "images"
    for at_least in (5, 25):
        server.answers = threading.Semaphore(at_least + 10)  # however late the kill comes, some are missing
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "killed"), server.url],
            cwd=Path(__file__).parents[2],
        )
        while process.poll() is None and len(list(images.glob("COCO*"))) < at_least:
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert at_least <= len(list(images.glob("COCO*"))) < count
    (images / f".{picture_name(59)}.part").write_bytes(b"half an image")  # what a kill in mid-write leaves
    server.answers = None
    summary = prepare(tmp_path / "killed", server)
    assert summary.already >= 25
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_download_is_known_as_one_from_its_first_moment(tmp_path, monkeypatch):
    """Whoever asks whether a folder is a person's own or a download cut short finds its manifest."""

    def killed(*_):
        assert is_download(tmp_path / "data")
        raise KeyboardInterrupt

    monkeypatch.setattr("vg_utils.data.hub.hub_to_refer", killed)
    assert not is_download(tmp_path / "data")
    with pytest.raises(KeyboardInterrupt):
        prepare_refcocog(tmp_path / "data", **QUICK)
    assert is_download(tmp_path / "data")


def test_a_download_of_an_earlier_version_is_known_by_its_annotations(tmp_path, root):
    write_refer(tmp_path / "begun", "umd", *to_refer(hub_rows(*small_set()), "jxu124/refcocog"))
    assert is_download(tmp_path / "begun")
    assert not is_download(root)


@pytest.mark.parametrize("fault", [*ODD_HEADERS, *REDIRECTS])
def test_a_bad_answer_is_one_failure_and_not_the_end(root, server, impatient, fault):
    server.faults = {NAMES[0]: [fault] * 9}
    if fault in ("no length", "negative length"):  # the connection stays open: only patience ends it
        impatient(0.2)
    summary = prepare(root, server)
    assert set(summary.failed) <= {NAMES[0]}
    assert summary.fetched + len(summary.failed) == 3
    if summary.failed:
        assert set(json.loads((root / "failed.json").read_bytes())) == {NAMES[0]}
        assert "\n" not in summary.failed[NAMES[0]]
    else:  # an odd header, and a whole image
        assert fault in ODD_HEADERS
    server.faults = {}
    assert prepare(root, server).failed == {}, "tried again by the next run"


def test_whatever_a_decoder_raises_is_one_failure(root, server, monkeypatch):
    def decode(content, picture):
        if picture.name == NAMES[1]:
            raise ZeroDivisionError("a decoder's own")
        return describe(content, picture)

    describe = fetch_module.describe
    monkeypatch.setattr(fetch_module, "describe", decode)
    assert prepare(root, server).failed == {NAMES[1]: "ZeroDivisionError: a decoder's own (4 tries)"}


def test_a_body_without_end_is_cut(root, server, monkeypatch):
    monkeypatch.setattr(fetch_module, "_LARGEST_BYTES", 1000)
    assert "more than 1000 bytes" in fetch_error(server, NAMES[0])


def fetch_error(server, name: str) -> str:
    with pytest.raises(fetch_module.FetchError) as error:
        fetch_module.Fetcher(server.url, retries=0).fetch(fetch_module.Picture(name, (64, 48)), server.folder)
    return str(error.value)


def test_an_address_is_an_image(server, monkeypatch):
    assert load_image(f"{server.url}/{NAMES[0]}").size == (64, 48)
    server.faults = {NAMES[0]: ["404", "to file:///etc/hostname", "garbage"]}
    for message in ("HTTP 404", "No connection adapters", "expected an image that decodes"):
        with pytest.raises(DataError, match=rf"^{server.url}/{NAMES[0]}: .*{message}"):
            load_image(f"{server.url}/{NAMES[0]}")
    monkeypatch.setattr(images, "LARGEST_DOWNLOAD", 100)
    with pytest.raises(DataError, match="more than 100 bytes"):
        load_image(f"{server.url}/{NAMES[1]}")
