"""Build steps that pyproject.toml cannot express: the cffi extension and the guest images."""

from __future__ import annotations

import pathlib
import subprocess
import sys

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Assemble the example guests before package data is collected."""

    def run(self) -> None:
        root = pathlib.Path(__file__).resolve().parent
        subprocess.run([sys.executable, str(root / "guests" / "build.py")], check=True)
        super().run()


setup(
    cffi_modules=["native/build.py:ffibuilder"],
    cmdclass={"build_py": BuildPy},
    # The extension uses the stable ABI: one wheel serves every Python from 3.11 on.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
