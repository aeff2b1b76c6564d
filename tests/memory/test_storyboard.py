"""The storyboard: its text, its JSON, its prompts, and every way to write it wrongly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longreel.memory import storyboard_parser
from longreel.memory.characters import Character, find_mentions
from longreel.memory.storyboard import (
    LARGEST_SEED,
    Shot,
    ShotText,
    Storyboard,
    StoryboardError,
    Transition,
    format_seconds,
    make_storyboard,
    one_line,
    read_seconds,
)
from longreel.memory.storyboard_parser import parse_storyboard, read_storyboard

DATA = Path(__file__).parents[1] / "data" / "storyboards.jsonl"
ANNA = "@anna: a girl in a red coat\n"


def prompts(text: str) -> list[str]:
    return [shot.prompt for shot in parse_storyboard(text).shots]


def refusal(text: str) -> str:
    try:
        read_storyboard(text)
    except StoryboardError as problem:
        return str(problem)
    return ""


def short(value: object) -> str:
    return repr(value)[:40]


def test_the_example_of_the_documentation_is_read_as_it_says() -> None:
    example = "\n".join(line for line in str(storyboard_parser.__doc__).splitlines()[2:14])
    film = parse_storyboard(example)
    assert [(s.start_seconds, s.seconds, s.seed, str(s.transition)) for s in film.shots] == [
        (0.0, 5.0, None, "keep"),
        (5.0, 7.5, 42, "keep"),
        (12.5, 65.0, None, "recache"),
        (77.5, 4.0, 7, "blend 1s"),
    ]
    assert [s.characters for s in film.shots] == [("anna",), ("ben", "anna"), (), ("anna",)]
    assert [s.line for s in film.shots] == [8, 10, 11, 12]
    assert film.style == "watercolour, soft light"
    assert (film.pins, film.vetoes) == ("2.5s", "shot 2, 30s-34s")
    assert film.shots[0].text == "@anna walks through the village. A text may go on over several lines."


def test_the_first_mention_in_each_shot_is_described_and_the_name_stays() -> None:
    film = ANNA + "@ben: an old man\n[5s] @anna and @ben walk. @Anna laughs.\n[5s] At home @anna sleeps, @ben reads"
    assert prompts(film) == [
        "Anna, a girl in a red coat, and Ben, an old man, walk. Anna laughs.",
        "At home Anna, a girl in a red coat, sleeps, Ben, an old man, reads",
    ]


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("@anna", "Anna, a girl in a red coat"),
        ("@anna, smiling", "Anna, a girl in a red coat, smiling"),
        ("We see @anna.", "We see Anna, a girl in a red coat."),
        ("@anna's dog barks", "Anna's dog barks. Anna: a girl in a red coat."),
        ("@anna’s dog barks at @anna!", "Anna’s dog barks at Anna, a girl in a red coat!"),  # noqa: RUF001
        ("Write to anna@mail.org @ 5 pm, shot @50mm", "Write to anna@mail.org @ 5 pm, shot @50mm"),
    ],
)
def test_a_mention_becomes_words_that_read_well(text: str, prompt: str) -> None:
    assert prompts(ANNA + "[5s] " + text) == [prompt]


def test_a_character_may_be_described_by_another_one_who_is_not_in_the_shot() -> None:
    film = parse_storyboard(ANNA + "@rex: the dog of @anna.\n[5s] @rex runs")
    assert film.shots[0].prompt == "Rex, the dog of Anna, runs"
    assert film.shots[0].characters == ("rex",)


def test_names_of_any_script_are_one_name_however_their_accents_are_encoded() -> None:
    film = parse_storyboard(
        "@Zoe\u0308: a singer\n@अनिता: a pilot\n@old_man: a sailor\n[5s] @zoë meets @अनिता, @old_man."
    )
    assert film.shots[0].characters == ("Zoe\u0308", "अनिता", "old_man")
    assert film.shots[0].prompt == "Zoe\u0308, a singer, meets अनिता, a pilot, Old Man, a sailor."


def test_the_style_is_the_last_sentence_of_every_prompt() -> None:
    film = "Style : ink, rain\n[5s] A cat\n[5s] A dog.\n[5s] “Stop!”\n[5s] A hen, "
    assert prompts(film) == ["A cat. ink, rain", "A dog. ink, rain", "“Stop!” ink, rain", "A hen. ink, rain"]


def test_one_pasted_prompt_is_a_film_of_five_seconds() -> None:
    film = parse_storyboard("A cat sits\n\nin the [warm] sun. #cat")
    assert [(s.text, s.seconds) for s in film.shots] == [("A cat sits in the [warm] sun. #cat", 5.0)]


def test_paragraphs_between_rulers_are_shots_of_five_seconds_each() -> None:
    film = parse_storyboard("style: ink\n---\nA cat\nsits\n---\n\n-----\nA dog")
    assert [(s.text, s.start_seconds, s.seconds) for s in film.shots] == [("A cat sits", 0.0, 5.0), ("A dog", 5.0, 5.0)]


def test_line_ends_tabs_marks_and_letter_case_do_not_matter() -> None:
    plain = parse_storyboard(ANNA + "[0s-5s, seed 7, cut clean] @anna walks\n[5s] on")
    assert plain == parse_storyboard(
        "\ufeff"
        + ANNA
        + "\t[ 0 S\t–\t0:05 ,CUT  Clean,  Seed 7 ]\t@anna \t walks  \r\r\n # note\r\n[5sec]\r\n\ton  \r\n"  # noqa: RUF001
    )
    assert plain.shots[0].transition == Transition("cut clean")


def test_lines_of_pins_and_vetoes_add_up_wherever_they_stand() -> None:
    film = parse_storyboard("pin: 1s\n[5s] a cat\nVeto : shot 2\nwalks; pin: 9s\n[5s] a dog\n pin: 2s-3s, 7s;\nveto:")
    assert (film.pins, film.vetoes) == ("1s, 2s-3s, 7s", "shot 2")
    assert [shot.text for shot in film.shots] == ["a cat walks; pin: 9s", "a dog"]


def test_times_are_exact_over_thousands_of_shots() -> None:
    film = parse_storyboard("\n".join(f"[{i / 10:.1f}s-{(i + 1) / 10:.1f}s] a" for i in range(3000)))
    assert film.shots[-1].start_seconds == 299.9
    assert {shot.seconds for shot in film.shots} == {0.1}


@pytest.mark.parametrize("unit", ["@", "[", "@a-", "a ", "\n[5s] x", "-", "[1", "é@", "\t"])
def test_a_megabyte_of_anything_is_read_or_refused_without_delay(unit: str) -> None:
    text = "a " + unit * (1_000_000 // len(unit))
    assert len(refusal(text)) < 400


ERRORS = [
    ("", 1, 1, "at least one shot", "none"),
    (" \n# a note\n" + ANNA, 1, 1, "at least one shot", "none"),
    ("[0s-5s] a\n[6s-8s] b", 2, 2, "start at 5s", "'6s', a gap"),
    ("[0s-5s] a\n  [ 4s-8s] b", 2, 5, "start at 5s", "'4s', an overlap"),
    ("[1s-5s] a", 1, 2, "start at 0s", "'1s', a gap"),
    ("[5s] a\n[9s-7s] b", 2, 5, "an end later than 9s", "'7s'"),
    ("[2s-2s] a", 1, 5, "an end later than 2s", "'2s'"),
    ("[0s] a", 1, 2, "more than 0s", "'0s'"),
    ("[9999:00] a", 1, 2, "at most 86400s", "'9999:00'"),
    ("[] a", 1, 2, "a time such as", "nothing"),
    ("[five] a", 1, 2, "a time such as", "'five'"),
    ("[-5s] a", 1, 2, "a time such as", "nothing"),
    ("[1-2-3] a", 1, 2, "a time such as", "'1-2-3'"),
    ("[0s-1:75] a", 1, 5, "a time such as", "'1:75'"),
    ("[5m] a", 1, 2, "a time such as", "'5m'"),
    ("[0s-5s: a girl] ", 1, 5, "the text after the ]", "'5s: a girl'"),
    (f"[{'9' * 5000}s] a", 1, 2, "a time such as", "'9999"),
    ("[5s a girl walks", 1, 1, "a ]", "'[5s a girl walks'"),
    ("[5s, slow] a", 1, 6, "seed NUMBER, or keep", "'slow'"),
    ("[5s,] a", 1, 5, "seed NUMBER, or keep", "nothing"),
    ("[5s, blend] a", 1, 6, "length of the blend", "'blend'"),
    ("[5s, blend 0s] a", 1, 6, "length of the blend", "'blend 0s'"),
    ("[5s, seed x7] a", 1, 11, "a whole number", "'x7'"),
    ("[5s, seed -1] a", 1, 11, "a whole number", "'-1'"),
    (f"[5s, seed {LARGEST_SEED + 1}] a", 1, 11, "a whole number", f"'{LARGEST_SEED + 1}'"),
    ("[5s, seed 1, seed 2] a", 1, 14, "one seed", "'seed 2'"),
    ("[5s, cut, keep] a", 1, 11, "one transition", "'keep'"),
    ("[5s]\n[5s] a", 1, 1, "the text of the shot", "'[5s]'"),
    ("A cat\n[5s] a", 1, 1, "the time of a shot before its text", "'A cat'"),
    ("[5s] a\n---\n b", 3, 2, "the time of a shot before its text", "'b'"),
    ("[5s] a [5s-9s] b", 1, 8, "every shot on a new line", "'[5s-9s] b'"),
    ("[5s] a\nthen @ben runs", 2, 6, "known: none", "'@ben'"),
    (ANNA + "[5s] @annabel", 2, 6, "known: @anna;", "'@annabel'"),
    ("[5s] a\n@rex: dog of  @ben", 2, 15, "known: @rex;", "'@ben'"),
    ("style: as @ben sees it\n[5s] a", 1, 11, "known: none", "'@ben'"),
    (ANNA + " @Anna: a nurse\n[5s] a", 2, 3, "described once; line 1", "'Anna'"),
    ("@7up: a can\n[5s] a", 1, 2, "begins with a letter", "'7up'"),
    ("@anna: \n[5s] a", 1, 7, "what @anna looks like", "nothing"),
    ("style:\n[5s] a", 1, 7, "the style", "nothing"),
    ("style: ink\nstyle: oil\n[5s] a", 2, 8, "one style; line 1", "'oil'"),
    ("pin: 1s, soon\n[5s] a", 1, 10, "a time, two times or a shot", "'soon'"),
    ("[5s] a\n veto:  4s-2s", 2, 9, "the earlier one first", "'4s-2s'"),
    ("PIN: shot 1, shot 3\n[5s] a\n[5s] b", 1, 14, "shot 1 to shot 2", "'shot 3'"),
]


@pytest.mark.parametrize(("text", "line", "column", "needed", "got"), ERRORS, ids=short)
def test_an_error_names_line_column_what_was_needed_and_found_and_an_example(
    text: str, line: int, column: int, needed: str, got: str
) -> None:
    with pytest.raises(StoryboardError) as caught:
        read_storyboard(text)
    problem = caught.value
    assert (problem.line, problem.column) == (line, column)
    assert needed in problem.needed
    assert problem.got.startswith(got)
    message = f"line {line}, column {column}: needed {problem.needed}; got {problem.got}. Example: {problem.example}"
    assert str(problem) == f"Storyboard, {message}"
    cast = "" if problem.example.startswith("@anna") else ANNA
    before = "[5s] A cat\n" if problem.needed.startswith("a start at 5s") else ""
    after = "" if problem.example.startswith("[") else "\nA cat"
    read_storyboard(cast + before + problem.example + after)


JSON_ERRORS = [
    ("{", "line 1, column 2", "one complete JSON value", "'Expecting"),
    ('{"prompts": ["a"]}\n{"prompts": ["b"]}', "line 2, column 1", "of a MemFlow file one line", "'Extra data'"),
    ('{"a": ' * 100_000, "JSON", "plain JSON", "maximum recursion"),
    ('{"prompts": [' + "9" * 5000 + "]}", "JSON", "plain JSON", "Exceeds the limit"),
    ("{}", "longreel_storyboard", "version 1", "'null'"),
    ('{"longreel_storyboard": 2}', "longreel_storyboard", "version 1", "'2'"),
    ('{"longreel_storyboard": 1}', "shots", "at least one shot", "'null'"),
    ('{"longreel_storyboard": 1, "shots": ["a"], "fps": 8}', "JSON", "only characters", "'fps'"),
    ('{"longreel_storyboard": 1, "shots": ["a"], "style": 3}', "style", "as text", "'3'"),
    ('{"longreel_storyboard": 1, "shots": ["a"], "characters": {}}', "characters", "a list", "a group of 0"),
    ('{"longreel_storyboard": 1, "shots": ["a"], "pins": "1s, x"}', "pins", "a time, two times or a shot", "'x'"),
    ('{"longreel_storyboard": 1, "shots": ["a"], "vetoes": ["1s"]}', "vetoes", "moments as text", "a list of 1"),
    ('{"prompts": []}', "prompts", "at least one shot", "a list of 0"),
    ('{"prompts": "a"}', "prompts", "a list", "'\"a\"'"),
    ('{"prompts": ["a", ""]}', "prompts[1].text", "the text", "nothing"),
    ('["a", 5]', "[1]", "a prompt or a shot", "'5'"),
    ('[{"text": "a", "length": 5}]', "[0]", "only seconds", "'length'"),
    ('[{"text": "a", "seconds": 0}]', "[0].seconds", "above 0", "'0'"),
    ('[{"text": "a", "seconds": NaN}]', "[0].seconds", "above 0", "'NaN'"),
    ('[{"text": "a", "seconds": true}]', "[0].seconds", "above 0", "'true'"),
    ('[{"text": "a", "seed": 1.5}]', "[0].seed", "a whole number", "'1.5'"),
    ('[{"text": "a", "transition": "fade"}]', "[0].transition", "keep, recache", "'fade'"),
    ('["a", "@ben runs"]', "[1]", "known: none", "'@ben'"),
]
CAST_ERRORS = [
    ("[3]", "characters[0]", "name and description", "'3'"),
    ('[{"name": "old man", "description": "a"}]', "characters[0].name", "one word", "'old man'"),
    ('[{"name": "ben"}]', "characters[0].description", "a description", "nothing"),
    (
        '[{"name": "ben", "description": "a"}, {"name": "Ben", "description": "b"}]',
        "characters[1].name",
        "every name once",
        "'Ben'",
    ),
    ('[{"name": "ben", "description": "son of @eve"}]', "characters[0]", "known: @ben;", "'@eve'"),
]


@pytest.mark.parametrize(
    ("text", "place", "needed", "got"),
    [
        *JSON_ERRORS,
        *(
            (f'{{"longreel_storyboard": 1, "shots": ["a"], "characters": {cast}}}', *rest)
            for cast, *rest in CAST_ERRORS
        ),
    ],
    ids=short,
)
def test_an_error_in_json_names_the_place_what_was_needed_and_found(
    text: str, place: str, needed: str, got: str
) -> None:
    with pytest.raises(StoryboardError) as caught:
        read_storyboard(text)
    assert str(caught.value).startswith(f"Storyboard, {place}: needed ")
    assert needed in caught.value.needed
    assert caught.value.got.startswith(got)
    read_storyboard(caught.value.example)


@pytest.mark.parametrize("script", DATA.read_text(encoding="utf-8").splitlines(), ids=short)
def test_a_real_script_imports_as_six_shots_of_ten_seconds(script: str) -> None:
    film = read_storyboard(script)
    assert [(shot.start_seconds, shot.seconds) for shot in film.shots] == [(10.0 * i, 10.0) for i in range(6)]
    assert [shot.prompt for shot in film.shots] == [one_line(prompt) for prompt in json.loads(script)["prompts"]]
    assert read_storyboard(film.to_json()) == film


def test_there_are_twenty_real_scripts() -> None:
    assert len(DATA.read_text(encoding="utf-8").splitlines()) == 20


def test_a_json_list_holds_prompts_and_shots() -> None:
    film = read_storyboard(' [ "a cat", {"text": "a dog", "seconds": 2, "seed": 3, "transition": "blend 0.5s"}]')
    assert film.shots == (
        Shot("a cat", "a cat", 0.0, 5.0),
        Shot("a dog", "a dog", 5.0, 2.0, 3, Transition("blend", 0.5)),
    )


def test_a_plan_beside_the_storyboard_is_not_read() -> None:
    film = parse_storyboard(ANNA + "[5s] @anna walks")
    assert read_storyboard(json.dumps({**json.loads(film.to_json()), "plan": {"fps": 16}})) == film


words = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).map(one_line).filter(bool)
plain_words = words.filter(lambda text: not find_mentions(text))
seconds = st.integers(1, 10_000_000).map(lambda n: n / 1000)
transitions = st.sampled_from(["keep", "recache", "cut", "cut clean"]).map(Transition) | seconds.map(
    lambda s: Transition("blend", s)
)
shots = st.builds(
    ShotText,
    st.lists(plain_words | st.sampled_from(["@anna", "@Zoë", "@anna's"]), min_size=1).map(" ".join).map(one_line),
    seconds,
    st.none() | st.integers(0, LARGEST_SEED),
    transitions,
).filter(lambda shot: {m.name for m in find_mentions(shot.text)} <= {"anna", "Zoë"})
cast = st.builds(lambda a, z: [Character("anna", a), Character("zoë", z)], plain_words, plain_words)
moments = st.sampled_from(["", "1s", "shot 1, 2.5s-1:05"])
storyboards = st.builds(
    make_storyboard,
    st.lists(shots, min_size=1, max_size=5),
    cast,
    st.just("") | plain_words,
    moments,
    moments,
)


@given(storyboards)
def test_json_brings_back_the_same_storyboard(film: Storyboard) -> None:
    assert Storyboard.from_json(film.to_json()) == film
    assert read_storyboard(film.to_json()) == film


@given(storyboards)
def test_shots_follow_one_another_and_keep_every_name(film: Storyboard) -> None:
    clock = 0.0
    for shot in film.shots:
        assert abs(shot.start_seconds - clock) < 1e-6  # the sum of floats drifts, start_seconds does not
        clock += shot.seconds
        for name in shot.characters:
            assert name.title() in shot.prompt


@given(st.text(st.characters(exclude_categories=("Cs",)) | st.sampled_from('[]@#-:,s0159\n{}"')))
def test_any_text_is_read_or_refused_with_a_place(text: str) -> None:
    if message := refusal(text):
        assert message.startswith("Storyboard, ")
    else:
        film = read_storyboard(text)
        assert read_storyboard(film.to_json()) == film


@given(seconds)
def test_seconds_are_written_as_they_are_read(value: float) -> None:
    assert float(read_seconds(format_seconds(value)) or 0) == value


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Storyboard(()),
        lambda: Shot("", "", 0.0, 5.0),
        lambda: Shot("a", "a", 0.0, 0.0),
        lambda: Shot("a", "a", 0.0, 5.0, seed=-1),
        lambda: Transition("fade"),
        lambda: Transition("blend"),
        lambda: Transition("cut", 1.0),
    ],
)
def test_a_value_that_makes_no_sense_cannot_be_made(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"needed .*; got .*; "):
        wrong()
