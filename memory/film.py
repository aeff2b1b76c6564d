"""Pictures on disk: a closed video per chunk, the film joined from them without re-encoding, and a sheet of stills."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
import torch
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .picture.words import fitting
from .whole_file import whole_file

Pictures: TypeAlias = NDArray[np.uint8]
"""Pictures [N, H, W, 3] or one picture [H, W, 3], red first, 0 to 255."""

_BROADCAST = tuple(Fraction(whole * 1000, 1001) for whole in (24, 30, 60))  # written 23.976 or 23.98, 29.97, 59.94
_BROADCAST_SPREAD = 0.01
_WHITE = 255
MAX_CRF = 51


def frame_rate(fps: float | Fraction) -> Fraction:
    """Pictures a second as an exact fraction; the broadcast rates are recognised from their decimals.

    Raises ValueError for a rate that is not above 0.
    """
    if not float(fps) > 0:
        raise ValueError(f"A film needs more than 0 pictures a second, got {fps}. Wan makes 16.")
    for rate in _BROADCAST:
        if abs(float(fps) - float(rate)) < _BROADCAST_SPREAD:
            return rate
    return Fraction(fps).limit_denominator(1001)


def pictures_to_uint8(pictures: Tensor) -> Pictures:
    """Pictures `[N, H, W, 3]` of 0 to 1, as the decoder gives them, rounded to the nearest of 256 levels."""
    levels = (pictures.detach().float().nan_to_num() * _WHITE).round().clamp(0, _WHITE)
    return levels.to(device="cpu", dtype=torch.uint8).numpy()


def write_segment(path: Path, pictures: Pictures, fps: float | Fraction, *, crf: int = 18) -> None:
    """Write pictures `[N, H, W, 3]` as one closed H.264 video (yuv420p, BT.709), whole or not at all.

    A lower `crf` (0 to 51) looks better and takes more room. The same pictures give the same bytes. Raises ValueError
    for pictures of odd size or of another kind, ProjectError where the disk refuses.
    """
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8 or not len(pictures):
        raise ValueError(
            f"A video needs at least one picture, uint8 [N, H, W, 3], got {pictures.dtype} {list(pictures.shape)}."
        )
    height, width = pictures.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"A video needs even sizes, got {width}x{height}. Make width and height multiples of 16.")
    if not 0 <= crf <= MAX_CRF:
        raise ValueError(f"A video needs a crf of 0 to {MAX_CRF}, got {crf}. 18 looks like the original.")
    rate = frame_rate(fps)
    with whole_file(path) as part, av.open(str(part), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # Without B pictures packets are shown in the order they are stored, so joining only has to shift times. One
        # thread, here and for colours: the same pictures have to give the same bytes on every machine.
        stream.options = {"crf": str(crf), "bf": "0", "preset": "medium"}
        codec = stream.codec_context
        codec.thread_count = 1
        codec.time_base = 1 / rate
        codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
        codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        colours = VideoReformatter()
        for number, picture in enumerate(pictures):
            frame = colours.reformat(
                av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                threads=1,
            )
            frame.pts, frame.time_base = number, 1 / rate
            _mux(container, stream.encode(frame))
        _mux(container, stream.encode())


def _mux(container: av.container.OutputContainer, packets: Sequence[av.Packet[Any]]) -> None:
    for packet in packets:
        packet.duration = 1  # the last picture lasts as long as the others, also where it is the only one
        container.mux(packet)


def join_segments(paths: Sequence[Path], out: Path) -> int:
    """Join segments into one mp4 that starts playing while it loads, packet by packet, and give its pictures' number.

    Raises ValueError where the segments do not have the same size, rate and encoding, ProjectError where the disk
    refuses.
    """
    if not paths:
        raise ValueError("A film needs at least one segment, got none. Render a chunk with a VAE connected.")
    pictures = 0
    ticks = 0
    with whole_file(out) as part, av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as film:
        stream = None
        for path in paths:
            with av.open(str(path)) as segment:
                source = segment.streams.video[0]
                if stream is None:
                    stream = film.add_stream_from_template(source)
                    stream.time_base = source.time_base
                    first = _encoding(source)
                if _encoding(source) != first:
                    raise ValueError(
                        f"The segments of a film need the same size, rate and encoding, but {path.name} differs from "
                        f"{paths[0].name}. Queue the film under another project name."
                    )
                for packet in segment.demux(source):
                    if packet.dts is None:  # the empty packet at the end
                        continue
                    packet.pts = packet.dts = ticks
                    ticks += packet.duration or 0
                    packet.stream = stream
                    film.mux(packet)
                    pictures += 1
    return pictures


def _encoding(stream: av.VideoStream) -> tuple[int, int, Fraction | None, bytes | None]:
    codec = stream.codec_context
    return codec.width, codec.height, stream.time_base, codec.extradata


def read_pictures(path: Path) -> Iterator[Pictures]:
    """The pictures `[H, W, 3]` of a video, one after the other."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)


@dataclass(frozen=True, slots=True)
class SheetRow:
    """Stills that belong together, such as those of a shot: a title above them and a caption under each."""

    title: str
    pictures: Sequence[Pictures]
    captions: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.captions) != len(self.pictures):
            raise ValueError(f"A row needs a caption a picture, got {len(self.captions)} for {len(self.pictures)}.")


PICTURE_WIDTH = 320  # a tiny film is enlarged to this, a big one reduced
MARGIN = 16
TITLE_SIZE, CAPTION_SIZE = 24, 18
_PAPER, _INK, _GREY = (250, 250, 248), (24, 24, 24), (96, 96, 96)


def contact_sheet(rows: Sequence[SheetRow], columns: int) -> Image.Image:
    """One image to look a film over: a title a row, its stills beside each other, `columns` of them before a new line.

    Raises ValueError without pictures, or with fewer than one column.
    """
    pictures = [picture for row in rows for picture in row.pictures]
    if not pictures or columns < 1:
        raise ValueError(f"A contact sheet needs pictures and columns, got {len(pictures)} and {columns}.")
    height, width = pictures[0].shape[:2]
    cell = (PICTURE_WIDTH, round(PICTURE_WIDTH * height / width))
    title_font, caption_font = ImageFont.load_default(TITLE_SIZE), ImageFont.load_default(CAPTION_SIZE)
    line_height = cell[1] + CAPTION_SIZE + MARGIN + MARGIN // 2
    title_height = TITLE_SIZE + MARGIN
    sheet_width = MARGIN + columns * (cell[0] + MARGIN)
    lines = sum(ceil(len(row.pictures) / columns) for row in rows)
    sheet = Image.new("RGB", (sheet_width, MARGIN + len(rows) * title_height + lines * line_height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for row in rows:
        draw.text((MARGIN, top), fitting(row.title, title_font, sheet_width - 2 * MARGIN), _INK, title_font)
        top += title_height
        for number, (picture, caption) in enumerate(zip(row.pictures, row.captions, strict=True)):
            left = MARGIN + number % columns * (cell[0] + MARGIN)
            line_top = top + number // columns * line_height
            sheet.paste(Image.fromarray(picture).resize(cell, Image.Resampling.BICUBIC), (left, line_top))
            below = (left, line_top + cell[1] + MARGIN // 4)
            draw.text(below, fitting(caption, caption_font, cell[0]), _GREY, caption_font)
        top += ceil(len(row.pictures) / columns) * line_height
    return sheet
