"""What a record depends on: exactly what its point can load, and nothing that only describes."""

import json
import os
import subprocess
import sys

import pytest

from zenrepro import paths, sources
from zenrepro.errors import InputError
from zenrepro.records import Inputs
from zenrepro.sources.files import PACKAGE

FAST = {
    "lab/__init__.py", "lab/speed.py", "lab/shapes.py", "lab/clock.py", "lab/deep/__init__.py",
    "lab/deep/up.py", "lab/deep/down.py", "lab/ops/__init__.py", "lab/ops/entry.py",
    "lab/ops/table.py#", "lab/ops/table.py#torch.fast", "lab/ops/fast.py", "kernels/cuda/a.cu",
    "kernels/cuda/common.cuh", "notebooks/speed.ipynb",
}  # fmt: skip


def test_the_closure_of_a_point(lab):
    found = lab.inputs()
    # zenrepro/__init__.py is there because lab imports from zenrepro at all.
    assert set(found.sources) - {"zenrepro/__init__.py"} == FAST
    assert set(found.data) == {"data/models/m.yaml", "data/tasks/t.txt"}
    assert lab.changed(found) == []
    assert lab.inputs() == found


def test_modules_given_otherwise_take_part_without_a_row(lab):
    found = lab.inputs(rows=[], modules=["lab.speed", "kernels/cuda/b.cu"]).sources
    assert "kernels/cuda/b.cu" in found
    # Not asked for by its rows, a table counts whole.
    assert "lab/ops/table.py" in found
    assert not any("#" in name for name in found)


def test_a_table_none_of_whose_rows_is_used_takes_part_without_them(lab):
    found = lab.inputs(rows=["lab.ops.table:"])
    names = {name for name in found.sources if "table" in name}
    assert names == {"lab/ops/table.py#"}
    assert "lab/ops/fast.py" not in found.sources
    lab.edit("lab/ops/table.py", '"lab.ops.slow:run"', '"lab.ops.slow:other"')
    assert lab.changed(found) == []
    lab.edit("lab/ops/table.py", "tuple(", "sorted(")
    assert lab.changed(found) == ["source lab/ops/table.py, outside its rows changed"]


def test_another_backends_modules_can_be_left_out(lab):
    found = lab.inputs(without=["lab.deep"]).sources
    assert not any("deep" in name for name in found)
    assert "lab/clock.py" in found


STALE = [
    ("lab/speed.py", "clock.now()", "clock.now() + 1", "source lab/speed.py changed"),
    ("lab/shapes.py", "(1, 2)", "(1, 3)", "source lab/shapes.py changed"),
    ("lab/deep/up.py", "UP = 1", "UP = 1.0", "source lab/deep/up.py changed"),
    ("lab/clock.py", "import time", "import time, lab.unused", "source lab/clock.py changed"),
    ("lab/ops/fast.py", "return 1", "return True", "source lab/ops/fast.py changed"),
    ("kernels/cuda/a.cu", "// a", "// A", "source kernels/cuda/a.cu changed"),
    ("kernels/cuda/common.cuh", "com", "con", "source kernels/cuda/common.cuh changed"),
    ("lab/ops/table.py", 'name="torch.fast",', 'name="torch.fast", x=1,',
     "source lab/ops/table.py, row torch.fast changed"),
    ("lab/ops/table.py", "tuple(", "sorted(", "source lab/ops/table.py, outside its rows changed"),
    ("lab/ops/table.py", '"torch.fast"', '"torch.gone"',
     "source lab/ops/table.py, row torch.fast is gone"),
    ("data/models/m.yaml", "64", "65", "data data/models/m.yaml changed"),
    ("data/tasks/t.txt", "hello", "hallo", "data data/tasks/t.txt changed"),
    ("notebooks/speed.ipynb", "x + 1", "x + 2", "source notebooks/speed.ipynb changed"),
    ("notebooks/speed.ipynb", "scale: str", "size: str", "source notebooks/speed.ipynb changed"),
    ("lab/shapes.py", "(1, 2)", "(1, 2", "source lab/shapes.py changed"),
    ("data/models/m.yaml", "layers: 2", "layers: [", "data data/models/m.yaml changed"),
    ("notebooks/speed.ipynb", "{", "", "source notebooks/speed.ipynb changed"),
]  # fmt: skip

FRESH = [
    ("lab/speed.py", "# never part of it", "# another comment"),
    ("lab/speed.py", '"""An experiment."""', '"""Another docstring."""\n\n'),
    ("lab/speed.py", "def points():", 'def points():\n    "New docstring."\n    # and comment'),
    ("lab/__init__.py", '"""A lab."""', '"""B."""\n__version__ = "9"'),
    ("lab/unused.py", "X = 1", "X = 2"),
    ("lab/ops/slow.py", "return 2", "return 3"),
    ("kernels/cuda/b.cu", "// b", "// B"),
    ("lab/ops/table.py", '"lab.ops.slow:run"', '"lab.ops.slow:other"'),
    ("lab/ops/table.py", "TABLE = tuple((", 'TABLE = tuple((\n    Entry(name="torch.new", a=1),'),
    ("lab/ops/table.py", "kernels/cuda/b.cu", "kernels/cuda/c.cu"),
    ("data/models/m.yaml", "layers: 2  # two\nhidden: 64", "# moved\nhidden: 64\nlayers:   2"),
    ("latex/report.tex", "text", "other"),
    ("README.md", "read", "write"),
    ("notebooks/speed.ipynb", "A question", "An answer"),
    ("notebooks/speed.ipynb", "'small'", "'full'"),
    ("notebooks/speed.ipynb", "x = 1", "x = 1  # one"),
    ("notebooks/speed.ipynb", "%matplotlib inline", "%matplotlib widget"),
    ("notebooks/speed.ipynb", '"execution_count": null', '"execution_count": 7'),
    ("notebooks/speed.ipynb", '"outputs": []', '"outputs": [{"output_type": "stream"}]'),
]


