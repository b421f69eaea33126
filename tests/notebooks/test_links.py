import json
import re
import shutil

import pytest

from notebooks.links import PAGES, ROOT, disagreements, main, move, pages, repository, slug

OTHER = "https://github.com/me/my.fork-2"


@pytest.fixture
def copy(tmp_path):
    """The pages of the repository, and empty files where they link to."""
    for pattern in ("pyproject.toml", *PAGES):
        for path in ROOT.glob(pattern):
            target = tmp_path / path.relative_to(ROOT)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
    return tmp_path


def page(root, text):
    (root / "README.md").write_text(text)
    return list(disagreements(root))


def test_the_repository_agrees_with_itself():
    assert list(disagreements()) == []


def anchors(text):
    """The places of a page, as GitHub names them."""
    plain = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", plain, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "path", [p for p in pages() if p.suffix == ".md"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_links_between_pages_lead_to_a_place(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        other = path.parent / file if file else path
        assert other.exists(), target
        if anchor and other.suffix == ".md":
            assert anchor in anchors(other.read_text()), target


def test_a_fork_changes_every_page_and_nothing_else(copy):
    ours = slug(repository())
    (copy / "README.md").write_text(
        f"https://github.com/{ours}.git https://github.com/{ours}-two other/{ours}"
    )
    changed = move(OTHER, copy)
    assert repository(copy) == OTHER
    assert (
        copy / "README.md"
    ).read_text() == f"https://github.com/me/my.fork-2.git https://github.com/{ours}-two other/{ours}"
    assert {path.name for path in (copy / "notebooks").glob("*.ipynb")} <= {path.name for path in changed}
    for path in (copy / "notebooks").glob("*.ipynb"):
        assert ours not in path.read_text()
        json.loads(path.read_text())


def test_moving_twice_back_gives_the_same_bytes(copy):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    move(OTHER, copy)
    move(repository(), copy)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_what_disagrees_is_named(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nRepository = "https://github.com/a/b"\n')
    (tmp_path / "there.txt").touch()
    colab = "https://colab.research.google.com/github"
    assert page(tmp_path, f"{colab}/a/b/blob/main/there.txt") == []
    assert "x/y" in page(tmp_path, f"[open]({colab}/x/y/blob/main/there.txt)")[0]
    assert "gone.txt" in page(tmp_path, f"{colab}/a/b/blob/main/gone.txt")[0]
    assert "gone.txt" in page(tmp_path, "https://github.com/a/b/blob/main/gone.txt")[0]
    assert page(tmp_path, "https://github.com/openai/CLIP/blob/main/gone.txt") == []
    assert "clones" in page(tmp_path, 'REPOSITORY = "https://github.com/x/y"')[0]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://github.com/a/b", "a/b"),
        ("https://github.com/a/b.git", "a/b"),
        ("https://github.com/a/b/", "a/b"),
        ("https://github.com/a/b.c", "a/b.c"),
    ],
)
def test_slug(address, expected):
    assert slug(address) == expected


@pytest.mark.parametrize("address", ["me/fork", "https://gitlab.com/a/b", "https://github.com/a", ""])
def test_what_is_no_address(address):
    with pytest.raises(ValueError, match="expected https"):
        slug(address)


def test_command_line(capsys):
    assert main([]) == 0
    assert repository() in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        main(["me/fork"])
    assert exit_.value.code == 2
    assert "expected https" in capsys.readouterr().err
