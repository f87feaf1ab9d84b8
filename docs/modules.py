"""Prints the modules of the API reference: every public one, packages before what is in them."""

from __future__ import annotations

import pkgutil

import pykvm

names = [m.name for m in pkgutil.walk_packages(pykvm.__path__, "pykvm.")]
print("pykvm", *(n for n in names if not any(p.startswith("_") for p in n.split("."))))