@pytest.mark.parametrize(("name", "old", "new", "says"), STALE)
def test_one_thing_changed_is_said_in_one_line(lab, name, old, new, says):
    found = lab.inputs()
    lab.edit(name, old, new)
    assert lab.changed(found) == [says]


@pytest.mark.parametrize(("name", "old", "new"), FRESH)
def test_what_measures_nothing_changes_nothing(lab, name, old, new):
    found = lab.inputs()
    lab.edit(name, old, new)
    assert lab.changed(found) == []
    assert lab.inputs() == found


@pytest.mark.parametrize("name", ["lab/shapes.py", "kernels/cuda/a.cu", "data/tasks/t.txt"])
def test_a_file_that_is_gone_is_said(lab, name):
    found = lab.inputs()
    (lab.root / name).unlink()
    (line,) = lab.changed(found)
    assert line.endswith(f"{name} is gone")


def test_one_kernel_makes_exactly_its_own_records_stale(lab):
    fast, slow = lab.inputs("torch.fast"), lab.inputs("torch.slow")
    lab.edit("kernels/cuda/b.cu", "// b", "// faster")
    assert lab.changed(fast) == []
    assert lab.changed(slow) == ["source kernels/cuda/b.cu changed"]


def test_papermill_output_of_the_notebook_is_the_same_notebook(lab, make_notebook):
    found = lab.inputs()
    content = json.loads((lab.root / "notebooks/speed.ipynb").read_text())
    injected = {"cell_type": "code", "metadata": {"tags": ["injected-parameters"]},
                "source": ["scale = 'smoke'"], "outputs": [], "execution_count": 1}  # fmt: skip
    content["cells"].insert(2, injected)
    lab.write("notebooks/speed.ipynb", json.dumps(content, indent=2))
    assert lab.changed(found) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"modules": ["lab.nowhere"]}, "lab.nowhere"),
        ({"modules": ["numpy"]}, "numpy"),
        ({"modules": ["kernels/cuda/none.cu"]}, "kernels/cuda/none.cu"),
        ({"rows": ["lab.ops.table:torch.none"]}, "it has torch.fast, torch.slow"),
        ({"rows": ["lab.ops.table"]}, "module:row"),
        ({"data": ["data/none.yaml"]}, "data/none.yaml"),
    ],
)
def test_what_is_not_there_is_one_line(lab, change, says):
    with pytest.raises(InputError) as caught:
        lab.inputs(**change)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lazily_exported_names_are_followed(lab):
    lab.write(
        "lab/ops/__init__.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lab.unused import X\n"
        "def __getattr__(name):\n    ...\n",
    )
    assert "lab/unused.py" in lab.inputs().sources
    lab.edit("lab/ops/__init__.py", "def __getattr__", "def other")
    assert "lab/unused.py" not in lab.inputs().sources


def test_import_module_of_a_literal_is_an_import(lab):
    lab.edit(
        "lab/clock.py", "import time", "import importlib\nimportlib.import_module('lab.unused')"
    )
    assert "lab/unused.py" in lab.inputs().sources


def test_imports_that_go_in_circles_end(lab):
    lab.write("lab/shapes.py", "import lab.speed\nfrom lab.shapes import SIZES\n")
    assert set(lab.inputs().sources) >= FAST


def test_the_package_itself_is_named_from_its_parent(tmp_path):
    (tmp_path / "zenrepro.toml").write_text('title = "t"\n')
    project = paths.load(tmp_path)
    found = sources.inputs(project, ["zenrepro.units"], [], [])
    assert set(found.sources) == {"zenrepro/__init__.py", "zenrepro/units.py"}
    assert sources.changed(project, found) == []


def test_what_is_never_a_source_exists_or_is_planned():
    planned = {"cli", "report", "audit", "__main__", "completeness"}
    for name in sources.NEVER:
        stem = PACKAGE.parent.joinpath(*name.split("."))
        there = stem.is_dir() or stem.with_suffix(".py").is_file()
        assert there or name.split(".")[1] in planned | {"experiments"}, name


def test_hashes_do_not_depend_on_the_process(lab):
    script = (
        "import sys, msgspec; from pathlib import Path; from zenrepro import paths, sources\n"
        "p = paths.load(Path(sys.argv[1]))\n"
        "i = sources.inputs(p, ['lab.speed'], ['lab.ops.table:torch.fast'], [])\n"
        "assert not {'torch', 'jax', 'mlx', 'lab'} & set(sys.modules)\n"
        "print(msgspec.json.encode(i.sources).decode())"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, str(lab.root)],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(out.stdout) == lab.inputs().sources


def test_nothing_recorded_is_nothing_changed(lab):
    assert lab.changed(Inputs()) == []
