"""Forget the packages whose unpacking was cut short, so that pip installs them again.

Run by the environment's own Python after an interrupted or failed pip step. pip writes a
package's RECORD last; a package without one, or whose files are not as its RECORD says, loses
its metadata here, which is what pip looks at. Prints what it dropped.
"""

import shutil
import sys
import sysconfig
from importlib.metadata import PackagePath, PathDistribution
from pathlib import Path


def is_whole(file: PackagePath) -> bool:
    """Whether an installed file is there in the recorded size; bytecode may be missing."""
    try:
        size = Path(str(file.locate())).stat().st_size
    except OSError:
        return file.suffix == ".pyc"
    return file.size is None or file.size == size


def drop_half_installed(packages: Path) -> list[str]:
    """Remove the metadata of every package in ``packages`` that is not whole; their names."""
    dropped = []
    for info in sorted(packages.glob("*.dist-info")):
        files = PathDistribution(info).files
        if (info / "METADATA").is_file() and files is not None and all(map(is_whole, files)):
            continue
        shutil.rmtree(info)
        dropped.append(info.name)
    return dropped


if __name__ == "__main__":
    for name in drop_half_installed(Path(sysconfig.get_path("purelib"))):
        print("half installed:", name)
    sys.exit(0)
