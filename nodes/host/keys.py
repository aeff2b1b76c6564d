"""Names under which LongReel keeps things in the host's option dictionaries."""

from __future__ import annotations

PACK = "longreel"
SETTINGS = "longreel_settings"
SESSION = "longreel_session"
HISTORY = "longreel_history"
GATES = "longreel_gates"

OVERRIDE = "optimized_attention_override"
"""The host's name for what attention is handed to."""
