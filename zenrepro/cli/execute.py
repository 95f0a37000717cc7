"""Execute one notebook by papermill in a fresh kernel; the executed notebook appears whole."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zenrepro.errors import InputError
from zenrepro.experiments.provenance import one_line


class CellError(Exception):
    """A cell failed; the executed notebook holds its error. The message is one line."""


class KernelDied(Exception):
    """The kernel's process ended in the middle of a cell."""


def execute(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any],
    environment: Mapping[str, str],
    working_folder: Path,
) -> None:
    """Run ``notebook`` with ``parameters``; what ran is in ``output``, also where a cell fails.

    Raises CellError, KernelDied, or InputError where the notebook itself told bad input.
    """
    _without_iri_grammar()
    try:
        from nbclient.exceptions import DeadKernelError
        from papermill import execute_notebook
        from papermill.exceptions import PapermillExecutionError

        from zenrepro.cli.kernel import ThisInterpreter
    except ImportError as error:
        raise InputError(
            f"running notebooks needs the package {error.name}, which is not installed here; "
            "install zenrepro[run], or use `zenrepro report` on the results there are"
        ) from error

    def run() -> None:
        execute_notebook(
            notebook,
            output,
            dict(parameters),
            kernel_name="python3",
            language="python",
            progress_bar=False,
            cwd=working_folder,
            kernel_manager_class=ThisInterpreter,
            shutdown_kernel="immediate",
        )

    try:
        with _environment(environment):
            _interruptible(run, ThisInterpreter.kill_all)
    except OSError as error:
        if error.filename is None:
            error.filename = str(output)  # a full disk does not say where
        raise
    except PapermillExecutionError as error:
        if error.ename == "InputError":
            raise InputError(error.evalue) from None
        text = " ".join(f"{error.ename}: {error.evalue}".split())
        raise CellError(f"cell {error.cell_index + 1}: {text}") from None
    except DeadKernelError:
        _note_death(output)
        raise KernelDied("the kernel's process died") from None


def _interruptible(run: Callable[[], None], kill: Callable[[], None]) -> None:
    """``run`` in a thread of its own, so that an interrupt reaches this one and nothing else.

    In the main thread nbclient would take the signal for itself and race with its own clean-up:
    now and then that ended in a traceback. Here the kernel is killed first, and
    KeyboardInterrupt is raised once the thread has seen that and ended.
    """
    raised: list[BaseException] = []
    over = threading.Event()  # an interrupted join() takes a living thread for ended

    def guarded() -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001  (raised below, in the thread that waits)
            raised.append(error)
        finally:
            over.set()

    threading.Thread(target=guarded, name="notebook", daemon=True).start()
    try:
        while not over.wait(0.5):
            pass
    except KeyboardInterrupt:
        while not over.wait(0.1):
            kill()
        raise
    if raised:
        raise raised[0]


def _without_iri_grammar() -> None:
    """Spare the two seconds that jsonschema takes to build a grammar of IRIs, where installed.

    It does without when the package is missing, and notebooks have no IRIs to check.
    """
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


@contextmanager
def scratch(output: Path) -> Iterator[Path]:
    """A file beside ``output`` to run in; those that killed runs left are removed."""
    output.parent.mkdir(parents=True, exist_ok=True)
    for leftover in output.parent.glob(f".{output.name}.*.running.ipynb"):
        if not _alive(int(leftover.name.split(".")[-3])):
            leftover.unlink(missing_ok=True)
    running = output.with_name(f".{output.name}.{os.getpid()}.running.ipynb")
    try:
        yield running
    finally:
        running.unlink(missing_ok=True)


def reason(error: BaseException) -> str:
    """Why a notebook failed, in one line."""
    return str(error) if isinstance(error, CellError | KernelDied) else one_line(error)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The variables, for the kernel to inherit; as before afterwards."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _note_death(notebook: Path) -> None:
    """Write into the cell that was running why it has no output: the dead kernel can't."""
    try:
        content = json.loads(notebook.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"zenrepro: {notebook}: {one_line(error)}", file=sys.stderr)
        return
    started = [
        cell
        for cell in content["cells"]
        if cell["cell_type"] == "code" and cell["metadata"].get("papermill", {}).get("start_time")
    ]
    text = "the kernel's process died while this cell ran"
    for cell in started[-1:]:
        cell["outputs"].append(
            {
                "output_type": "error",
                "ename": "KernelDied",
                "evalue": text,
                "traceback": [f"KernelDied: {text}"],
            }
        )
    notebook.write_text(json.dumps(content, indent=1), encoding="utf-8")
