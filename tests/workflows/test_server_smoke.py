"""The real server, once in the short tier: it loads the pack, renders a film of two chunks, and ends with its command."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Iterator

import av
import psutil
import pytest
from PIL import Image
from served import Server, tiny_prompt

END_SECONDS = 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), "--no-frontend") as server:
        yield server


def test_the_server_loads_the_pack_and_renders_a_film(server: Server) -> None:
    assert "custom_nodes/longreel" in server.log
    ended = server.render(tiny_prompt("[1.5s] anna walks left in the meadow", "smoke"))
    (film,) = next(shown["images"] for shown in ended["outputs"].values() if "images" in shown)
    with av.open(server.output / film["subfolder"] / film["filename"]) as video:
        pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(pictures) == 4 * (6 - 1) + 1
    assert {picture.shape for picture in pictures} == {(48, 64, 3)}
    (inspection,) = next(shown["longreel"] for shown in ended["outputs"].values() if "longreel" in shown)
    assert [chunk["frames"] for chunk in inspection["chunks"]] == [[0, 3], [3, 6]]
    for thumbnail in inspection["thumbnails"]:
        with urllib.request.urlopen(server.url + thumbnail["src"]) as answer, Image.open(answer) as picture:
            assert picture.size == (96, 72)


if sys.platform == "linux":

    def test_a_killed_command_does_not_leave_its_server_behind(server: Server) -> None:
        """The last test: the server that it shares is gone afterwards."""
        (child,) = psutil.Process(server.process.pid).children()
        server.process.kill()
        child.wait(timeout=END_SECONDS)
        assert not child.is_running()
