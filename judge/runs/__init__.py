"""Run folders: what a run leaves behind, how it is resumed, and what may be loaded from a stranger's."""
