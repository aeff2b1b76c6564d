"""Names of films: each is one folder inside the output folder, on every system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longreel.memory.project import Project, check_project_name


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../film", "contains /"),
        ("..", "begins or ends with a dot"),
        ("a/b", "contains /"),
        ("a\\b", "contains \\"),
        ("C:film", "contains :"),
        (".film", "begins or ends with a dot"),
        ("film.", "begins or ends with a dot"),
        ("film ", "begins or ends with a dot or a space"),
        ("", "is empty"),
        ("  ", "is empty"),
        ("con", "Windows"),
        ("LPT1.film", "Windows"),
        ("a\nb", "cannot be shown"),
        ("a\0b", "cannot be shown"),
        ("a" * 81, "longer than 80"),
        ("\N{SNOWMAN}" * 70, "longer than"),
    ],
)
def test_a_project_name_that_is_no_folder_name_is_refused(tmp_path: Path, name: str, fault: str) -> None:
    with pytest.raises(ValueError, match="needs to be a plain folder name") as refusal:
        Project.open(tmp_path / "output", name, {})
    assert fault in str(refusal.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["film", "Walk to the sea", "das Mädchen_2", "雪の村", "take.2", "a" * 80])
def test_a_plain_project_name_is_taken(tmp_path: Path, name: str) -> None:
    with Project.open(tmp_path, name, {}) as project:
        assert project.folder == tmp_path / name
        assert project.folder.is_dir()


@given(st.text(max_size=90))
def test_no_accepted_name_leaves_the_output_folder(name: str) -> None:
    root = Path("/output")
    try:
        check_project_name(name)
    except ValueError:
        return
    assert Path(os.path.normpath(root / name)).parent == root
