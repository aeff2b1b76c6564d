"""Segments, the film joined from them, and the contact sheet."""

from __future__ import annotations

import resource
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from longreel.memory.film import (
    Pictures,
    SheetRow,
    contact_sheet,
    frame_rate,
    join_segments,
    pictures_to_uint8,
    read_pictures,
    write_segment,
)
from longreel.memory.whole_file import ProjectError

LENGTHS = (9, 8, 1, 16)
COLOUR_LOSS = 4  # levels of 255 that yuv420p and the encoder may take from a plain surface


def moving_pictures(count: int, first: int = 0, height: int = 48, width: int = 64) -> Pictures:
    y, x = np.mgrid[:height, :width]
    times = range(first, first + count)
    return np.stack([np.stack([3 * x + 5 * t, 4 * y, x + y + t], axis=-1) % 256 for t in times]).astype(np.uint8)


def all_pictures(path: Path) -> Pictures:
    return np.stack(list(read_pictures(path)))


def write_segments(folder: Path, fps: float | Fraction) -> list[Path]:
    paths = []
    for number, length in enumerate(LENGTHS):
        paths.append(folder / f"{number:05d}.mp4")
        write_segment(paths[-1], moving_pictures(length, 20 * number), fps)
    return paths


@pytest.mark.parametrize(
    ("fps", "rate"),
    [
        (16, Fraction(16)),
        (24, Fraction(24)),
        (5.0, Fraction(5)),
        (12.5, Fraction(25, 2)),
        (23.976, Fraction(24000, 1001)),
        (23.98, Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (Fraction(24000, 1001), Fraction(24000, 1001)),
    ],
)
def test_a_rate_is_exact_and_broadcast_rates_are_recognised(fps: float | Fraction, rate: Fraction) -> None:
    assert frame_rate(fps) == rate


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 0 pictures a second, got 0"):
        frame_rate(0)


def test_levels_are_rounded_and_what_is_no_number_is_black() -> None:
    row = torch.tensor([0.0, 1.0, 0.5, -1.0, 2.0, float("nan")]).reshape(1, 2, 1, 3)
    assert pictures_to_uint8(row).ravel().tolist() == [0, 255, 128, 0, 255, 0]
    every_level = torch.arange(256.0).div(255).reshape(1, 256, 1, 1).expand(1, 256, 1, 3)
    assert pictures_to_uint8(every_level)[0, :, 0, 0].tolist() == list(range(256))


def test_the_same_pictures_give_the_same_bytes(tmp_path: Path) -> None:
    pictures = moving_pictures(9)
    write_segment(tmp_path / "one.mp4", pictures, 16)
    write_segment(tmp_path / "two.mp4", pictures, 16)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


def test_a_segment_shows_its_pictures_in_their_colours(tmp_path: Path) -> None:
    pictures = np.zeros((5, 64, 64, 3), np.uint8)
    pictures[:, :32], pictures[:, 32:] = (200, 30, 40), (20, 180, 220)
    write_segment(tmp_path / "segment.mp4", pictures, 16)
    shown = all_pictures(tmp_path / "segment.mp4").astype(int)
    assert shown.shape == pictures.shape
    for y in (8, 56):
        assert np.abs(shown[:, y, 8] - pictures[:, y, 8]).max() <= COLOUR_LOSS
    with av.open(str(tmp_path / "segment.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.pix_fmt, codec.colorspace, codec.color_range) == ("yuv420p", 1, 1)  # BT.709, limited


def test_a_lower_crf_looks_better(tmp_path: Path) -> None:
    pictures = moving_pictures(9)
    errors = []
    for crf in (10, 40):
        write_segment(tmp_path / "segment.mp4", pictures, 16, crf=crf)
        errors.append(np.abs(all_pictures(tmp_path / "segment.mp4").astype(int) - pictures).mean())
    assert errors[0] < errors[1]


@pytest.mark.parametrize("fps", [16, 24, 23.976])
def test_the_joined_film_shows_the_segments_bit_for_bit(tmp_path: Path, fps: float) -> None:
    paths = write_segments(tmp_path, fps)
    film = tmp_path / "film.mp4"
    assert join_segments(paths, film) == sum(LENGTHS)
    assert np.array_equal(all_pictures(film), np.concatenate([all_pictures(path) for path in paths]))


@pytest.mark.parametrize("fps", [16, 24, 23.976])
def test_the_joined_film_has_even_times_and_the_right_length(tmp_path: Path, fps: float) -> None:
    film = tmp_path / "film.mp4"
    join_segments(write_segments(tmp_path, fps), film)
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        times = [(packet.pts, packet.dts) for packet in container.demux(stream) if packet.dts is not None]
        step = 1 / (frame_rate(fps) * stream.time_base)
        assert times == [(number * step, number * step) for number in range(sum(LENGTHS))]
        assert stream.duration * stream.time_base == sum(LENGTHS) / frame_rate(fps)
        assert stream.average_rate == frame_rate(fps)


def test_a_joined_film_can_play_while_it_loads(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    join_segments(write_segments(tmp_path, 16), film)
    content = film.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_segments_of_different_size_or_rate_are_not_joined(tmp_path: Path) -> None:
    (first, *_) = write_segments(tmp_path, 16)
    write_segment(tmp_path / "wide.mp4", moving_pictures(5, width=80), 16)
    write_segment(tmp_path / "fast.mp4", moving_pictures(5), 24)
    for other in ("wide.mp4", "fast.mp4"):
        with pytest.raises(ValueError, match=f"but {other} differs from 00000.mp4"):
            join_segments([first, tmp_path / other], tmp_path / "film.mp4")
    with pytest.raises(ValueError, match="at least one segment"):
        join_segments([], tmp_path / "film.mp4")
    assert not (tmp_path / "film.mp4").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_segment_that_does_not_fit_on_the_disk_leaves_the_earlier_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "segment.mp4"
    write_segment(path, moving_pictures(3), 16)
    before = path.read_bytes()
    before_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before_limit[1]))
    try:
        with pytest.raises(ProjectError, match=r"Needed to write .*segment\.mp4.*Make room on this disk"):
            write_segment(path, moving_pictures(30), 16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before_limit)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (np.zeros((3, 47, 64, 3), np.uint8), "even sizes, got 64x47"),
        (np.zeros((0, 48, 64, 3), np.uint8), "at least one picture"),
        (np.zeros((3, 48, 64, 4), np.uint8), r"got uint8 \[3, 48, 64, 4\]"),
        (np.zeros((3, 48, 64, 3), np.float32), "got float32"),
    ],
)
def test_pictures_that_make_no_video_are_refused(tmp_path: Path, pictures: Pictures, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_segment(tmp_path / "segment.mp4", pictures, 16)
    assert not list(tmp_path.iterdir())


def test_a_quality_outside_the_encoders_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a crf of 0 to 51, got 52"):
        write_segment(tmp_path / "segment.mp4", moving_pictures(1), 16, crf=52)


def test_a_contact_sheet_shows_every_still_under_its_title(tmp_path: Path) -> None:
    red = np.full((48, 64, 3), (255, 0, 0), np.uint8)
    blue = np.full((48, 64, 3), (0, 0, 255), np.uint8)
    rows = [
        SheetRow("Shot 1: " + "a very long prompt " * 20, [red] * 5, [f"{n} s" for n in range(5)]),
        SheetRow("Shot 2", [blue], ["5 s"]),
    ]
    sheet = contact_sheet(rows, columns=4)
    sheet.save(tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    picture_pixels = 320 * 240
    assert (pixels == (255, 0, 0)).all(-1).sum() == 5 * picture_pixels
    assert (pixels == (0, 0, 255)).all(-1).sum() == picture_pixels
    assert (pixels.sum(-1) < 200).any(), "the titles are missing"
    assert sheet.width > 4 * 320
    assert sheet.height > 3 * 240


def test_a_contact_sheet_of_nothing_is_refused() -> None:
    still = np.zeros((48, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="needs pictures and columns"):
        contact_sheet([SheetRow("Shot 1", [], [])], columns=4)
    with pytest.raises(ValueError, match="needs pictures and columns"):
        contact_sheet([SheetRow("Shot 1", [still], ["0 s"])], columns=0)
    with pytest.raises(ValueError, match="a caption a picture, got 0 for 1"):
        SheetRow("Shot 1", [still], [])
