"""The wheel's one irregularity: the top-level kernels/ travels as zenrepro/kernels.

kernels/ holds device code only and has no __init__.py, because a top-level package of that
name would shadow an installed one. Everything else is in pyproject.toml.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["zenrepro", "zenrepro.*"]), "zenrepro.kernels"],
    package_dir={"zenrepro.kernels": "kernels"},
)
