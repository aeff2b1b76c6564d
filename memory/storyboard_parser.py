"""The storyboard as an artist writes it.

    # A line that begins with # is a note.
    style: watercolour, soft light
    pin: 2.5s
    veto: shot 2, 30s-34s
    @anna: a girl in a red coat
    @ben: an old fisherman with a white beard

    [0s-5s] @anna walks through the village.
      A text may go on over several lines.
    [5s-12.5s, seed 42] @ben mends a net. @anna's dog watches him.
    [1:05, recache] The storm begins.
    [4s, seed 7, blend 1s] @anna runs home.

A shot begins on a new line with its time in brackets: `[from-to]`, or `[length]` to follow the shot before it. Times
are seconds (`5s`, `2.5s`) or minutes and seconds (`1:05`). After the time, each behind a comma and in any order: `seed
NUMBER`, and how the shot begins: `keep` (as without it), `recache`, `blend SECONDS`, `cut` or `cut clean`. `@name:
description` says once, on one line and anywhere, who returns; `style:` is added to every shot. Lines of `pin:` and
`veto:`, as many as one likes, name moments of the film that later shots always read, and never: times, stretches, shots.
Letter case does not matter in names and options.

Text without any times is a film too: one shot of 5 s, or one for each paragraph where lines of `---` stand between.

All errors are StoryboardError and name line, column, what was needed, what was found and a line that would do.
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from .characters import Character, find_mentions, name_end, name_key, needed_name
from .storyboard import (
    DEFAULT_SHOT_SECONDS,
    LARGEST_SEED,
    LONGEST_SHOT_SECONDS,
    ShotText,
    Storyboard,
    StoryboardError,
    Transition,
    format_seconds,
    make_storyboard,
    one_line,
    quoted,
    read_moment,
    read_seconds,
    read_transition,
)

EXAMPLE_SHOT = "[0s-5s] @anna walks through the village"
EXAMPLE_OPTIONS = "[5s, seed 42, recache] @anna walks through the village"
EXAMPLE_CHARACTER = "@anna: a girl in a red coat"
EXAMPLE_STYLE = "style: watercolour, soft light"
EXAMPLE_MOMENTS = "pin: 2.5s, shot 1"

_BYTE_ORDER_MARK = "\ufeff"
_JSON_START = re.compile(r'\s*(?:\{|\[\s*["{])')
_LINE_END = re.compile(r"\r\n|\r|\n")
_RULER = re.compile(r"-{3,}")
_STYLE = re.compile(r"style\s*:", re.IGNORECASE)
_MOMENTS = re.compile(r"(pin|veto)\s*:", re.IGNORECASE)
_SEED = re.compile(r"[0-9]{1,20}")
_TIME_IN_TEXT = re.compile(r"\[\s*(?:[0-9]+:[0-9]|[0-9.]+\s*s\b)", re.IGNORECASE)
_NEEDED_TIME = "a time such as 5s, 2.5s or 1:05, and the text after the ]"


def read_storyboard(text: str) -> Storyboard:
    """The storyboard that a text describes, JSON or not: `{`, `["` and `[{` begin JSON; raises StoryboardError."""
    if _JSON_START.match(text.removeprefix(_BYTE_ORDER_MARK)):
        return Storyboard.from_json(text.removeprefix(_BYTE_ORDER_MARK))
    return parse_storyboard(text)


def parse_storyboard(text: str) -> Storyboard:
    """The storyboard that is written in the form above, in time linear in its length; raises StoryboardError."""
    lines = _LINE_END.split(text.removeprefix(_BYTE_ORDER_MARK))
    reader = _Reader(has_times=any(line.lstrip().startswith("[") for line in lines))
    for number, line in enumerate(lines, start=1):
        reader.take(_Part(line, number, 1).cut(0))
    return reader.storyboard()


class _Part(NamedTuple):
    """A piece of the text that knows where it stands; line and column count from 1."""

    text: str
    line: int
    column: int

    def cut(self, start: int, end: int | None = None) -> _Part:
        """The characters from start to end, without the spaces around them."""
        text = self.text[start:end]
        return _Part(text.strip(), self.line, self.column + start + len(text) - len(text.lstrip()))

    def split(self, marks: str) -> list[_Part]:
        """What stands between the marks."""
        at = [-1, *(i for i, character in enumerate(self.text) if character in marks), len(self.text)]
        return [self.cut(before + 1, after) for before, after in pairwise(at)]

    def error(self, needed: str, example: str, got: str | None = None) -> StoryboardError:
        place = f"line {self.line}, column {self.column}"
        found = quoted(self.text) if got is None else got
        return StoryboardError(place, needed=needed, got=found, example=example, line=self.line, column=self.column)


class _Shot(NamedTuple):
    header: _Part
    seconds: Fraction
    seed: int | None
    transition: Transition
    texts: list[_Part]


class _Reader:
    """What has been read so far."""

    def __init__(self, has_times: bool) -> None:
        self.has_times = has_times
        self.shots: list[_Shot] = []
        self.is_open = False  # does text belong to the last shot?
        self.clock = Fraction(0)
        self.characters: dict[str, tuple[Character, _Part]] = {}
        self.style: _Part | None = None
        self.moments: dict[str, list[_Part]] = {"pin": [], "veto": []}

    def take(self, line: _Part) -> None:
        """Read one more line."""
        if not line.text or line.text.startswith("#"):
            return
        if _RULER.fullmatch(line.text):
            self.is_open = False
        elif line.text.startswith("["):
            self._take_shot(line)
        elif style := _STYLE.match(line.text):
            self._take_style(line.cut(style.end()))
        elif kind := _MOMENTS.match(line.text):
            self._take_moments(kind[1].casefold(), line.cut(kind.end()))
        elif line.text.startswith("@") and line.text.startswith(":", name_end(line.text, 1)):
            self._take_character(line)
        else:
            self._take_text(line)

    def storyboard(self) -> Storyboard:
        """All that was read; raises StoryboardError for what only shows at the end."""
        if not self.shots:
            raise _Part("", 1, 1).error("at least one shot", EXAMPLE_SHOT, got="none")
        people = [character for character, _ in self.characters.values()]
        descriptions = [description for _, description in self.characters.values()]
        texts = [part for shot in self.shots for part in shot.texts]
        for part in [*descriptions, *([self.style] if self.style else []), *texts]:
            for mention in find_mentions(part.text):
                if name_key(mention.name) not in self.characters:
                    raise part.cut(mention.start, mention.end).error(needed_name(people), EXAMPLE_CHARACTER)
        shots = []
        for shot in self.shots:
            if not shot.texts:
                raise shot.header.error("the text of the shot after its time", EXAMPLE_SHOT)
            text = one_line(" ".join(part.text for part in shot.texts))
            shots.append(ShotText(text, float(shot.seconds), shot.seed, shot.transition, shot.header.line))
        pins, vetoes = (self._written(self.moments[kind]) for kind in ("pin", "veto"))
        return make_storyboard(shots, people, one_line(self.style.text) if self.style else "", pins, vetoes)

    def _written(self, moments: list[_Part]) -> str:
        """Moments of all lines of a kind in one list; raises StoryboardError for a shot that there is not."""
        for part in moments:
            shot = read_moment(part.text).shot
            if shot is not None and not 1 <= shot <= len(self.shots):
                raise part.error(f"one of the film's shots, from shot 1 to shot {len(self.shots)}", EXAMPLE_MOMENTS)
        return ", ".join(part.text for part in moments)

    def _take_text(self, line: _Part) -> None:
        if late := _TIME_IN_TEXT.search(line.text):
            raise line.cut(late.start()).error("every shot on a new line", EXAMPLE_SHOT)
        if not self.is_open:
            if self.has_times:
                raise line.error(
                    "the time of a shot before its text, or 'style:' for words that all share", EXAMPLE_SHOT
                )
            self._open(_Shot(line, Fraction(DEFAULT_SHOT_SECONDS), None, Transition(), []))
        self.shots[-1].texts.append(line)

    def _take_style(self, style: _Part) -> None:
        if self.style:
            raise style.error(f"one style; line {self.style.line} has one already", EXAMPLE_STYLE)
        if not style.text:
            raise style.error("the style after 'style:'", EXAMPLE_STYLE)
        self.style = style

    def _take_moments(self, kind: str, moments: _Part) -> None:
        for part in moments.split(",;"):
            if not part.text:
                continue
            try:
                read_moment(part.text)
            except ValueError as problem:
                raise part.error(str(problem), EXAMPLE_MOMENTS) from problem
            self.moments[kind].append(part)

    def _take_character(self, line: _Part) -> None:
        colon = name_end(line.text, 1)
        name, description = line.cut(1, colon), line.cut(colon + 1)
        if not name.text[:1].isalpha():
            raise name.error("a name that begins with a letter", EXAMPLE_CHARACTER)
        if not description.text:
            raise description.error(f"what @{name.text} looks like", EXAMPLE_CHARACTER)
        if name_key(name.text) in self.characters:
            first = self.characters[name_key(name.text)][1]
            raise name.error(f"every name described once; line {first.line} has it already", EXAMPLE_CHARACTER)
        self.characters[name_key(name.text)] = (Character(name.text, one_line(description.text)), description)

    def _take_shot(self, line: _Part) -> None:
        close = line.text.find("]")
        if close < 0:
            raise line.error("a ] after the time and the options of the shot", EXAMPLE_SHOT)
        time, *options = line.cut(1, close).split(",")
        seconds = self._read_time(time)
        if seconds > LONGEST_SHOT_SECONDS:
            raise time.error(f"a shot of at most {format_seconds(LONGEST_SHOT_SECONDS)}", EXAMPLE_SHOT)
        seed, transition = _read_options(options)
        self._open(_Shot(line.cut(0, close + 1), seconds, seed, transition, []))
        text = line.cut(close + 1)
        if text.text:
            self._take_text(text)

    def _open(self, shot: _Shot) -> None:
        self.shots.append(shot)
        self.is_open = True
        self.clock += shot.seconds

    def _read_time(self, time: _Part) -> Fraction:
        """The length of the shot; a range must begin where the shot before ends."""
        parts = time.split("-–—")  # noqa: RUF001
        if len(parts) > 2:
            raise time.error(_NEEDED_TIME, EXAMPLE_SHOT)
        times = [_read_seconds(part) for part in parts]
        if len(times) == 1:
            if not times[0]:
                raise time.error("a shot of more than 0s", EXAMPLE_SHOT)
            return times[0]
        start, end = times
        if end <= start:
            raise parts[1].error(f"an end later than {format_seconds(start)}", EXAMPLE_SHOT)
        if start != self.clock:
            what = "a gap before it" if start > self.clock else "an overlap with the shot before"
            clock = format_seconds(self.clock)
            raise parts[0].error(
                f"a start at {clock}, where the film has come to",
                f"[{clock}-{format_seconds(self.clock + end - start)}] @anna walks through the village",
                got=f"'{parts[0].text}', {what}",
            )
        return end - start


def _read_seconds(part: _Part) -> Fraction:
    seconds = read_seconds(part.text)
    if seconds is None:
        raise part.error(_NEEDED_TIME, EXAMPLE_SHOT)
    return seconds


def _read_options(options: list[_Part]) -> tuple[int | None, Transition]:
    seed: int | None = None
    transition: Transition | None = None
    for option in options:
        if option.text.casefold().startswith("seed"):
            number = option.cut(len("seed"))
            if seed is not None:
                raise option.error("one seed for a shot", EXAMPLE_OPTIONS)
            if not _SEED.fullmatch(number.text) or int(number.text) > LARGEST_SEED:
                raise number.error(f"a whole number from 0 to {LARGEST_SEED}", EXAMPLE_OPTIONS)
            seed = int(number.text)
            continue
        if transition is not None:
            raise option.error("one seed and one transition for a shot", EXAMPLE_OPTIONS)
        try:
            transition = read_transition(option.text)
        except ValueError as problem:
            raise option.error(f"seed NUMBER, or {problem}", EXAMPLE_OPTIONS) from problem
    return seed, transition or Transition()
