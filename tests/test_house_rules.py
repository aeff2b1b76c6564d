"""The house: who may import whom, how large a file may be, and that the package is what the tree is."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).absolute().parents[1]
MOST_LINES = 400
ALL_LAYERS = ("nodes", "memory", "kernels")
MAY_IMPORT = {"nodes": ALL_LAYERS, "memory": ("memory", "kernels"), "kernels": ("kernels",)}
HOST_MODULES = {
    "api_server", "app", "comfy", "comfy_api", "comfy_api_nodes", "comfy_config", "comfy_execution", "comfy_extras",
    "comfyui_version", "execution", "folder_paths", "latent_preview", "main", "middleware", "node_helpers", "protocol",
    "server", "utils",
}  # fmt: skip
WITHOUT_TORCH = ("storyboard", "storyboard_parser", "chunks", "page_table", "positions")
MACHINE_PATH = re.compile(r"(^|[^\w.])/(work|tmp|root|home|Users)/", re.ASCII)
TEXT_SUFFIXES = {".py", ".toml", ".md", ".json", ".txt", ".js", ".yml", ".yaml", ".cfg", ""}


def tracked_files() -> list[Path]:
    """The files of the repository, and those that are about to join it."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def python_files(*folders: str) -> list[Path]:
    """The Python files of the pack, tests left out, in the given top folders or in all of them."""
    chosen = folders or (*ALL_LAYERS, "__init__.py")
    return [path for path in tracked_files() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in chosen]


def imports_of(path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Each import as (dots, module parts): `from ..memory.chunks import Chunk` is (2, ("memory", "chunks", "Chunk"))."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            start = tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                yield node.level, (*start, alias.name)


def absolute(path: Path, dots: int, parts: tuple[str, ...]) -> tuple[str, ...]:
    """What a relative import names, from the root of the pack."""
    package = path.relative_to(ROOT).parent.parts
    return (*package[: len(package) - (dots - 1)], *parts)


def where(path: Path, parts: tuple[str, ...]) -> str:
    """One finding."""
    return f"{path.relative_to(ROOT)} imports {'.'.join(parts)}"


def test_imports_run_from_nodes_to_memory_to_kernels() -> None:
    wrong = [
        where(path, absolute(path, dots, parts))
        for layer in ALL_LAYERS
        for path in python_files(layer)
        for dots, parts in imports_of(path)
        if dots and absolute(path, dots, parts)[0] not in MAY_IMPORT[layer]
    ]
    assert not wrong


def test_a_relative_import_never_leaves_the_pack() -> None:
    wrong = [
        where(path, parts)
        for path in python_files()
        for dots, parts in imports_of(path)
        if dots > len(path.relative_to(ROOT).parent.parts) + 1
    ]
    assert not wrong


def test_inside_the_pack_imports_are_relative() -> None:
    """The host loads the folder by path, under any name, and `nodes` is the name of one of its own modules."""
    wrong = [
        where(path, parts)
        for path in python_files()
        for dots, parts in imports_of(path)
        if not dots
        and (parts[0] in ("longreel", "memory", "kernels", "tests") or (parts[:1] == ("nodes",) and len(parts) > 1))
    ]
    assert not wrong


def test_only_nodes_import_the_host() -> None:
    wrong = [
        where(path, parts)
        for path in python_files("memory", "kernels")
        for dots, parts in imports_of(path)
        if not dots and parts[0] in HOST_MODULES | {"nodes"}
    ]
    assert not wrong


def test_only_kernels_import_triton() -> None:
    wrong = [
        where(path, parts)
        for path in python_files("memory", "nodes")
        for dots, parts in imports_of(path)
        if not dots and parts[0] == "triton"
    ]
    assert not wrong


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_bookkeeping_does_not_know_torch_nor_imports_a_file_that_does(name: str) -> None:
    reached, todo = set(), [ROOT / "memory" / f"{name}.py"]
    while todo:
        path = todo.pop()
        reached.add(path)
        for dots, parts in imports_of(path):
            assert dots or parts[0] not in ("torch", "numpy"), where(path, parts)
            target = ROOT.joinpath(*absolute(path, dots, parts)[:2]).with_suffix(".py") if dots else None
            if target is not None and target.is_file() and target not in reached:
                todo.append(target)


def test_importing_the_pack_and_its_node_folder_imports_no_host_and_no_torch() -> None:
    code = (
        "import sys, longreel, longreel.nodes; print([m for m in sys.modules if m.split('.')[0] in {'torch', 'comfy'}])"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.strip() == "[]"


def test_no_file_is_above_the_limit_of_lines() -> None:
    long = [path for path in tracked_files() if path.suffix in (".py", ".js") and count_lines(path) > MOST_LINES]
    assert not long


def count_lines(path: Path) -> int:
    """Lines of a text file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def test_there_is_no_utils_file() -> None:
    assert not [path for path in tracked_files() if path.stem in ("utils", "util", "helpers", "misc", "common")]


def test_nothing_is_swallowed_blindly() -> None:
    """Cleaning up and raising again is fine."""
    blind = [
        path.relative_to(ROOT)
        for path in tracked_files()
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
        and not (isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None)
    ]
    assert not blind


def test_no_path_of_one_machine_is_in_the_tree() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked_files()
        if path.suffix in TEXT_SUFFIXES and path.name != Path(__file__).name
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not wrong


def test_the_word_block_is_not_used_for_our_own_things() -> None:
    """It means layer, chunk and tile elsewhere; the host's own attribute `blocks` stays the host's."""
    defined = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in python_files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.arg)
        for name in [node.arg if isinstance(node, ast.arg) else node.name]
        if re.search(r"(^|_)blocks?(_|$)|Block", name)
    ]
    assert not defined


def project() -> dict[str, dict[str, object]]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_pack_depends_on_nothing_and_both_lists_say_so() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = [line for line in lines if line.strip() and not line.startswith("#")]
    assert project()["project"]["dependencies"] == required == []


def test_the_package_list_is_the_tree() -> None:
    folders = {path.parent.relative_to(ROOT) for path in python_files() if path.name == "__init__.py"}
    tree = sorted(".".join(("longreel", *folder.parts)) for folder in folders)
    setuptools = project()["tool"]["setuptools"]
    assert isinstance(setuptools, dict)
    assert sorted(setuptools["packages"]) == tree


def test_every_folder_with_python_files_is_a_package() -> None:
    bare = {path.parent for path in python_files() if not (path.parent / "__init__.py").is_file()}
    assert not bare


def test_the_registry_archive_leaves_out_what_fetches_and_what_tests() -> None:
    ignored = (ROOT / ".comfyignore").read_text(encoding="utf-8").split()
    assert {"tests/", "nodes/headless/"} <= set(ignored)
    reached = [where(path, parts) for path in python_files() for dots, parts in imports_of(path) if "headless" in parts]
    assert not [found for found in reached if not found.startswith("nodes/headless")]


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff_is_content(command: list[str]) -> None:
    run([sys.executable, "-m", "ruff", *command, "--no-cache", "."], ROOT)


def test_mypy_is_content(tmp_path: Path) -> None:
    """mypy wants a package: a link gives the flat repository its name."""
    (tmp_path / "longreel").symlink_to(ROOT)
    config = str(ROOT / "pyproject.toml")
    run(
        [sys.executable, "-m", "mypy", "--config-file", config, "--cache-dir", str(tmp_path), "-p", "longreel"],
        tmp_path,
    )


def run(command: list[str], folder: Path) -> None:
    """Run a checker; what it says is the failure."""
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
