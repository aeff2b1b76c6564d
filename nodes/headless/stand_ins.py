"""Empty stand-ins for packages that ComfyUI imports at start but the video path never calls."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import NoReturn

# spandrel, the upscalers, is of no use without torchvision.
OPTIONAL_PACKAGES = ("torchvision", "torchaudio", "spandrel")


class AbsentName(type):
    """A name whose public attributes are absent names, too: packages look constants up while they are imported."""

    def __getattr__(cls, name: str) -> AbsentName:
        if name.startswith("_"):
            raise AttributeError(name)
        return AbsentName(name, (Absent,), {"__module__": f"{cls.__module__}.{cls.__name__}"})


class Absent(metaclass=AbsentName):
    """What a missing package's names point at: it can be named, subclassed and compared, but not used."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self.refuse()

    @classmethod
    def refuse(cls) -> NoReturn:
        """Say which package is missing."""
        raise ModuleNotFoundError(
            f"This node needs {cls.__module__}.{cls.__name__}, and {cls.__module__.partition('.')[0]} is not usable in "
            f"this environment. Install the one that belongs to your torch."
        )


class AbsentModule(ModuleType):
    """A module that has every public name."""

    __path__: list[str]
    __version__ = "0.0.0"

    def __getattr__(self, name: str) -> AbsentName:
        if name.startswith("__"):
            raise AttributeError(name)
        return AbsentName(name, (Absent,), {"__module__": self.__name__})


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers imports of the named packages, and of anything inside them, with empty modules."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A package spec for our names, nothing for others."""
        if fullname.partition(".")[0] not in self.names:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """An empty module."""
        return AbsentModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def unusable_packages(names: Iterable[str] = OPTIONAL_PACKAGES) -> tuple[str, ...]:
    """Those of the packages that are not installed, or whose import fails (built for another torch)."""
    return tuple(name for name in names if not imports(name))


def imports(name: str) -> bool:
    """Whether a package can be imported; what a failed import left behind is removed."""
    if name in sys.modules:
        return True
    if importlib.util.find_spec(name) is None:
        return False
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError, AttributeError):
        # A wheel for another torch fails in the dynamic linker or while it registers its operators.
        for left in [key for key in sys.modules if key.partition(".")[0] == name]:
            del sys.modules[left]
        return False
    return True


def install_stand_ins(names: Iterable[str]) -> None:
    """From now on, in this process only, importing these packages gives empty modules."""
    if missing := tuple(names):
        sys.meta_path.insert(0, StandIns(missing))
