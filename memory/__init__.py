"""What a film remembers: the storyboard, its plan in chunks, and the pages that are kept, chosen and read."""
