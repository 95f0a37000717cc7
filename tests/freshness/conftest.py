"""A small project of its own, with an op, a table, a kernel, data and a notebook."""

import json
import textwrap

import pytest

from zenrepro import paths

FILES = {
    "zenrepro.toml": """
        title = "t"
        [experiments.speed]
        notebook = "notebooks/speed.ipynb"
        module = "lab.speed"
    """,
    "lab/__init__.py": '"""A lab."""\n',
    "lab/speed.py": '''
        """An experiment."""
        from zenrepro.results import store  # never part of it
        from . import shapes
        from lab.ops import table
        def points():
            from lab import clock
            return clock.now(), shapes.SIZES, table.TABLE
    ''',
    "lab/shapes.py": "SIZES = (1, 2)\n",
    "lab/clock.py": "import time\nimport lab.deep.down\n\ndef now():\n    return time.time()\n",
    "lab/deep/__init__.py": "from .up import UP\n",
    "lab/deep/up.py": "UP = 1\n",
    "lab/deep/down.py": "from .. import shapes\n",
    "lab/unused.py": "X = 1\n",
    "lab/ops/__init__.py": "",
    "lab/ops/entry.py": "def Entry(**k): return k\n",
    "lab/ops/table.py": """
        from lab.ops.entry import Entry
        TABLE = tuple((
            Entry(name="torch.fast", function="lab.ops.fast:run", sources=("kernels/cuda/a.cu",)),
            Entry(name="torch.slow", function="lab.ops.slow:run", sources=("kernels/cuda/b.cu",)),
        ))
    """,
    "lab/ops/fast.py": "def run():\n    return 1\n",
    "lab/ops/slow.py": "def run():\n    return 2\n",
    "kernels/cuda/a.cu": '#include "common.cuh"\n// a\n',
    "kernels/cuda/b.cu": "// b\n",
    "kernels/cuda/common.cuh": "// common\n",
    "data/models/m.yaml": "layers: 2  # two\nhidden: 64\n",
    "data/tasks/t.txt": "hello\n",
    "latex/report.tex": "text\n",
    "README.md": "# read me\n",
}


def notebook(cells, defaults="scale: str = 'small'"):
    made = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# A question"]},
        {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": [defaults],
         "outputs": [], "execution_count": None},
    ]  # fmt: skip
    for cell in cells:
        made.append({"cell_type": "code", "metadata": {}, "source": cell.splitlines(True),
                     "outputs": [], "execution_count": None})  # fmt: skip
    return json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


class Lab:
    """The project's folder, and what to do with it."""

    def __init__(self, root):
        self.root = root
        for name, text in FILES.items():
            self.write(name, textwrap.dedent(text).lstrip("\n"))
        self.write("notebooks/speed.ipynb", notebook(["%matplotlib inline\nx = 1", "y = x + 1"]))
        self.project = paths.load(root)
        self.root = self.project.root

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def edit(self, name, old, new):
        text = (self.root / name).read_text()
        assert old in text
        self.write(name, text.replace(old, new))

    def inputs(self, implementation="torch.fast", **changes):
        from zenrepro import sources

        given = {
            "modules": ["lab.speed"],
            "rows": [f"lab.ops.table:{implementation}"],
            "data": ["data/models/m.yaml", "data/tasks/t.txt"],
        }
        return sources.inputs(self.project, **(given | changes))

    def changed(self, inputs):
        from zenrepro import sources

        return sources.changed(self.project, inputs)


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


@pytest.fixture(scope="session")
def make_notebook():
    return notebook
