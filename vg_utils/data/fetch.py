"""Fetching images over HTTP so that what arrives is whole: one image, or many in parallel.

An image is written under its name only after its body came in full, decoded, and had the size that the
annotations say; it is written to a temporary name and renamed. So a run that is killed leaves nothing that
looks finished and is not.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import requests
import urllib3
from PIL import Image

from vg_utils.data.examples import one_line

GIVE_UP_AFTER = 50  # failures in a row: then it is the server or the network that is gone, not an image
TEMPORARY = ".{name}.part"
_RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT_S = 60.0
_CHUNK_BYTES = 1 << 16
_LARGEST_BYTES = 32 * 2**20  # of a body; COCO's largest image has half a megabyte

Entry = dict[str, int | str]


class FetchError(Exception):
    """An image cannot be had, and trying again would not help; the message is the reason."""


class _TemporaryError(Exception):
    """Worth another try, after `wait_s` seconds if the server says how long."""

    def __init__(self, message: str, wait_s: float | None = None):
        super().__init__(message)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Picture:
    """An image wanted: its file name, and its width and height in pixels as the annotations give them."""

    name: str
    size_wh: tuple[int, int]


@dataclass(frozen=True)
class Fetcher:
    """Where images come from, and how patiently.

    Attributes:
        base_url: the address of an image without the slash and its name.
        retries: tries after the first.
        timeout_s: seconds to connect, and at most between two pieces of a body. A body that trickles in may
            take ten times as long altogether.
        backoff_s: the wait before the first retry. It doubles with each further one and is drawn between half
            and one and a half of that, so that parallel workers do not come back all at once.
    """

    base_url: str
    retries: int = 5
    timeout_s: float = 20.0
    backoff_s: float = 0.5
    _local: threading.local = field(default_factory=threading.local, repr=False, compare=False)

    def fetch(self, picture: Picture, folder: Path) -> Entry:
        """Fetch one image into the folder.

        Returns:
            Its entry of the manifest, see `describe`.

        Raises:
            FetchError: the server refuses, it has another image there, or all tries failed.
        """
        for attempt in range(self.retries + 1):
            try:
                content = self._body(picture.name)
                entry = describe(content, picture)
            except FetchError:
                raise
            except Exception as error:  # headers, redirects and decoders raise nearly anything
                reason = (
                    str(error) if isinstance(error, _TemporaryError) else f"{type(error).__name__}: {error}"
                )
                if attempt == self.retries:
                    raise FetchError(f"{one_line(reason, 300)} ({attempt + 1} tries)") from error
                time.sleep(self._wait_s(attempt, getattr(error, "wait_s", None)))
            else:
                _write(folder, picture.name, content)
                return entry
        raise FetchError("no try was allowed")

    def _wait_s(self, attempt: int, told_s: float | None) -> float:
        own_s = self.backoff_s * 2**attempt * random.uniform(0.5, 1.5)
        return min(max(own_s, told_s or 0.0), _LONGEST_WAIT_S)

    def _body(self, name: str) -> bytes:
        """The whole body of the answer."""
        return _get(self._session(), f"{self.base_url.rstrip('/')}/{name}", self.timeout_s, _LARGEST_BYTES)

    def _session(self) -> requests.Session:
        """One for each thread: it keeps the connection open from image to image."""
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
            # As stored, so that Content-Length is the number of bytes that must arrive.
            self._local.session.headers["Accept-Encoding"] = "identity"
        return self._local.session


def download(url: str, most_bytes: int, timeout_s: float = 20.0) -> bytes:
    """What is behind one address, of `http` or `https`, tried once. Raises FetchError."""
    try:
        with requests.Session() as session:
            return _get(session, url, timeout_s, most_bytes)
    except FetchError:
        raise
    except Exception as error:  # as above
        raise FetchError(one_line(f"{error or type(error).__name__}", 300)) from error


def _get(session: requests.Session, url: str, timeout_s: float, most_bytes: int) -> bytes:
    """The whole body of an answer; requests follows redirects to `http` and `https` only."""
    try:
        with session.get(url, timeout=timeout_s, stream=True) as response:
            _check_status(response)
            return _read(response, time.monotonic() + 10 * timeout_s, most_bytes)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        if isinstance(error, ValueError):  # not an address at all, or a redirect to none
            raise FetchError(one_line(str(error), 300)) from error
        raise _TemporaryError(f"{type(error).__name__} at {url}") from error


def _check_status(response: requests.Response) -> None:
    status = response.status_code
    if status == 200:
        return
    message = f"HTTP {status} {response.reason} at {response.url}"
    if status not in _RETRIED_STATUS:
        raise FetchError(message)
    told = response.headers.get("Retry-After", "")
    raise _TemporaryError(message, float(told) if told.isdecimal() else None)


def _read(response: requests.Response, deadline: float, most_bytes: int) -> bytes:
    content = bytearray()
    # Not iter_content(): it returns when a chunk is full, so it would never notice a body that trickles in.
    while chunk := response.raw.read1(_CHUNK_BYTES):
        content += chunk
        if len(content) > most_bytes:
            raise FetchError(f"more than {most_bytes} bytes from {response.url}")
        if time.monotonic() > deadline:
            raise _TemporaryError(f"too slow, {len(content)} bytes so far from {response.url}")
    expected = response.headers.get("Content-Length")
    if expected is not None and expected.strip() != str(len(content)):
        raise _TemporaryError(f"truncated, {len(content)} of {expected} bytes from {response.url}")
    return bytes(content)


def describe(content: bytes, picture: Picture) -> Entry:
    """The manifest's entry for an image that decodes to its last row and has its annotated size.

    Returns:
        `bytes`, `width`, `height` and `sha256`.

    Raises:
        FetchError: another size.
        _TemporaryError: it does not decode.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            size_wh = opened.size
            if size_wh == picture.size_wh:  # else it may be too large to be decoded
                opened.load()
    except Exception as error:  # Pillow's decoders raise nearly anything
        raise _TemporaryError(f"{picture.name} does not decode: {error}") from error
    if size_wh != picture.size_wh:
        raise FetchError(f"{picture.name} is {size_wh[0]}x{size_wh[1]}, annotated as {picture.size_wh}")
    width, height = size_wh
    digest = hashlib.sha256(content).hexdigest()
    return {"bytes": len(content), "width": width, "height": height, "sha256": digest}


