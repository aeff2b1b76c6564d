"""The characters of a storyboard: where a text mentions them, and the prompt that it becomes.

How a prompt is made. Every shot is encoded alone, so a name says nothing unless its description stands in the same
prompt. The first mention in a shot becomes `Anna, a girl in a red coat`, later ones `Anna`. The description stands at
the name because text encoders bind a word to its neighbours: in a shot with two people a list of descriptions at the
front mixes the coats up. The name stays because it is the rare word by which the memory finds her again. Commas, not
brackets: ComfyUI reads `(...)` as a weight. A mention that cannot carry a description (`@anna's coat`) leaves it
to the next one, or to a sentence of its own at the end. The style is the last sentence of every prompt.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

_SENTENCE_ENDS = ".!?…。！？"  # noqa: RUF001
_CLOSING_MARKS = "\"')]”’»"  # noqa: RUF001
_APOSTROPHES = ("'", "’")  # noqa: RUF001


@dataclass(frozen=True, slots=True)
class Character:
    """Somebody or something that returns: `name` as it follows the @, `description` as it is put into prompts."""

    name: str
    description: str

    @property
    def shown_name(self) -> str:
        """The name as it stands in a prompt: `old_man` is shown as `Old Man`."""
        words = self.name.replace("_", " ")
        return words.title() if words.islower() else words


class Mention(NamedTuple):
    """`text[start:end]` is an @ and the name after it."""

    start: int
    end: int
    name: str


def find_mentions(text: str) -> list[Mention]:
    """Every @name in the text; an @ inside a word (an address) or before no letter (`@50mm`) is none."""
    mentions = []
    at = text.find("@")
    while at >= 0:
        end = name_end(text, at + 1)
        if text[at + 1 : at + 2].isalpha() and not (at and is_name_character(text[at - 1])):
            mentions.append(Mention(at, end, text[at + 1 : end]))
        at = text.find("@", end)
    return mentions


def name_end(text: str, start: int) -> int:
    """Where the name that begins at `start` ends; a hyphen is part of a name only between two of its letters."""
    end = start
    while end < len(text) and (is_name_character(text[end]) or text[end] == "-"):
        end += 1
    while end > start and text[end - 1] == "-":
        end -= 1
    return end


def is_name_character(character: str) -> bool:
    """True for letters, digits and underscore, and for the marks that some scripts write as characters of their own."""
    return character.isalnum() or character == "_" or unicodedata.category(character).startswith("M")


def name_key(name: str) -> str:
    """What two spellings of one name have in common: `@Zoë` is `@zoë`, however the accent is encoded."""
    return unicodedata.normalize("NFC", name).casefold()


def needed_name(characters: Iterable[Character]) -> str:
    """What an error says when an @name is not known: the names that are, and where a name ends."""
    known = ", ".join(f"@{character.name}" for character in characters) or "none"
    return f"a character that is described somewhere (known: {known}; a name ends at a space or a mark)"


def expand(text: str, cast: Mapping[str, Character]) -> tuple[str, tuple[str, ...]]:
    """The prompt that a text becomes, without style, and the names that it mentions; every name must be in the cast."""
    waiting: dict[str, Character] = {}  # mentioned, not described yet
    names: list[str] = []
    parts: list[str] = []
    done = 0
    for mention in find_mentions(text):
        character = cast[name_key(mention.name)]
        if character.name not in names:
            names.append(character.name)
            waiting[character.name] = character
        parts += [text[done : mention.start], character.shown_name]
        done = mention.end
        if character.name in waiting and not text.startswith(_APOSTROPHES, done):
            del waiting[character.name]
            parts.append(f", {_description(character, cast)}{',' if text.startswith(' ', done) else ''}")
    prompt = "".join([*parts, text[done:]])
    for character in waiting.values():
        prompt = add_sentence(prompt, f"{character.shown_name}: {_description(character, cast)}.")
    return prompt, tuple(names)


def _description(character: Character, cast: Mapping[str, Character]) -> str:
    return with_names(character.description, cast).rstrip(" .,;")


def with_names(text: str, cast: Mapping[str, Character]) -> str:
    """The text with every @name as the name alone."""
    parts, done = [], 0
    for mention in find_mentions(text):
        parts += [text[done : mention.start], cast[name_key(mention.name)].shown_name]
        done = mention.end
    return "".join([*parts, text[done:]])


def add_sentence(text: str, sentence: str) -> str:
    """Both as sentences of one text; a full stop is added where the first has no end of its own."""
    if not sentence:
        return text
    text = text.rstrip(" ,;:")
    closed = text.rstrip(_CLOSING_MARKS).endswith(tuple(_SENTENCE_ENDS))
    return f"{text}{' ' if closed else '. '}{sentence}"
