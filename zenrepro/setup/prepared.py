"""Look at a Python given with PYTHON=: says in one line what it lacks; installs nothing.

Run by that Python itself. Standard library only, and parsed by older Pythons too.
"""

import argparse
import importlib.util
import sys

# By purpose, the import names that must be there. Frameworks are not: one that is missing is a
# reason in a table.
EVIDENCE = "bleach filelock jinja2 matplotlib msgspec nbconvert nbformat numpy pygments rich yaml"
RUN = EVIDENCE + " ipykernel nbclient papermill psutil"
LINT = "importlinter mypy ruff"
NEEDED = {
    "evidence": EVIDENCE,
    "report": RUN,
    "lab": RUN + " jupyterlab",
    "check": EVIDENCE + " " + LINT,
    "test": RUN + " hypothesis pytest pytest_timeout xdist " + LINT,
}


def main() -> int:
    """0 when everything is there, 2 with one line when not."""
    parser = argparse.ArgumentParser(description="Check a prepared Python.")
    parser.add_argument("--for", dest="purpose", choices=sorted(NEEDED), default="report")
    purpose = parser.parse_args().purpose
    problem = None
    if sys.version_info < (3, 11):
        problem = "is Python %d.%d; 3.11 or newer is needed" % sys.version_info[:2]
    else:
        names = NEEDED[purpose].split()
        missing = [name for name in names if importlib.util.find_spec(name) is None]
        if missing:
            problem = (
                "lacks %s: install them there, or leave PYTHON= away and an environment is made "
                "in .venv" % ", ".join(missing)
            )
    if problem:
        sys.stderr.write("setup: PYTHON=%s %s\n" % (sys.executable, problem))
    return 2 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
