"""The lab: looking at a running guest and explaining what it does."""

from __future__ import annotations
