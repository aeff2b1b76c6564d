"""Start ComfyUI in the browser, with LongReel's nodes in it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from .boot import Host, embedded_base, find_host, find_pack, pack_folder, use_cpu
from .embedded import HostError
from .stand_ins import unusable_packages

NAME = "serve"
FRONTEND_PACKAGE = "comfyui_frontend_package"
SECONDS_TO_STOP = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Address and folders; anything else goes to ComfyUI."""
    parser.add_argument("--port", type=int, default=8188, help="the port to listen on (default: 8188)")
    parser.add_argument(
        "--listen", default="127.0.0.1", metavar="ADDRESS", help="the address (default: this machine only)"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where files are saved")
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="ComfyUI's base folder: models, input, user")
    parser.add_argument("--no-frontend", action="store_true", help="serve the API only, without the page")
    parser.add_argument("comfy", nargs="*", metavar="-- ARGUMENTS", help="further arguments of ComfyUI's main.py")


def run(args: argparse.Namespace) -> int:
    """Run the server until it ends or is stopped; its exit code."""
    if not args.no_frontend and importlib.util.find_spec(FRONTEND_PACKAGE) is None:
        raise HostError(
            'The page of ComfyUI is not installed here. Install it (about 450 MB) with `pip install -e ".[serve]"` in '
            "LongReel's folder, or serve the API only with --no-frontend."
        )
    host = find_host()
    with tempfile.TemporaryDirectory(prefix="longreel-serve-") as scratch:
        command = [sys.executable, str(Path(__file__).with_name("server_process.py")), str(os.getpid()), str(host.path)]
        command += [",".join(unusable_packages()), *server_arguments(host, args, Path(scratch))]
        print(f"ComfyUI {host.version} ({host.reason}), starting on http://{args.listen}:{args.port}", flush=True)
        # In a session of its own a Ctrl-C reaches the server once, through us.
        server = subprocess.Popen(command, start_new_session=True)
        with ended_with_us(server):
            server.wait()
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


def server_arguments(host: Host, args: argparse.Namespace, scratch: Path) -> list[str]:
    """The arguments of ComfyUI's main.py: its own folders for a user's ComfyUI, ours for LongReel's copy."""
    arguments = ["--listen", args.listen, "--port", str(args.port)]
    base = args.base or (embedded_base() if host.embedded else None)
    output = args.out or (Path("output") if host.embedded else None)
    if base is not None:
        (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
        (base / "user").mkdir(exist_ok=True)
        arguments += ["--base-directory", str(base.absolute())]
        arguments += ["--database-url", f"sqlite:///{scratch / 'comfyui.db'}"]
    if output is not None:
        arguments += ["--output-directory", str(output.absolute())]
    if args.no_frontend:
        page = scratch / "page"
        page.mkdir()
        arguments += ["--front-end-root", str(page)]
    if use_cpu("auto"):
        arguments.append("--cpu")
    if find_pack(base or host.path) is None:
        arguments += ["--extra-model-paths-config", str(link_pack(scratch))]
    arguments += args.comfy
    return arguments


def link_pack(scratch: Path) -> Path:
    """A file that tells ComfyUI of one more custom_nodes folder, with a link to this pack in it."""
    folder = scratch / "custom_nodes"
    folder.mkdir()
    try:
        (folder / "longreel").symlink_to(pack_folder(), target_is_directory=True)
    except OSError as error:
        raise HostError(
            f"This system does not let LongReel make a link to itself ({error}). Put this pack into the custom_nodes "
            "folder of a ComfyUI and set COMFYUI_PATH to it."
        ) from error
    config = scratch / "extra_paths.yaml"
    # JSON is YAML, and quotes any path safely.
    config.write_text(json.dumps({"longreel": {"custom_nodes": str(folder)}}), encoding="utf-8")
    return config


@contextmanager
def ended_with_us(server: subprocess.Popen[bytes]) -> Iterator[None]:
    """The server ends with this command: interrupted or terminated, it has time to clean up.

    Where this command is killed it can do nothing any more: on Linux the system ends the server, elsewhere it goes on.
    """

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        # ComfyUI cleans up on an interrupt and not on a termination; Windows has told it already.
        if server.poll() is None and sys.platform != "win32":
            server.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            server.wait(timeout=SECONDS_TO_STOP)
    finally:
        signal.signal(signal.SIGTERM, previous)
        if server.poll() is None:
            server.kill()
            server.wait()
