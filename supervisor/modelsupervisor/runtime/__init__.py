"""The effects: one small module for each part of the kernel, and the one loop that joins them to the pure core."""

from __future__ import annotations
