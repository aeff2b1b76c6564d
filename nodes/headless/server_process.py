"""The process that becomes ComfyUI's server: it runs the host's main.py as if it had been started directly.

Run as a file, `server_process.py PARENT HOST_FOLDER MISSING_PACKAGES [ARGUMENTS OF main.py]`, where PARENT is the process
that starts it: nothing of LongReel is on the path, so the host's modules keep their names.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def end_with(parent: int) -> None:
    """On Linux the end of the process that started this one ends it too, even where that one was killed."""
    if sys.platform != "linux":
        return
    # Not an interrupt, which a busy render may put off: finished chunks are safe whatever ends the server.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before the system knew of our wish
        sys.exit("The command that started this server has ended.")


def main() -> None:
    """Answer imports of missing packages with stand-ins, then hand over to the host."""
    parent, host, missing, *arguments = sys.argv[1:]
    end_with(int(parent))
    if missing:
        spec = spec_from_file_location("longreel_stand_ins", Path(__file__).with_name("stand_ins.py"))
        assert spec is not None
        assert spec.loader is not None
        stand_ins = module_from_spec(spec)
        sys.modules[spec.name] = stand_ins
        spec.loader.exec_module(stand_ins)
        stand_ins.install_stand_ins(missing.split(","))
    # A process started in the background of a script inherits that Ctrl-C is ignored, and would not stop on it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[0] = host
    main_file = str(Path(host) / "main.py")
    sys.argv = [main_file, *arguments]
    runpy.run_path(main_file, run_name="__main__")


if __name__ == "__main__":
    main()
