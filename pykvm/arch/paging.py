"""Page tables: build them (`PageTables`), walk them (`walk`), list what they map (`mappings`)."""

from __future__ import annotations

from pykvm.arch.errors import PagingError
from pykvm.arch.pagebuild import PageTables
from pykvm.arch.pagemodes import (
    PAGE_1G,
    PAGE_2M,
    PAGE_4K,
    PAGE_4M,
    LevelSpec,
    PagingMode,
    paging_mode,
)
from pykvm.arch.pagescan import Mapping, mappings, read_virtual
from pykvm.arch.pagewalk import (
    Fault,
    FaultReason,
    Level,
    Walk,
    WalkRules,
    paging_registers,
    walk,
)

__all__ = [
    "PAGE_1G",
    "PAGE_2M",
    "PAGE_4K",
    "PAGE_4M",
    "Fault",
    "FaultReason",
    "Level",
    "LevelSpec",
    "Mapping",
    "PageTables",
    "PagingError",
    "PagingMode",
    "Walk",
    "WalkRules",
    "mappings",
    "paging_mode",
    "paging_registers",
    "read_virtual",
    "walk",
]
