"""Run a script as `python SCRIPT ...` does; at the very end say which threads between processes are still there.

Such a thread outlives Python, and aborts the process when it lets go of a tensor then.
"""

import atexit
import runpy
import sys
from contextlib import suppress
from pathlib import Path


def say() -> None:
    names = []
    for file in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # it has ended meanwhile
            names.append(file.read_text().strip())
    sys.stderr.write(f"outlive Python: {sorted(name for name in names if 'gloo' in name)}\n")  # in one piece


atexit.register(say)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
