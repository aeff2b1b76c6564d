"""The folder of a film: what is believed, what is made again, and what is never lost."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longreel.memory.chunks import Chunk
from longreel.memory.film import write_segment
from longreel.memory.project import Project, ProjectError

SETTINGS: dict[str, object] = {"seed": 7, "size": (96, 128), "shots": [{"prompt": "a village", "seconds": 3.0}]}
CHUNK_FRAMES = 3


def chunk(index: int) -> Chunk:
    return Chunk(index, range(CHUNK_FRAMES * index, CHUNK_FRAMES * (index + 1)), shot=index // 2)


def latents(index: int) -> Tensor:
    return torch.randn(1, 16, CHUNK_FRAMES, 4, 6, generator=torch.Generator().manual_seed(index))


def save(project: Project, *indices: int) -> None:
    for index in indices:
        with project.trace_path.open("a") as trace:
            trace.write(f'{{"chunk": {index}}}\n')
        project.save_chunk(chunk(index), latents(index), seconds=0.5)


def save_video(project: Project, index: int) -> None:
    pictures = np.full((4, 16, 16, 3), index, np.uint8)
    write_segment(project.segment_path(index), pictures, 16)
    project.record_segment(index, len(pictures))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def an_ordinary_user() -> Iterator[None]:
    """Drop the rights of the superuser, who may write everywhere, if the tests run as one."""
    superuser = os.geteuid() == 0
    if superuser:
        os.seteuid(65534)
    try:
        yield
    finally:
        if superuser:
            os.seteuid(0)


@contextmanager
def a_full_disk(limit_bytes: int) -> Iterator[None]:
    """Let the system refuse to write more than this into a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_stopped_film_goes_on_after_its_finished_chunks(tmp_path: Path) -> None:
    with Project.open(tmp_path, "walk", SETTINGS) as project:
        assert project.finished == 0
        assert project.report == ""
        assert project.load_chunk(0) is None
        save(project, 0, 1)
    with Project.open(tmp_path, "walk", dict(reversed(SETTINGS.items()))) as project:
        assert project.finished == 2
        assert project.report == "The film goes on after 2 finished chunks."
        for index in range(2):
            loaded = project.load_chunk(index)
            assert loaded is not None
            assert torch.equal(loaded, latents(index))
        assert project.load_chunk(2) is None


def test_a_film_made_in_two_runs_has_the_files_of_one_run(tmp_path: Path) -> None:
    with Project.open(tmp_path / "one", "walk", SETTINGS) as project:
        for index in range(3):
            save(project, index)
            save_video(project, index)
    for run in (range(1), range(1, 3)):
        with Project.open(tmp_path / "two", "walk", SETTINGS) as project:
            assert project.finished == run.start
            for index in run:
                save(project, index)
                save_video(project, index)
    assert files(tmp_path / "two" / "walk") == files(tmp_path / "one" / "walk")