def verify(path: Path, picture: Picture, known: Entry | None) -> Entry | None:
    """The entry of an image that lies here already, or None if it must be fetched again.

    An image that the manifest knows is compared by length and the size in its header; any other is decoded.
    """
    width, height = picture.size_wh
    try:
        if known and (path.stat().st_size, width, height) == (
            known["bytes"],
            known["width"],
            known["height"],
        ):
            with Image.open(path) as opened:
                return known if opened.size == picture.size_wh else None
        return describe(path.read_bytes(), picture)
    except Exception:  # whatever it is, it is no whole image
        return None


def fetch_all(
    fetcher: Fetcher, pictures: Iterable[Picture], folder: Path, workers: int
) -> Iterator[tuple[Picture, Entry | None, str]]:
    """Fetch many images in parallel; yield each when done: the image, its entry or None, why it failed.

    After `GIVE_UP_AFTER` failures in a row the rest is not tried and fails with that reason. An OSError (a
    full disk) stops everything.
    """
    failures_in_a_row = 0
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(fetcher.fetch, picture, folder): picture for picture in pictures}
        try:
            for future in as_completed(futures):
                if future.cancelled():
                    yield futures[future], None, f"not tried after {GIVE_UP_AFTER} failures in a row"
                    continue
                try:
                    entry, reason = future.result(), ""
                except FetchError as error:
                    entry, reason = None, str(error)
                failures_in_a_row = 0 if entry else failures_in_a_row + 1
                yield futures[future], entry, reason
                if failures_in_a_row == GIVE_UP_AFTER:
                    _cancel(futures)
        finally:
            _cancel(futures)


def _cancel(futures: Iterable) -> None:
    for future in futures:
        future.cancel()


def _write(folder: Path, name: str, content: bytes) -> None:
    temporary = folder / TEMPORARY.format(name=name)
    temporary.write_bytes(content)
    os.replace(temporary, folder / name)


def remove_temporary(folder: Path) -> int:
    """Remove what a killed run left half written; return how many files that were."""
    stray = list(folder.glob(TEMPORARY.format(name="*")))
    for path in stray:
        path.unlink(missing_ok=True)
    return len(stray)
