"""The shipped workflows: complete, tidy, convertible, and valid in the real host."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import execution
import folder_paths
import pytest
from PIL import Image
from shipped import API_FOLDER, ROOT, TINY, TINY_HUNYUAN, WORKFLOWS, check_written, read_json

from longreel.memory.storyboard_parser import read_storyboard
from longreel.memory.training.storyworld import ACTIONS, NAMES, PLACES, POSITIONS
from longreel.nodes.headless.workflow import Prompt, to_prompt
from longreel.nodes.host.build import TINY_ENCODER

if TYPE_CHECKING:
    from longreel.nodes.headless.runner import Runner

TITLE_HEIGHT = 30
FILE_KEYS = {
    "id", "revision", "last_node_id", "last_link_id", "nodes", "links", "groups", "config", "extra", "version",
}  # fmt: skip
NODE_KEYS = {
    "id", "type", "title", "pos", "size", "flags", "order", "mode", "inputs", "outputs", "properties", "widgets_values",
    "color", "bgcolor",
}  # fmt: skip
PROPERTY_KEYS = {"cnr_id", "ver", "Node name for S&R", "models"}
UNPUBLISHED = {"LongReelMemoryEncoderLoader": "memory_encoders", "LoraLoaderModelOnly": "loras"}
MODEL_LINK = re.compile(r"https://huggingface\.co/[^?#]+\.safetensors")
every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def object_info(runner: Runner) -> Iterator[dict[str, Any]]:
    """What the host says of its nodes when the files that the workflows name are in its folders; gone at the end."""
    placeholders: list[Path] = []
    for path in WORKFLOWS:
        for model in [*linked_models(read_json(path)), *unpublished_models(read_json(path))]:
            placeholder = Path(folder_paths.get_folder_paths(model["directory"])[0], model["name"])
            placeholder.parent.mkdir(parents=True, exist_ok=True)
            placeholder.touch()
            placeholders.append(placeholder)
    pictures = Path(folder_paths.get_input_directory())
    pictures.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48)).save(pictures / "example.png")
    folder_paths.filename_list_cache.clear()
    yield runner.object_info()
    for placeholder in placeholders:
        placeholder.unlink(missing_ok=True)
    folder_paths.filename_list_cache.clear()


def linked_models(workflow: dict[str, Any]) -> list[dict[str, str]]:
    return [model for node in workflow["nodes"] for model in node["properties"].get("models", [])]


def unpublished_models(workflow: dict[str, Any]) -> list[dict[str, str]]:
    """Files that an artist has to train: an encoder for a large model and its LoRA."""
    return [
        {"name": node["widgets_values"][0], "directory": UNPUBLISHED[node["type"]]}
        for node in workflow["nodes"]
        if node["type"] in UNPUBLISHED and node["widgets_values"][0] != TINY_ENCODER.name
    ]


def text_of(workflow: dict[str, Any]) -> str:
    board = next(node for node in workflow["nodes"] if node["type"] == "LongReelStoryboard")
    return str(board["widgets_values"][0])


def box(node: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a node with its title."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE_HEIGHT, x + width, y + height


def apart(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_these_workflows_ship() -> None:
    assert [path.stem for path in WORKFLOWS] == [
        "HunyuanVideo storyboard with a memory encoder",
        "HunyuanVideo storyboard",
        "Long storyboard - Wan 2.1 1.3B causal - 60 s",
        "Storyboard from a start image - Wan 2.1 1.3B causal",
        "Storyboard with a memory encoder - Wan 2.1 14B",
        "Tiny HunyuanVideo storyboard",
        "Tiny demo storyboard",
        "Tiny storyboard with a memory encoder",
    ]


@every_workflow
def test_the_browser_form_converts_to_the_stored_api_form(path: Path, object_info: dict[str, Any]) -> None:
    check_written(API_FOLDER / path.name, to_prompt(read_json(path), object_info))


@every_workflow
def test_the_host_accepts_the_stored_api_form(path: Path, object_info: dict[str, Any]) -> None:
    prompt: Prompt = read_json(API_FOLDER / path.name)
    valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt("shipped", prompt, None))
    assert (valid, error, node_errors) == (True, None, {})
    kinds = {prompt[node]["class_type"] for node in outputs}
    assert kinds - {"SaveVideo", "LongReelMemoryInspector"} == {"LongReelChunkedARSampler"}


@every_workflow
def test_links_agree_with_the_nodes_at_both_ends(path: Path, object_info: dict[str, Any]) -> None:
    workflow = read_json(path)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    ends = set()
    for link, source, output, target, slot, kind in workflow["links"]:
        given, taken = nodes[source]["outputs"][output], nodes[target]["inputs"][slot]
        assert given["type"] == taken["type"] == kind
        assert link in given["links"]
        assert link == taken["link"]
        ends.add(link)
    stated = {slot["link"] for node in nodes.values() for slot in node["inputs"]} - {None}
    assert stated == ends
    assert workflow["last_link_id"] == max(ends)
    assert workflow["last_node_id"] == max(nodes)


@every_workflow
def test_every_socket_and_widget_of_the_host_is_there_in_its_order(path: Path, object_info: dict[str, Any]) -> None:
    for node in read_json(path)["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        known = object_info[node["type"]]
        named = [name for section in ("required", "optional") for name in known["input"].get(section, {})]
        assert [slot["name"] for slot in node["inputs"]] == named
        assert [slot["type"] for slot in node["outputs"]] == known["output"]


@every_workflow
def test_there_are_no_stray_keys_and_no_paths_of_a_machine(path: Path) -> None:
    workflow = read_json(path)
    assert set(workflow) == FILE_KEYS
    assert workflow["version"] == 0.4
    assert workflow["extra"] == {}
    for node in workflow["nodes"]:
        assert set(node) <= NODE_KEYS
        assert set(node["properties"]) <= PROPERTY_KEYS
        ours = node["type"].startswith("LongReel")
        assert node["properties"]["cnr_id"] == ("longreel" if ours else "comfy-core")
        assert node["properties"]["ver"]
    assert not re.search(r"(^|[\s\"'(])(/[a-z]+/|[A-Za-z]:\\|~/)", path.read_text(encoding="utf-8"))


@every_workflow
def test_nodes_and_groups_lie_apart_and_read_from_left_to_right(path: Path) -> None:
    workflow = read_json(path)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for a, b in itertools.combinations(nodes.values(), 2):
        assert apart(box(a), box(b)), f"{a['type']} lies on {b['type']}"
    groups = [(x, y, x + width, y + height) for x, y, width, height in (g["bounding"] for g in workflow["groups"])]
    for first, second in itertools.combinations(groups, 2):
        assert apart(first, second)
    for node in nodes.values():
        left, top, right, bottom = box(node)
        around = [g for g in groups if g[0] <= left and g[1] <= top and right <= g[2] and bottom <= g[3]]
        touched = [g for g in groups if not apart(box(node), g)]
        assert touched == around, f"{node['type']} sticks out of its group"
        assert len(around) == (0 if not around else 1)
    for _, source, _, target, _, _ in workflow["links"]:
        assert nodes[source]["pos"][0] <= nodes[target]["pos"][0]


@every_workflow
def test_loaders_link_the_models_that_they_name(path: Path) -> None:
    for node in read_json(path)["nodes"]:
        if not node["type"].endswith("Loader") or node["type"] in UNPUBLISHED:
            continue
        models = node["properties"]["models"]
        assert models
        assert node["widgets_values"][: len(models)] == [model["name"] for model in models]
        for model in models:
            assert MODEL_LINK.fullmatch(model["url"])
            assert model["url"].endswith("/" + model["name"])
            assert model["directory"] in folder_paths.folder_names_and_paths


@every_workflow
def test_notes_tell_an_artist_what_to_change(path: Path) -> None:
    notes = [node["widgets_values"][0] for node in read_json(path)["nodes"] if node["type"] == "MarkdownNote"]
    assert len(notes) >= 2
    text = "\n".join(notes)
    assert "change" in text
    assert "seed" in text
    for model in linked_models(read_json(path)):
        assert f"[{model['name']}]({model['url']})" in text


@every_workflow
def test_what_nobody_has_published_is_said_to_be_so_and_how_it_is_made(path: Path) -> None:
    workflow = read_json(path)
    unpublished = unpublished_models(workflow)
    notes = "\n".join(node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    assert ("No encoder" in notes) == bool(unpublished)
    if unpublished:
        (guide,) = re.findall(r"\*\*([\w/]+\.md)\*\*", notes)
        assert (ROOT / guide).is_file()
        assert all(f"{model['directory']}/" in notes for model in unpublished)


@pytest.mark.parametrize(("path", "seconds"), [(TINY, 22.5), (TINY_HUNYUAN, 7.5)], ids=["Wan", "HunyuanVideo"])
def test_a_tiny_storyboard_has_six_shots_and_a_character_who_comes_back(path: Path, seconds: float) -> None:
    board = read_storyboard(text_of(read_json(path)))
    assert len(board.shots) == 6
    assert sum(shot.seconds for shot in board.shots) == seconds
    names = [shot.prompt.split()[0] for shot in board.shots]
    assert names[0] in names[2:]
    assert names[0] != names[1]


@pytest.mark.parametrize("path", [TINY, TINY_HUNYUAN], ids=lambda path: path.stem)
def test_a_tiny_storyboard_has_only_words_that_the_tiny_models_learned(path: Path) -> None:
    def one_of(words: Iterable[str]) -> str:
        return "(?:" + "|".join(words) + ")"

    learned = (
        f"{one_of(NAMES)} {one_of(ACTIONS)} {one_of(POSITIONS)} in the {one_of(PLACES)}(?:, camera pan (?:left|right))?"
    )
    for shot in read_storyboard(text_of(read_json(path))).shots:
        assert re.fullmatch(learned, shot.prompt)


def test_the_note_of_the_demo_tells_the_words_that_the_tiny_models_learned() -> None:
    note = next(node for node in read_json(TINY)["nodes"] if node["type"] == "MarkdownNote")["widgets_values"][0]
    told = set(re.findall("[a-z]+", note))
    assert {*ACTIONS, *POSITIONS, *PLACES} <= told
    assert set(NAMES) & told


def test_the_long_storyboard_is_a_minute_with_returning_characters() -> None:
    path = next(path for path in WORKFLOWS if path.stem.endswith("60 s"))
    board = read_storyboard(text_of(read_json(path)))
    assert sum(shot.seconds for shot in board.shots) == 60
    for character in board.characters:
        seen = [index for index, shot in enumerate(board.shots) if character.name in shot.characters]
        assert len(seen) >= 3
        assert any(later - earlier > 1 for earlier, later in itertools.pairwise(seen))
