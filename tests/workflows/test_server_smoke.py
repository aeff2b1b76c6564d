"""The real server, once in the short tier: it loads the pack and renders a film of two chunks."""

from __future__ import annotations

from pathlib import Path

import av
from served import Server, tiny_prompt


def test_the_server_loads_the_pack_and_renders_a_film(tmp_path: Path) -> None:
    with Server(tmp_path, "--no-frontend") as server:
        assert "custom_nodes/longreel" in server.log
        ended = server.render(tiny_prompt("[1.5s] anna walks left in the meadow", "smoke"))
    (shown,) = ended["outputs"].values()
    (film,) = shown["images"]
    with av.open(server.output / film["subfolder"] / film["filename"]) as video:
        pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(pictures) == 4 * (6 - 1) + 1
    assert {picture.shape for picture in pictures} == {(48, 64, 3)}
