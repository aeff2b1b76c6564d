"""An inspection as one image: film strip, shots, a matrix of what each chunk read, and curves of what it cost.

Across is the film, a column a chunk; upward is what it remembers, a row a frame, the film's beginning at the bottom. It is the
picture that the browser draws, without what moves in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..inspection import BANK, PAGES, SINK, WINDOW, amounts_of
from .curves import draw_lanes
from .palette import BAND, GROUND, LINE, PIN, QUIET, TEXT, VETO, Colour, ramp_colour, reading_colour
from .words import film_seconds, fitting, short_time

LEFT, RIGHT, TOP = 84, 16, 10
TITLE, STRIP, SHOTS, TIMES, LANE, LANE_GAP, LEGEND = 26, 66, 22, 22, 58, 8, 34
LANES = 3
ABOVE_MATRIX = TOP + TITLE + STRIP + SHOTS + 6
BELOW_MATRIX = TIMES + LANES * (LANE + LANE_GAP) + LEGEND
SMALLEST_MARKED_CELL = 9
READABLE_CELL = 4, 2  # pixels across and up, with which single chunks and frames can still be told apart
MOST_PIXELS = 8192
FONT_SIZE = 13
RANK = {WINDOW: 0, SINK: 1, PAGES: 2, BANK: 3}  # what was chosen is shown before what is always read
_TIME_STEPS = (0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)

Cells = dict[tuple[int, int], tuple[int, float]]
"""Kind and amount of each chunk and frame."""


@dataclass(frozen=True, slots=True)
class PictureView:
    """What is drawn: pixels, and one group of layers or heads, or None for all of them.

    Raises ValueError for a picture that is too small to be read.
    """

    width: int = 1280
    height: int = 1024
    layer_group: int | None = None
    head_group: int | None = None

    def __post_init__(self) -> None:
        if self.width < 480 or self.height < 480:
            raise ValueError(
                f"The picture needs at least 480x480 pixels, got {self.width}x{self.height}. Turn its size up."
            )

    def check(self, inspection: Mapping[str, Any]) -> None:
        """Raises ValueError for a group that this film does not have."""
        for name, chosen in (("layer_group", self.layer_group), ("head_group", self.head_group)):
            groups = len(inspection[f"{name}s"])
            if chosen is not None and not 0 <= chosen < groups:
                raise ValueError(
                    f"'{name}' needs to be 0 (all) or a group of this film, which has {groups}, got {chosen + 1}."
                )


def readable_size(inspection: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height in which every chunk and frame of a film can be seen: more than the default for films of minutes."""
    needed = (
        LEFT + READABLE_CELL[0] * inspection["chunk_count"] + RIGHT,
        ABOVE_MATRIX + READABLE_CELL[1] * inspection["total_frames"] + BELOW_MATRIX,
    )
    least = PictureView()
    width, height = (min(MOST_PIXELS, max(pair)) for pair in zip(needed, (least.width, least.height), strict=True))
    return width, height


@dataclass(frozen=True, slots=True)
class _Box:
    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def bottom(self) -> int:
        return self.top + self.height

    @property
    def corners(self) -> tuple[int, int, int, int]:
        return self.left, self.top, self.right - 1, self.bottom - 1


def draw_inspection(
    inspection: Mapping[str, Any], thumbnails: Mapping[int, Image.Image], view: PictureView | None = None
) -> Image.Image:
    """The picture; `thumbnails` by chunk may be missing. Raises ValueError as `PictureView.check` does."""
    view = PictureView() if view is None else view
    view.check(inspection)
    return _Picture(inspection, thumbnails, view).drawn()


def readings(inspection: Mapping[str, Any], view: PictureView) -> Cells:
    """What the matrix shows: of several readings of a frame in a chunk the one that ranks highest."""
    cells: Cells = {}
    for chunk in inspection["chunks"]:
        read = [(frame, kind, amount) for frame, kind, amount, _, _ in chunk["reads"] if kind != PAGES]
        pages = amounts_of(inspection, chunk, view.layer_group, view.head_group)
        for frame, kind, amount in (*read, *((frame, PAGES, amount) for frame, amount in pages.items())):
            at = (chunk["index"], frame)
            if at not in cells or RANK[cells[at][0]] < RANK[kind]:
                cells[at] = (kind, amount)
    return cells


