"""Models to give away: a folder, and a hub that runs on the loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from vg_utils.config import Config, set_fields
from vg_utils.models.checkpoints import CheckpointError, find_checkpoint
from vg_utils.predictor import Grounder
from vg_utils.sharing import FILES

PHRASES = ["the red cube", "the small metal sphere"]
IMAGE = Image.effect_noise((90, 60), 80).convert("RGB")


@pytest.fixture
def grounder(untrained, tiny_config) -> Grounder:
    config = set_fields(tiny_config, model__name="dense-grounder")
    return Grounder(untrained("dense-grounder"), config, "cpu")


def answers(grounder: Grounder) -> list:
    return grounder.ground(PHRASES, grounder.encode(IMAGE))


def test_a_folder_answers_as_the_model_and_needs_no_other_file(grounder, tmp_path):
    folder = tmp_path / "shared"
    grounder.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert load_file(folder / "model.safetensors").keys() == grounder.model.state_dict().keys()
    config = Config.load(folder / "config.json")
    assert (config.model.clip.weights, config.model.hrnet.weights) == ("random", "random")
    moved = shutil.move(folder, tmp_path / "elsewhere")
    for load in (Grounder.from_pretrained, Grounder.load):
        loaded = load(moved, "cpu")
        assert answers(loaded) == answers(grounder)
    loaded.save_pretrained(tmp_path / "again")
    assert answers(Grounder.from_pretrained(tmp_path / "again", "cpu")) == answers(grounder)


def test_a_folder_says_nothing_of_the_machine_that_trained(grounder, tmp_path):
    assert Path(grounder.config.data.root).is_absolute()
    grounder.config = set_fields(grounder.config, train__init=str(tmp_path / "first"))
    grounder.origin = f"{tmp_path / 'run'}: dense-grounder, trained on {grounder.config.data.root}"
    grounder.save_pretrained(tmp_path / "shared")
    for name in ("README.md", "config.json"):
        text = (tmp_path / "shared" / name).read_text()
        assert str(tmp_path.parent) not in text.replace(json.dumps(grounder.config.data.features), "")
        assert Path(grounder.config.data.root).name in text


def test_the_card_is_one_that_the_hub_understands(grounder, tmp_path):
    from huggingface_hub import ModelCard

    grounder.save_pretrained(tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("vg_utils", "zero-shot-object-detection")


@pytest.mark.parametrize("name", ["photos/dense-grounder", "scenes/dense-grounder"])
def test_shipped_checkpoints_go_by_their_names(name):
    assert Grounder.from_pretrained(name, "cpu").origin == Grounder.load(name, "cpu").origin


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a small repository needs. Of the server: `files`, by path."""

    def do_GET(self) -> None:
        files = self.server.files
        if "/resolve/" in self.path and self.path.split("/")[-1] in files:
            content = files[self.path.split("/")[-1]]
            tag = hashlib.sha1(content).hexdigest()
            self.answer(content, {"ETag": f'"{tag}"', "X-Repo-Commit": "f" * 40})
        elif "/tree/" in self.path:
            listed = [{"type": "file", "path": name, "size": len(files[name]), "oid": "0"} for name in files]
            self.answer(json.dumps(listed).encode())
        elif self.path.startswith("/api/models/some/model") and files:
            siblings = [{"rfilename": name} for name in files]
            self.answer({"id": "some/model", "sha": "f" * 40, "siblings": siblings})
        else:
            self.answer({"error": "not found"}, {"X-Error-Code": "RepoNotFound"}, status=404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/repos/create"):
            self.answer({"url": "http://127.0.0.1/some/model"})
        elif "/preupload/" in self.path:
            asked = json.loads(sent)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]
            self.answer({"files": modes})
        elif "/commit/" in self.path:
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {"commitUrl": "http://127.0.0.1/some/model/commit/f", "commitOid": "f" * 40, "success": True}
            )
        else:  # the card's header is checked
            self.answer({"errors": [], "warnings": []})

    def answer(self, content: bytes | dict, headers: dict | None = None, status: int = 200) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[ThreadingHTTPServer]:
    """A hub on the loopback, and a cache of its own."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files = {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"  # what HF_ENDPOINT says, read when the hub is imported
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, here)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", here)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_loopback")
    yield server
    server.shutdown()
    server.server_close()


def test_there_and_back(grounder, hub):
    assert grounder.push_to_hub("some/model").endswith("some/model")
    assert hub.files.keys() >= set(FILES)
    loaded = Grounder.from_pretrained("some/model", "cpu")
    assert answers(loaded) == answers(grounder)
    assert loaded.origin == f"some/model: dense-grounder, trained on {Path(grounder.config.data.root).name}"


def test_what_is_not_there_is_a_line_and_settings_name_no_other_files(grounder, hub):
    with pytest.raises(CheckpointError, match=r"^some/model: expected a folder, .* on the hub.*") as raised:
        Grounder.from_pretrained("some/model")
    assert len(str(raised.value).splitlines()) == 1
    grounder.push_to_hub("some/model")
    settings = json.loads(hub.files["config.json"])
    settings["model"]["clip"]["weights"] = "/somewhere/else.pt"
    hub.files["config.json"] = json.dumps(settings).encode()
    with pytest.raises(CheckpointError, match=r"model\.clip\.weights: expected its own alone"):
        Grounder.from_pretrained("some/model")


def test_a_folder_without_weights_is_none(grounder, tmp_path):
    grounder.save_pretrained(tmp_path / "shared")
    (tmp_path / "shared" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="expected a run directory"):
        find_checkpoint(tmp_path / "shared")