def test_a_film_with_other_settings_is_new_and_the_earlier_one_is_kept(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        with Project.open(tmp_path, "walk", {**SETTINGS, "seed": seed}) as project:
            assert project.finished == 0
            save(project, 0)
            kept = files(project.folder)
    with Project.open(tmp_path, "walk", {**SETTINGS, "seed": 4}) as project:
        assert project.finished == 0
        assert not project.trace_path.exists()
        assert "The settings changed (seed)" in project.report
        assert "'walk.3'" in project.report
    assert files(tmp_path / "walk.3") == kept
    with Project.open(tmp_path, "walk.1", {**SETTINGS, "seed": 1}) as project:
        assert project.finished == 1


def test_other_settings_before_any_chunk_was_finished_leave_no_second_folder(tmp_path: Path) -> None:
    with Project.open(tmp_path, "walk", SETTINGS) as project:
        project.trace_path.write_text("begun\n")
    with Project.open(tmp_path, "walk", {**SETTINGS, "seed": 8}) as project:
        assert project.report == ""
        assert not project.trace_path.exists()
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["walk"]


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_chunk_and_those_after_it_are_not_believed(tmp_path: Path, damage: str) -> None:
    with Project.open(tmp_path, "walk", SETTINGS) as project:
        for index in range(4):
            save(project, index)
            save_video(project, index)
        path = project.chunk_path(2)
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with Project.open(tmp_path, "walk", SETTINGS) as project:
        assert (project.finished, project.finished_segments) == (2, 2)
        assert project.load_chunk(2) is None
        assert "Chunk 2 is damaged" in project.report
        assert project.trace_path.read_text().splitlines() == ['{"chunk": 0}', '{"chunk": 1}']
        save(project, 2)
        assert project.finished == 3
        assert project.load_chunk(3) is None


def test_a_chunk_damaged_during_the_run_is_made_again_with_those_after_it(tmp_path: Path) -> None:
    with Project.open(tmp_path, "walk", SETTINGS) as project:
        save(project, 0, 1, 2)
        project.chunk_path(1).write_bytes(b"")
        assert project.load_chunk(1) is None
        save(project, 1)
        assert project.finished == 2


def test_a_damaged_video_is_made_again_from_its_latents(tmp_path: Path) -> None:
    with Project.open(tmp_path, "walk", SETTINGS) as project:
        for index in range(3):
            save(project, index)
            save_video(project, index)
        project.segment_path(1).write_bytes(b"cut off")
    with Project.open(tmp_path, "walk", SETTINGS) as project:
        assert (project.finished, project.finished_segments) == (3, 1)
        assert project.segment_paths == [project.segment_path(0)]


def test_a_chunk_that_gave_no_picture_has_no_video(tmp_path: Path) -> None:
    with Project.open(tmp_path, "walk", SETTINGS) as project:
        save(project, 0, 1)
        save_video(project, 0)
        project.record_segment(1, 0)
    with Project.open(tmp_path, "walk", SETTINGS) as project:
        assert project.finished_segments == 2
        assert project.segment_paths == [project.segment_path(0)]


def test_what_is_not_in_the_manifest_is_not_believed(tmp_path: Path) -> None:
    with Project.open(tmp_path, "walk", SETTINGS) as project:
        save(project, 0)
        project.chunk_path(1).write_bytes(project.chunk_path(0).read_bytes())
        project.trace_path.open("a").write('{"chunk": 1, "half')
        (project.folder / ".manifest.json.part").write_text("half")
        (project.folder / "chunks" / ".00001.safetensors.part").write_text("half")
    with Project.open(tmp_path, "walk", SETTINGS) as project:
        assert project.finished == 1
        assert project.load_chunk(1) is None
        assert project.trace_path.read_text() == '{"chunk": 0}\n'
    assert not list((tmp_path / "walk").rglob(".*"))


def test_files_of_others_beside_the_selections_stay(tmp_path: Path) -> None:
    with Project.open(tmp_path, "walk", SETTINGS) as project:
        save(project, 0)
        for name in ("00000.safetensors", "00001.safetensors", "notes.txt"):
            project.selection_path(0).parent.mkdir(exist_ok=True)
            project.selection_path(0).with_name(name).write_bytes(b"lists")
        (project.selection_path(0).parent / "plots").mkdir()
    with Project.open(tmp_path, "walk", SETTINGS):
        pass
    assert sorted(path.name for path in (tmp_path / "walk" / "selections").iterdir()) == [
        "00000.safetensors",
        "notes.txt",
        "plots",
    ]


def test_a_manifest_that_cannot_be_read_is_set_aside_with_its_film(tmp_path: Path) -> None:
    with Project.open(tmp_path, "walk", SETTINGS) as project:
        save(project, 0)
    manifest = tmp_path / "walk" / "manifest.json"
    for number, content in enumerate(["{", "[]", '{"longreel_project": 1}', manifest.read_text().replace("7", "8")]):
        manifest.write_text(content)
        with Project.open(tmp_path, "walk", SETTINGS) as project:
            assert project.finished == 0
            assert "cannot be read" in project.report
            assert f"'walk.{number + 1}'" in project.report
    assert (tmp_path / "walk.1" / "chunks" / "00000.safetensors").exists()


def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    with Project.open(tmp_path, "walk", SETTINGS) as project:
        save(project, 0)
    manifest = tmp_path / "walk" / "manifest.json"
    content: dict[str, Any] = json.loads(manifest.read_text())
    content["chunks"][0]["index"] = "../../elsewhere"
    manifest.write_text(json.dumps(content))
    with Project.open(tmp_path, "walk", SETTINGS) as project:
        assert project.finished == 0


def test_a_film_of_a_newer_longreel_is_refused_and_left_alone(tmp_path: Path) -> None:
    with Project.open(tmp_path, "walk", SETTINGS):
        pass
    manifest = tmp_path / "walk" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"longreel_project": 1', '"longreel_project": 2'))
    before = files(tmp_path / "walk")
    with pytest.raises(ProjectError, match="newer LongReel: needed a film of version 1, got version 2"):
        Project.open(tmp_path, "walk", SETTINGS)
    assert files(tmp_path / "walk") == before


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "beach.jpg").write_bytes(b"sand")
    with pytest.raises(ProjectError, match=r"holds other files \(beach.jpg\)"):
        Project.open(tmp_path, "holiday", SETTINGS)
    assert files(tmp_path / "holiday") == {"beach.jpg": b"sand"}


def test_an_unwritable_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    with an_ordinary_user(), pytest.raises(ProjectError, match=r"Needed to write into .*got 'Permission denied'"):
        Project.open(locked, "walk", SETTINGS)
    assert not list(locked.iterdir())


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("a file")
    with pytest.raises(ProjectError, match="Pick an output folder"):
        Project.open(tmp_path / "output", "walk", SETTINGS)
    with pytest.raises(ProjectError, match="Pick an output folder"):
        Project.open(tmp_path, "output", SETTINGS)


