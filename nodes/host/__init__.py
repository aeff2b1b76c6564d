"""Everything that touches ComfyUI's own modules: one file a model family, and the borders they share."""