def matrix_colours(
    cells: Cells, chunks: int, frames: int, width: int, height: int, striped: bool = True
) -> NDArray[np.uint8]:
    """The matrix `[height, width, 3]`, at most a pixel a cell; where cells share one, the highest rank and amount shows.

    `striped` darkens every second cell of the sink.
    """
    pixels = np.full((height, width, 3), GROUND, dtype=np.uint8)
    shown: dict[tuple[int, int], tuple[int, float]] = {}
    for (chunk, frame), (kind, amount) in cells.items():
        x, y = chunk * width // chunks, height - 1 - frame * height // frames
        rank = (RANK[kind], amount)
        if shown.get((x, y), (-1, 0.0)) < rank:
            shown[x, y] = rank
            pixels[y, x] = reading_colour(kind, amount, striped and (x + y) % 2 == 1)
    return pixels


class _Picture:
    def __init__(self, inspection: Mapping[str, Any], thumbnails: Mapping[int, Image.Image], view: PictureView) -> None:
        self.inspection, self.thumbnails, self.view = inspection, thumbnails, view
        self.chunks: int = max(1, inspection["chunk_count"])
        self.frames: int = max(1, inspection["total_frames"])
        self.image = Image.new("RGB", (view.width, view.height), GROUND)
        self.draw = ImageDraw.Draw(self.image)
        self.font = ImageFont.load_default(FONT_SIZE)
        self.small = ImageFont.load_default(FONT_SIZE - 1)
        width = view.width - LEFT - RIGHT
        self.strip = _Box(LEFT, TOP + TITLE, width, STRIP)
        self.shots = _Box(LEFT, self.strip.bottom, width, SHOTS)
        self.matrix = _Box(LEFT, ABOVE_MATRIX, width, view.height - ABOVE_MATRIX - BELOW_MATRIX)
        frames = [chunk["frames"] for chunk in inspection["chunks"]]
        self.chunk_frames = frames[0][1] - frames[0][0] if frames else -(-self.frames // self.chunks)
        self.given = frames[0][0] - inspection["chunks"][0]["index"] * self.chunk_frames if frames else 0

    def drawn(self) -> Image.Image:
        self._title()
        self._strip()
        self._shots()
        cells = readings(self.inspection, self.view)
        self._matrix(cells)
        self._cuts()
        self._marks()
        self._times()
        lanes_top = self.matrix.bottom + TIMES
        draw_lanes(self.draw, self.inspection, self.x, (LEFT, lanes_top, self.matrix.right, LANE, LANE_GAP), self.small)
        self._legend(self.view.height - LEGEND + 6)
        return self.image

    def x(self, place: float) -> int:
        """Left edge of a chunk's column; also of a place between two chunks."""
        return LEFT + round(place * self.matrix.width / self.chunks)

    def frame_x(self, frame: int) -> int:
        return self.x(min(self.chunks, max(0.0, (frame - self.given) / self.chunk_frames)))

    def row(self, frame: int) -> int:
        """Lower edge of a frame's row."""
        return self.matrix.bottom - round(frame * self.matrix.height / self.frames)

    def _write(self, at: tuple[float, float], text: str, colour: Colour = QUIET, anchor: str = "lm") -> None:
        self.draw.text(at, text, colour, self.small, anchor=anchor)

    def _title(self) -> None:
        inspection, middle = self.inspection, TOP + TITLE // 2 - 2
        seconds = film_seconds(self.frames, inspection["fps"])
        made = len(inspection["chunks"])
        facts = [short_time(seconds), f"{made} of {self.chunks} chunks", inspection["memory"]]
        for name, chosen in (("layer", self.view.layer_group), ("head", self.view.head_group)):
            if chosen is not None:
                first, last = inspection[f"{name}_groups"][chosen]
                facts.append(f"{name} {first}" if first == last else f"{name}s {first} to {last}")
        name = fitting(inspection["project"], self.font, self.matrix.width // 2)
        self.draw.text((LEFT, middle), name, TEXT, self.font, anchor="lm")
        begin = LEFT + self.font.getlength(name) + (14 if name else 0)
        text = fitting(" · ".join(fact for fact in facts if fact), self.small, self.matrix.right - begin)
        self._write((begin, middle), text)

    def _strip(self) -> None:
        self.draw.rectangle(self.strip.corners, fill=(14, 14, 17))
        if not self.thumbnails:
            self._write((LEFT + self.strip.width / 2, self.strip.top + STRIP / 2), "no thumbnails", anchor="mm")
        shapes = [picture.width / picture.height for picture in self.thumbnails.values()]
        height = STRIP - 8
        slots = max(1, min(self.chunks, int(self.strip.width / (height * max(shapes, default=1.5) + 2))))
        for slot in range(slots):
            first, end = slot * self.chunks / slots, (slot + 1) * self.chunks / slots
            picture = self._nearest(first, end)
            left, right = self.x(first), self.x(end)
            if picture is None:
                continue
            scale = min(height / picture.height, (right - left - 2) / picture.width)
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            place = ((left + right - size[0]) // 2, self.strip.top + (STRIP - size[1]) // 2)
            self.image.paste(picture.resize(size, Image.Resampling.BICUBIC), place)
        self._write((LEFT - 8, self.strip.top + STRIP / 2), "film", anchor="rm")

    def _nearest(self, first: float, end: float) -> Image.Image | None:
        middle = int((first + end) / 2)
        near = sorted((abs(chunk - middle), chunk) for chunk in self.thumbnails if int(first) <= chunk < end)
        return self.thumbnails[near[0][1]] if near else None

    def _shots(self) -> None:
        for index, shot in enumerate(self.inspection["shots"]):
            left, right = self.frame_x(shot["frames"][0]), self.frame_x(shot["frames"][1])
            fill = (58, 59, 68) if index % 2 == 0 else (46, 47, 54)
            self.draw.rectangle((left, self.shots.top + 1, max(left, right - 1), self.shots.bottom - 2), fill=fill)
            text = fitting(f"{index + 1} {shot['prompt']}", self.small, right - left - 8)
            self._write((left + 5, self.shots.top + SHOTS / 2), text, TEXT)
        self._write((LEFT - 8, self.shots.top + SHOTS / 2), "shots", anchor="rm")

    def _matrix(self, cells: Cells) -> None:
        box = self.matrix
        size = min(self.chunks, box.width), min(self.frames, box.height)
        cell = min(box.width / self.chunks, box.height / self.frames)
        colours = matrix_colours(cells, self.chunks, self.frames, *size, striped=cell < SMALLEST_MARKED_CELL)
        scaled = Image.fromarray(colours).resize((box.width, box.height), Image.Resampling.NEAREST)
        self.image.paste(scaled, (box.left, box.top))
        self.draw.rectangle((box.left - 1, box.top - 1, box.right, box.bottom), outline=LINE)
        made = max((chunk["index"] + 1 for chunk in self.inspection["chunks"]), default=0)
        if made < self.chunks:
            left = self.x(made)
            self.draw.rectangle((left, box.top, box.right - 1, box.bottom - 1), fill=BAND)
            if box.right - left > 100:
                self._write(((left + box.right) / 2, box.top + box.height / 2), "not made yet", anchor="mm")
        if cell >= SMALLEST_MARKED_CELL:
            for (chunk, frame), (kind, amount) in cells.items():
                x, y = (self.x(chunk) + self.x(chunk + 1)) / 2, (self.row(frame) + self.row(frame + 1)) / 2
                dark = kind in (WINDOW, SINK) or amount >= 0.3
                draw_mark(self.draw, kind, x, y, min(7, cell * 0.4), (20, 20, 24) if dark else (245, 245, 245))

    def _cuts(self) -> None:
        box = self.matrix
        for shot in self.inspection["shots"][1:]:
            x, y = self.frame_x(shot["frames"][0]), self.row(shot["frames"][0])
            self.draw.line((x, box.top, x, box.bottom - 1), fill=LINE)
            self.draw.line((box.left, y, box.right - 1, y), fill=LINE)

    def _marks(self) -> None:
        pinned = {read[0] for chunk in self.inspection["chunks"] for read in chunk["reads"] if read[4] == "pin"}
        excluded = (chunk["excluded"].get("vetoed", []) for chunk in self.inspection["chunks"])
        vetoed = {frame for frames in excluded for frame in frames}
        for frames, colour in ((pinned, PIN), (vetoed, VETO)):
            for frame in frames:
                top, bottom = self.row(frame + 1), max(self.row(frame), self.row(frame + 1) + 2)
                self.draw.rectangle((LEFT - 6, top, LEFT - 3, bottom - 1), fill=colour)
                left, right = self.frame_x(frame), self.frame_x(frame + 1)
                self.draw.rectangle((left, self.strip.top, max(left + 1, right - 1), self.strip.top + 3), fill=colour)

    def _times(self) -> None:
        box, fps = self.matrix, self.inspection["fps"]
        whole = film_seconds(self.frames, fps)
        across = _time_step(whole, 64, box.width)
        for second in np.arange(0, whole, across).tolist():
            x = self.frame_x(_frame_of(second, fps))
            self.draw.line((x, box.bottom, x, box.bottom + 4), fill=LINE)
            if x < box.right - 20:
                self._write((max(x, LEFT + 10), box.bottom + 12), short_time(second), anchor="mm")
        up = _time_step(whole, 30, box.height)
        for second in np.arange(0, whole, up).tolist():
            y = self.row(_frame_of(second, fps))
            self.draw.line((LEFT - 10, y, LEFT - 7, y), fill=LINE)
            if y > box.top + 8:
                self._write((LEFT - 13, min(y, box.bottom - 7)), short_time(second), anchor="rm")
        if box.height > 120:
            self._axis_name(box)

    def _axis_name(self, box: _Box) -> None:
        text = "remembered"
        width = int(self.small.getlength(text)) + 2
        turned = Image.new("RGB", (width, FONT_SIZE + 4), GROUND)
        ImageDraw.Draw(turned).text((0, 0), text, QUIET, self.small)
        self.image.paste(turned.rotate(90, expand=True), (6, box.top + (box.height - width) // 2))

    def _legend(self, top: int) -> None:
        x, middle = float(LEFT), top + 9
        for kind, words in (
            (WINDOW, "window: the newest frames"),
            (SINK, "sink: the film's beginning"),
            (BANK, "bank: brought back whole"),
            (PAGES, "pages chosen:"),
        ):
            self.draw.rectangle((x, top + 2, x + 14, top + 16), fill=reading_colour(kind, 0.7 if kind == PAGES else 1))
            draw_mark(self.draw, kind, x + 7, middle, 5, (20, 20, 24))
            self._write((x + 21, middle), words)
            x += 21 + self.small.getlength(words) + 18
        x -= 8
        for step in range(90):
            self.draw.line((x + step, top + 3, x + step, top + 15), fill=ramp_colour((step / 89) ** 2))
        self._write((x - 2, middle), "", anchor="rm")
        self._write((x + 97, middle), "0 to 100 % of a frame")
        x += 97 + self.small.getlength("0 to 100 % of a frame") + 18
        for word, colour in (("pinned", PIN), ("vetoed", VETO)):
            if x + 60 < self.view.width:
                self.draw.rectangle((x, top + 2, x + 4, top + 16), fill=colour)
                self._write((x + 11, middle), word)
                x += 11 + self.small.getlength(word) + 16


def draw_mark(draw: ImageDraw.ImageDraw, kind: int, x: float, y: float, size: float, colour: Colour) -> None:
    """The mark of a kind around a point, so that no kind is told by its colour alone: square, stripes, diamond or dot."""
    if kind == BANK:
        draw.polygon([(x, y - size), (x + size, y), (x, y + size), (x - size, y)], fill=colour)
    elif kind == PAGES:
        radius = size * 0.62
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    elif kind == SINK:
        for line in (-0.7, 0.0, 0.7):
            draw.line((x - size * 0.8, y + line * size, x + size * 0.8, y + line * size), fill=colour)
    else:
        draw.rectangle((x - size * 0.3, y - size * 0.3, x + size * 0.3, y + size * 0.3), fill=colour)


def _time_step(whole: float, need: float, length: float) -> float:
    return next((step for step in _TIME_STEPS if whole / step * need <= length), whole)


def _frame_of(second: float, fps: float) -> int:
    return 0 if second == 0 else round((second * fps + 3) / 4)
