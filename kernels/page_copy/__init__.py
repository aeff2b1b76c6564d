"""Moving pages: storing, gathering and rotating keys and values."""

from __future__ import annotations

from .reference import gather_frame, time_rotation

__all__ = ["gather_frame", "time_rotation"]
