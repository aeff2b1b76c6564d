"""The storyboard as a value: shots with their prompts, characters and one style, and its JSON form.

How a storyboard is written as text stands in `storyboard_parser.py`. The JSON form says the same:

    {"longreel_storyboard": 1,
     "style": "watercolour, soft light",
     "characters": [{"name": "anna", "description": "a girl in a red coat"}],
     "shots": [{"text": "@anna walks home", "seconds": 5.0, "seed": null, "transition": "keep"}],
     "pins": "12.5s", "vetoes": "shot 2, 30s-34s"}

A `plan` beside them, as the Storyboard node writes it, is not read: it follows from the rest. Two shorter forms are
read as well: a list of prompts or shots (5 s each by default), and MemFlow's `{"prompts": [...]}` (10 s a prompt).
What a prompt is made of stands in `characters.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from .characters import Character, add_sentence, expand, find_mentions, name_end, name_key, needed_name, with_names

JSON_VERSION = 1
DEFAULT_SHOT_SECONDS = 5.0
MEMFLOW_SHOT_SECONDS = 10.0  # the interactive benchmark switches prompts every 10 s
LONGEST_SHOT_SECONDS = 86_400.0  # one day: far above any film, far below what exhausts memory
LARGEST_SEED = 2**64 - 1  # ComfyUI's own limit

MOMENTS = "12.5s, shot 2, 30s-34s"
EXAMPLE_JSON = '{"longreel_storyboard": 1, "shots": [{"text": "a girl walks home", "seconds": 5}]}'

_TIME = re.compile(r"(?:([0-9]{1,4}):)?([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*(?:s|sec|seconds?)?", re.IGNORECASE)
_SHOT_NUMBER = re.compile(r"shot\s+([0-9]{1,6})", re.IGNORECASE)
_DASH = re.compile("[-–—]")  # noqa: RUF001
_MARKS = re.compile(r"[,;\n]")
_TRANSITIONS = ("keep", "recache", "blend", "cut", "cut clean")
_NEEDED_TRANSITION = "keep, recache, blend SECONDS, cut or cut clean"


class StoryboardError(ValueError):
    """A storyboard that cannot be read: where, what was needed, what was found, and a line that would do.

    `line` and `column` count from 1, in characters; they are None where a JSON file has only a path to show."""

    def __init__(
        self, place: str, *, needed: str, got: str, example: str, line: int | None = None, column: int | None = None
    ) -> None:
        super().__init__(f"Storyboard, {place}: needed {needed}; got {got}. Example: {example}")
        self.needed = needed
        self.got = got
        self.example = example
        self.line = line
        self.column = column


@dataclass(frozen=True, slots=True)
class Transition:
    """What happens to the memory when a shot begins; `seconds` is the length of a blend, 0 for all others."""

    kind: str = "keep"
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in _TRANSITIONS:
            raise ValueError(f"needed one of {', '.join(_TRANSITIONS)}; got {self.kind!r}; choose one of them")
        if (self.kind == "blend") != (self.seconds > 0):
            raise ValueError(f"needed seconds above 0 for a blend and 0 for others; got {self}; change the seconds")

    def __str__(self) -> str:
        return f"{self.kind} {format_seconds(self.seconds)}" if self.kind == "blend" else self.kind


@dataclass(frozen=True, slots=True)
class Shot:
    """One shot: `text` as written, `prompt` as it is encoded, and when it plays, in seconds of the storyboard.

    `seed` None means the film's own; `characters` are the names that the text mentions, in order; `line` is where the
    shot begins in the text that it was read from (None for JSON) and does not count when shots are compared."""

    text: str
    prompt: str
    start_seconds: float
    seconds: float
    seed: int | None = None
    transition: Transition = Transition()
    characters: tuple[str, ...] = ()
    line: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.text:
            raise ValueError("needed a text for the shot; got nothing; describe what is seen")
        if not 0 < self.seconds <= LONGEST_SHOT_SECONDS:
            raise ValueError(f"needed a shot of more than 0 s; got {self.seconds} s; give it a length")
        if self.seed is not None and not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"needed a seed from 0 to {LARGEST_SEED}; got {self.seed}; choose another")


@dataclass(frozen=True, slots=True)
class Storyboard:
    """A film as it is written: shots without gaps, the characters that return in them, and one style.

    `pins` and `vetoes` are lists of moments (`split_moments`) that later shots always read, and never."""

    shots: tuple[Shot, ...]
    characters: tuple[Character, ...] = ()
    style: str = ""
    pins: str = ""
    vetoes: str = ""

    def __post_init__(self) -> None:
        if not self.shots:
            raise ValueError("needed at least one shot; got none; write what is seen")

    def to_json(self) -> str:
        """The storyboard as JSON text that `from_json` reads back to an equal value."""
        data = {
            "longreel_storyboard": JSON_VERSION,
            "style": self.style,
            "characters": [{"name": c.name, "description": c.description} for c in self.characters],
            "shots": [
                {"text": s.text, "seconds": s.seconds, "seed": s.seed, "transition": str(s.transition)}
                for s in self.shots
            ],
            "pins": self.pins,
            "vetoes": self.vetoes,
        }
        return json.dumps(data, ensure_ascii=False, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Storyboard:
        """The storyboard that JSON text describes, in any of the three forms above; raises StoryboardError."""
        try:
            data: object = json.loads(text)
        except json.JSONDecodeError as problem:
            raise StoryboardError(
                f"line {problem.lineno}, column {problem.colno}",
                needed="one complete JSON value (of a MemFlow file one line)",
                got=f"{problem.msg!r}",
                example=EXAMPLE_JSON,
                line=problem.lineno,
                column=problem.colno,
            ) from problem
        except (ValueError, RecursionError) as problem:  # numbers of thousands of digits, thousands of brackets
            raise json_error("JSON", "plain JSON", f"{problem}") from problem
        return _from_data(data)


class ShotText(NamedTuple):
    """A shot as it was read, before names are expanded and starts are counted."""

    text: str
    seconds: float
    seed: int | None = None
    transition: Transition = Transition()
    line: int | None = None


class Moment(NamedTuple):
    """A whole shot, counted from 1, or what is seen from one time to another; both times are one for a single frame."""

    shot: int | None
    first: Fraction
    last: Fraction


def make_storyboard(
    shots: Iterable[ShotText], characters: Iterable[Character], style: str, pins: str = "", vetoes: str = ""
) -> Storyboard:
    """The storyboard of shots that follow one another, with prompts expanded; every mentioned name must be known."""
    people = tuple(characters)
    cast = {name_key(character.name): character for character in people}
    last_sentence = with_names(style, cast)
    clock = Fraction(0)  # exact: thousands of shots of 0.1 s must not drift
    made = []
    for shot in shots:
        prompt, names = expand(shot.text, cast)
        prompt = add_sentence(prompt, last_sentence)
        made.append(
            Shot(shot.text, prompt, float(clock), shot.seconds, shot.seed, shot.transition, names, line=shot.line)
        )
        clock += Fraction(str(shot.seconds))
    return Storyboard(tuple(made), people, style, pins, vetoes)


def one_line(text: str) -> str:
    """The text with every run of spaces, tabs and line ends as one space."""
    return " ".join(text.split())


def read_seconds(text: str) -> Fraction | None:
    """The exact seconds that `5s`, `2.5`, `12 sec` or `1:05` means; None if the text is not a time."""
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    minutes, seconds = match[1], Fraction(match[2])
    if minutes is None:
        return seconds
    return int(minutes) * 60 + seconds if seconds < 60 else None


def split_moments(text: str) -> list[str]:
    """The moments of a list, as they are written in it: behind commas, semicolons or on lines of their own."""
    return [part.strip() for part in _MARKS.split(text) if part.strip()]


def read_moment(text: str) -> Moment:
    """The moment that `12.5s`, `30s-34s` or `shot 2` means; raises ValueError with what was needed."""
    shot = _SHOT_NUMBER.fullmatch(text)
    if shot is not None:
        return Moment(int(shot[1]), Fraction(0), Fraction(0))
    times = [time for end in _DASH.split(text) if (time := read_seconds(end.strip())) is not None]
    if not 1 <= len(times) <= 2 or len(times) != len(_DASH.split(text)):
        raise ValueError("a time, two times or a shot")
    if times[0] > times[-1]:
        raise ValueError("two times, the earlier one first")
    return Moment(None, times[0], times[-1])


def read_transition(text: str) -> Transition:
    """The transition that `blend 1s` or `cut clean` means; raises ValueError with what was needed."""
    words = one_line(text).casefold()
    if words == "blend" or words.startswith("blend "):
        seconds = read_seconds(words.removeprefix("blend").strip())
        if not seconds:
            raise ValueError("the length of the blend, as in blend 1s")
        return Transition("blend", float(seconds))
    if words not in _TRANSITIONS:
        raise ValueError(_NEEDED_TRANSITION)
    return Transition(words)


def format_seconds(seconds: float | Fraction) -> str:
    """Seconds as they are written in a storyboard: `5s`, `2.5s`."""
    return f"{float(seconds):.6f}".rstrip("0").rstrip(".") + "s"


def quoted(text: str, longest: int = 40) -> str:
    """The text in quotes for an error message, cut when it is long; `nothing` when it is empty."""
    short = text if len(text) <= longest else text[: longest - 1] + "…"
    return f"'{short}'" if text else "nothing"


def json_error(place: str, needed: str, got: str) -> StoryboardError:
    """A StoryboardError for a place in a JSON value."""
    return StoryboardError(place, needed=needed, got=got, example=EXAMPLE_JSON)


def _from_data(data: object) -> Storyboard:
    if isinstance(data, list):
        return _from_parts(data, "", DEFAULT_SHOT_SECONDS, (), "")
    if not isinstance(data, dict):
        raise json_error("JSON", "a storyboard or a list of prompts", _shown(data))
    if "prompts" in data:
        _check_keys(data, "JSON", {"prompts"})
        return _from_parts(data["prompts"], "prompts", MEMFLOW_SHOT_SECONDS, (), "")
    version = data.get("longreel_storyboard")
    if version != JSON_VERSION or isinstance(version, bool):
        raise json_error("longreel_storyboard", f"version {JSON_VERSION}", _shown(version))
    _check_keys(data, "JSON", {"longreel_storyboard", "style", "characters", "shots", "pins", "vetoes", "plan"})
    style = one_line(_string(data.get("style", ""), "style", "the style as text"))
    marks = [_moments(data.get(key, ""), key) for key in ("pins", "vetoes")]
    return _from_parts(data.get("shots"), "shots", DEFAULT_SHOT_SECONDS, data.get("characters", []), style, *marks)


def _from_parts(
    rows: object, path: str, default_seconds: float, people: object, style: str, pins: str = "", vetoes: str = ""
) -> Storyboard:
    if not isinstance(rows, list) or not rows:
        raise json_error(path or "JSON", "a list with at least one shot", _shown(rows))
    if not isinstance(people, list | tuple):
        raise json_error("characters", "a list of characters", _shown(people))
    shots = [_shot(row, f"{path}[{index}]", default_seconds) for index, row in enumerate(rows)]
    cast: dict[str, Character] = {}
    for index, person in enumerate(people):
        character = _character(person, f"characters[{index}]")
        if name_key(character.name) in cast:
            raise json_error(f"characters[{index}].name", "every name once", quoted(character.name))
        cast[name_key(character.name)] = character
    written = [(f"{path}[{index}]", shot.text) for index, shot in enumerate(shots)]
    written += [(f"characters[{index}]", character.description) for index, character in enumerate(cast.values())]
    for place, text in [*written, ("style", style)]:
        for mention in find_mentions(text):
            if name_key(mention.name) not in cast:
                raise json_error(place, needed_name(cast.values()), quoted(f"@{mention.name}"))
    return make_storyboard(shots, cast.values(), style, pins, vetoes)


def _moments(value: object, place: str) -> str:
    parts = split_moments(_string(value, place, f"moments as text, as in {MOMENTS}"))
    for part in parts:
        try:
            read_moment(part)
        except ValueError as problem:
            raise json_error(place, f"{problem}, as in {MOMENTS}", quoted(part)) from problem
    return ", ".join(parts)


def _shot(row: object, place: str, default_seconds: float) -> ShotText:
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, dict):
        raise json_error(place, "a prompt or a shot", _shown(row))
    _check_keys(row, place, {"text", "seconds", "seed", "transition"})
    text = one_line(_string(row.get("text", ""), f"{place}.text", "the text of the shot"))
    if not text:
        raise json_error(f"{place}.text", "the text of the shot", "nothing")
    seconds, seed = row.get("seconds", default_seconds), row.get("seed")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= LONGEST_SHOT_SECONDS:
        raise json_error(f"{place}.seconds", "a number of seconds above 0, at most one day", _shown(seconds))
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED):
        raise json_error(f"{place}.seed", "a whole number from 0, or null", _shown(seed))
    written = _string(row.get("transition", "keep"), f"{place}.transition", _NEEDED_TRANSITION)
    try:
        transition = read_transition(written)
    except ValueError as problem:
        raise json_error(f"{place}.transition", str(problem), quoted(written)) from problem
    return ShotText(text, float(seconds), seed, transition)


def _character(row: object, place: str) -> Character:
    if not isinstance(row, dict):
        raise json_error(place, "a character with name and description", _shown(row))
    _check_keys(row, place, {"name", "description"})
    name = _string(row.get("name", ""), f"{place}.name", "a name")
    description = one_line(_string(row.get("description", ""), f"{place}.description", "a description"))
    if not name[:1].isalpha() or name_end(name, 0) != len(name):
        raise json_error(f"{place}.name", "one word that begins with a letter", quoted(name))
    if not description:
        raise json_error(f"{place}.description", "a description", "nothing")
    return Character(name, description)


def _check_keys(row: Mapping[str, object], place: str, known: set[str]) -> None:
    unknown = sorted(set(row) - known)
    if unknown:
        raise json_error(place, f"only {', '.join(sorted(known))}", quoted(unknown[0]))


def _shown(value: object) -> str:
    if isinstance(value, list | tuple | dict):
        return f"a {'list' if isinstance(value, list | tuple) else 'group'} of {len(value)}"
    return quoted(json.dumps(value, ensure_ascii=False))


def _string(value: object, place: str, needed: str) -> str:
    if not isinstance(value, str):
        raise json_error(place, needed, _shown(value))
    return value
