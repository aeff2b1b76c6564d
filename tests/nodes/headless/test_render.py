"""Whole workflows through the host's own validation and execution, and the command that does it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
import pytest
from PIL import Image

from longreel.nodes.headless.boot import Host
from longreel.nodes.headless.cli import main
from longreel.nodes.headless.workflow import Prompt

if TYPE_CHECKING:
    from longreel.nodes.headless.runner import Runner

COMMAND = [sys.executable, "-c", "import sys; from longreel.nodes.headless.cli import main; sys.exit(main())"]


def picture(width: int = 32) -> Prompt:
    """A plain picture, saved: the smallest workflow of the host's own nodes."""
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": width, "height": 16, "batch_size": 1, "color": 255},
            "_meta": {"title": "Canvas"},
        },
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "picture"}},
    }


def picture_from_the_browser() -> dict[str, Any]:
    """The same as the browser saves it."""
    canvas = {
        "id": 1,
        "type": "EmptyImage",
        "title": "Canvas",
        "mode": 0,
        "inputs": [],
        "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [5]}],
        "widgets_values": [32, 16, 1, 255],
    }
    save = {
        "id": 2,
        "type": "SaveImage",
        "mode": 0,
        "inputs": [{"name": "images", "type": "IMAGE", "link": 5}],
        "outputs": [],
        "widgets_values": ["picture"],
    }
    return {"nodes": [canvas, save], "links": [[5, 1, 0, 2, 0, "IMAGE"]], "version": 0.4}


def long_sampling() -> Prompt:
    """A run of the tiny model that takes minutes unless it is stopped."""
    return {
        "1": {"class_type": "LongReelTinyStoryboardModel", "inputs": {}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a beach"}},
        "3": {
            "class_type": "EmptyHunyuanLatentVideo",
            "inputs": {"width": 128, "height": 96, "length": 33, "batch_size": 1},
        },
        "4": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["2", 0],
                "latent_image": ["3", 0],
                "seed": 1,
                "steps": 10000,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
        "5": {"class_type": "SaveLatent", "inputs": {"samples": ["4", 0], "filename_prefix": "never"}},
    }


def command(folder: Path, host: Host, workflow: dict[str, Any], *arguments: str) -> subprocess.Popen[str]:
    """`longreel render` as a user starts it, on the CPU."""
    (folder / "workflow.json").write_text(json.dumps(workflow))
    everything = ["render", "workflow.json", "--out", "films", "--base", "base", "--device", "cpu", *arguments]
    return subprocess.Popen(
        [*COMMAND, *everything], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_a_file_saved_by_the_browser_renders_and_the_files_are_named(tmp_path: Path, host: Host) -> None:
    process = command(tmp_path, host, picture_from_the_browser(), "--set", "Canvas.width=48")
    said, log = process.communicate()
    assert process.returncode == 0, log
    (saved,) = [Path(line) for line in said.splitlines() if line.endswith(".png")]
    assert saved.parent == tmp_path / "films"
    with Image.open(saved) as image:
        assert image.size == (48, 16)
        assert json.loads(image.info["workflow"])["nodes"][0]["title"] == "Canvas"
    assert "1 Canvas (EmptyImage)" in log


def test_ctrl_c_stops_a_render_through_the_host_and_exits_with_130(tmp_path: Path, host: Host) -> None:
    process = command(tmp_path, host, long_sampling())
    assert process.stderr is not None
    for line in process.stderr:
        if "KSampler" in line:
            break
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 130
    assert log.strip() == "Stopped. What was finished is kept."


def test_an_unusable_workflow_file_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "workflow.json").write_text("{")
    assert main(["render", str(tmp_path / "workflow.json")]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_the_same_workflow_gives_the_same_prompt_in_both_forms(runner: Runner) -> None:
    from longreel.nodes.headless.workflow import to_prompt

    info = runner.object_info()
    from_browser, from_api = to_prompt(picture_from_the_browser(), info), to_prompt(picture(), info)
    assert {key: node["inputs"] for key, node in from_browser.items()} == {
        key: node["inputs"] for key, node in from_api.items()
    }


def test_our_nodes_are_loaded_by_the_hosts_own_loader(runner: Runner) -> None:
    info = runner.object_info()["LongReelStoryboard"]
    assert info["python_module"].startswith("custom_nodes.")


def test_a_run_announces_its_files_and_events(runner: Runner, tmp_path: Path) -> None:
    events: list[str] = []
    runner.report = lambda event, data: events.append(event)
    rendered = runner.run(picture())
    assert [path.parent for path in rendered.files] == [Path(folder_paths.get_output_directory())]
    assert all(path.is_file() for path in rendered.files)
    assert {"executing", "executed", "execution_success"} <= set(events)


def test_a_refused_workflow_names_each_node_and_what_is_wrong(runner: Runner) -> None:
    from longreel.nodes.headless.runner import RenderError

    with pytest.raises(RenderError, match=r"1 Canvas \(EmptyImage\): .*width") as caught:
        runner.run(picture(width=-5))
    assert "refuses this workflow" in str(caught.value)


def test_a_node_of_an_unknown_type_is_named(runner: Runner) -> None:
    from longreel.nodes.headless.runner import RenderError

    prompt = picture()
    prompt["1"]["class_type"] = "NoSuchNode"
    with pytest.raises(RenderError, match="Canvas"):
        runner.run(prompt)


def test_a_failing_node_is_named_with_its_error(runner: Runner) -> None:
    from longreel.nodes.headless.runner import RenderError

    prompt = picture()
    prompt["2"]["inputs"]["filename_prefix"] = "../../outside"
    with pytest.raises(RenderError, match="2 SaveImage: "):
        runner.run(prompt)
