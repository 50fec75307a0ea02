"""The fresh process of `verify`; a script, as the package may not be installed where it runs.

It gets its task as JSON on its standard input, where no other process can see the key, and answers
in lines of JSON. What the loaded code prints goes nowhere.
"""

import importlib
import importlib.util
import json
import os
import sys
from typing import Any

PACKAGE = "jupyter_gpu_predict"


def main() -> None:
    """Do the task and write the answer."""
    # The folder of this script is no place to import from.
    sys.path[:] = [p for p in sys.path if p != os.path.dirname(os.path.abspath(__file__))]
    task = json.loads(sys.stdin.buffer.read())
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    _be_modest(task["nice"])
    _load_package()
    verifying = importlib.import_module(PACKAGE + ".snapshots.inspect.verifying")

    def answer(document: "dict[str, Any]") -> None:
        answers.write(json.dumps(document) + "\n")
        answers.flush()

    if task["keep"]:
        verifying.check_and_keep(task)
    else:
        verifying.check_and_answer(task, answer)
    # Threads and atexit handlers of loaded libraries have no business here.
    answers.flush()
    os._exit(0)


def _be_modest(nice: int) -> None:
    os.nice(nice)
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    except OSError:
        pass


def _load_package() -> None:
    # Three folders up: snapshots/inspect/verify_process.py.
    folder = os.path.abspath(__file__)
    for _ in range(3):
        folder = os.path.dirname(folder)
    spec = importlib.util.spec_from_file_location(
        PACKAGE, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    main()