def test_a_film_that_became_read_only_is_refused_before_any_work(tmp_path: Path) -> None:
    with Project.open(tmp_path, "walk", SETTINGS) as project:
        save(project, 0)
    (tmp_path / "walk").chmod(0o555)
    (tmp_path / ".walk.lock").chmod(0o666)
    tmp_path.chmod(0o777)
    with an_ordinary_user(), pytest.raises(ProjectError, match="Permission denied"):
        Project.open(tmp_path, "walk", SETTINGS)
    with Project.open(tmp_path, "walk", SETTINGS):
        pass


def test_a_full_disk_keeps_the_chunks_before(tmp_path: Path) -> None:
    with Project.open(tmp_path, "walk", SETTINGS) as project:
        save(project, 0)
        before = files(project.folder)
        with a_full_disk(1000), pytest.raises(ProjectError, match=os.strerror(errno.EFBIG)) as refusal:
            project.save_chunk(chunk(1), latents(1), seconds=0.5)
        assert "Make room on this disk and start again" in str(refusal.value)
        assert files(project.folder) == before
        assert project.finished == 1
        save(project, 1)
        assert project.finished == 2


def test_a_second_render_of_the_same_film_is_refused(tmp_path: Path) -> None:
    with Project.open(tmp_path, "walk", SETTINGS):
        with pytest.raises(ProjectError, match="another render is writing it"):
            Project.open(tmp_path, "walk", SETTINGS)
        with Project.open(tmp_path, "run", SETTINGS):
            pass
    with Project.open(tmp_path, "walk", SETTINGS):
        pass


def test_a_film_that_could_not_be_opened_is_not_left_locked(tmp_path: Path) -> None:
    (tmp_path / "walk").mkdir()
    (tmp_path / "walk" / "notes.txt").write_text("mine")
    with pytest.raises(ProjectError, match="holds other files"):
        Project.open(tmp_path, "walk", SETTINGS)
    (tmp_path / "walk" / "notes.txt").unlink()
    with Project.open(tmp_path, "walk", SETTINGS):
        pass


RENDER_FOR_EVER = """
import sys
from itertools import count
from pathlib import Path
import torch
from longreel.memory.chunks import Chunk
from longreel.memory.project import Project
project = Project.open(Path(sys.argv[1]), "walk", {"seed": 7})
for index in count(project.finished):
    frames = range(index, index + 1)
    project.save_chunk(Chunk(index, frames, 0), torch.full((1, 16, 1, 64, 64), float(index)), 0.1)
"""


def test_a_killed_render_leaves_only_whole_chunks_and_no_lock(tmp_path: Path) -> None:
    finished = 0
    for wait_s in (0.0, 0.013, 0.031):
        render = subprocess.Popen([sys.executable, "-c", RENDER_FOR_EVER, str(tmp_path)])
        wanted = tmp_path / "walk" / "chunks" / f"{finished + 3:05d}.safetensors"
        while not wanted.exists():
            assert render.poll() is None
            time.sleep(0.01)
        time.sleep(wait_s)
        render.send_signal(signal.SIGKILL)
        render.wait()
        with Project.open(tmp_path, "walk", {"seed": 7}) as project:
            assert project.finished >= finished + 3
            finished = project.finished
            assert not list(project.folder.rglob("*.part"))
            for index in range(finished):
                loaded = project.load_chunk(index)
                assert loaded is not None
                assert torch.equal(loaded, torch.full((1, 16, 1, 64, 64), float(index)))


def test_chunks_and_videos_out_of_turn_are_refused(tmp_path: Path) -> None:
    with Project.open(tmp_path, "walk", SETTINGS) as project:
        with pytest.raises(ValueError, match="needed chunk 0, got 1"):
            save(project, 1)
        with pytest.raises(ValueError, match="needed segment 0 of 0, got 0"):
            project.record_segment(0, 4)
        save(project, 0, 1)
        with pytest.raises(ValueError, match="needed segment 0 of 2, got 1"):
            project.record_segment(1, 4)


def test_latents_that_do_not_fit_their_chunk_are_refused(tmp_path: Path) -> None:
    with Project.open(tmp_path, "walk", SETTINGS) as project:
        for wrong in (latents(0)[0], latents(0)[:, :, :2], latents(0).half()):
            with pytest.raises(ValueError, match=r"float32 latents \[1, C, 3, H, W\]"):
                project.save_chunk(chunk(0), wrong, seconds=0.5)


def test_settings_that_are_no_json_are_refused(tmp_path: Path) -> None:
    for wrong in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises((TypeError, ValueError), match="JSON"):
            Project.open(tmp_path, "walk", wrong)
    assert not list(tmp_path.iterdir())
