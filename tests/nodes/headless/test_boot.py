"""Which ComfyUI is taken, and that one process has one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import folder_paths
import nodes as host_nodes
import pytest

from longreel.nodes.headless import boot, embedded, stand_ins
from longreel.nodes.headless.boot import Host, boot_host, find_host
from longreel.nodes.headless.embedded import HostError

ROOT = Path(__file__).absolute().parents[3]


def fake_host(folder: Path, version: str = "9.8.7") -> Path:
    """A folder that looks like a ComfyUI from outside."""
    for name in boot.HOST_FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return folder


def in_a_new_process(code: str, folder: Path, **environment: str) -> str:
    """What a fresh Python prints."""
    everything = {**os.environ, **environment}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=folder, env=everything, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_host_is_a_real_comfyui(host: Host) -> None:
    assert Path(host_nodes.__file__) == host.path / "nodes.py"
    assert "CLIPTextEncode" in host_nodes.NODE_CLASS_MAPPINGS
    assert tuple(int(part) for part in host.version.split(".")) >= (0, 30, 0)


def test_booting_again_gives_the_same_host(host: Host) -> None:
    assert boot_host("cpu") == host


def test_comfyui_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(fake_host(tmp_path)))
    assert find_host() == Host(tmp_path, "9.8.7", "COMFYUI_PATH names it", embedded=False)


def test_a_wrong_comfyui_path_is_an_error_and_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(HostError, match=r"COMFYUI_PATH should be .* has no main.py"):
        find_host()


@pytest.mark.parametrize("version", ["0.29.9", "0.3.75", "soon"])
def test_a_comfyui_that_is_too_old_is_refused(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(fake_host(tmp_path, version)))
    said = f"needs ComfyUI 0.30 or newer, got {version} at {tmp_path}. Update that ComfyUI, or unset COMFYUI_PATH"
    with pytest.raises(HostError, match=re.escape(said)):
        find_host()


@pytest.mark.parametrize("version", ["0.30.0", "0.33.1", "1.0"])
def test_comfyui_0_30_and_newer_are_taken(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(fake_host(tmp_path, version)))
    assert find_host().version == version


def test_a_pack_inside_an_old_comfyui_names_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    pack = fake_host(tmp_path, "0.29.0") / "custom_nodes" / "longreel"
    monkeypatch.setattr(boot, "pack_folder", lambda: pack)
    with pytest.raises(HostError, match=r"got 0\.29\.0 .*set COMFYUI_PATH to the folder of a newer one"):
        find_host()


def test_a_pack_inside_comfyui_takes_that_comfyui(tmp_path: Path) -> None:
    """The pack is imported from custom_nodes, as after a git clone there and `pip install -e`."""
    comfyui = fake_host(tmp_path / "ComfyUI")
    pack = comfyui / "custom_nodes/longreel"
    pack.parent.mkdir()
    pack.symlink_to(ROOT)
    code = "from longreel.nodes.headless.boot import find_host; print(find_host().path, find_host().reason, sep='|')"
    environment = {"PYTHONPATH": str(pack.parent), "COMFYUI_PATH": ""}
    assert in_a_new_process(code, tmp_path, **environment) == f"{comfyui}|this pack is installed in it"


def test_a_second_comfyui_in_one_process_is_refused(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(fake_host(tmp_path)))
    with pytest.raises(HostError, match="One process can hold one ComfyUI"):
        boot_host("cpu")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(HostError, match="device should be one of auto, cpu, gpu, and is 'tpu'"):
        boot_host("tpu")


def test_the_hosts_modules_win_over_ours_even_in_our_own_folder(host: Host, tmp_path: Path) -> None:
    code = (
        "import json, sys, pathlib\n"
        "sys.path.insert(0, '')\n"
        "from longreel.nodes.headless.boot import boot_host\n"
        f"host = boot_host('cpu', base=pathlib.Path({str(tmp_path)!r}))\n"
        "import nodes, utils.extra_config\n"
        "print(json.dumps([str(host.path), nodes.__file__, utils.extra_config.__file__]))"
    )
    path, *modules = json.loads(in_a_new_process(code, ROOT, COMFYUI_PATH=str(host.path)))
    assert path == str(host.path)
    assert all(Path(module).is_relative_to(path) for module in modules)


def test_importing_boot_boots_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, longreel.nodes.headless.boot; print([m for m in sys.modules if m in ('torch', 'comfy', 'nodes')])"
    )
    assert in_a_new_process(code, tmp_path) == "[]"


def test_no_folder_of_a_run_lies_in_the_host(host: Host) -> None:
    folders = ("output", "temp", "input", "user")
    for name in folders:
        folder = Path(getattr(folder_paths, f"get_{name}_directory")())
        assert not folder.is_relative_to(host.path), name


def test_a_missing_package_gets_a_stand_in_that_says_so_when_used(tmp_path: Path) -> None:
    code = (
        "from longreel.nodes.headless.stand_ins import install_stand_ins, unusable_packages\n"
        "assert unusable_packages(['absent_package', 'json']) == ('absent_package',)\n"
        "install_stand_ins(['absent_package'])\n"
        "import absent_package.deep.inside as module\n"
        "from absent_package.deep import Thing\n"
        "class Child(Thing): pass\n"
        "try: Thing(3)\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    assert "needs absent_package.deep.Thing, and absent_package is not usable" in in_a_new_process(code, tmp_path)


@pytest.mark.parametrize("failure", ["raise RuntimeError('operator does not exist')", "raise OSError('libcudart')"])
def test_an_installed_package_whose_import_fails_counts_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    package = tmp_path / "broken_package"
    package.mkdir()
    (package / "__init__.py").write_text(f"from . import part\n{failure}\n")
    (package / "part.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert stand_ins.unusable_packages(["broken_package"]) == ("broken_package",)
    assert not [name for name in sys.modules if name.startswith("broken_package")]


def test_the_embedded_base_is_beside_the_copy_and_not_in_it() -> None:
    assert not boot.embedded_base().is_relative_to(embedded.host_folder())
