"""Run folders: their files, how a run is resumed, and what may be loaded from an untrusted one."""
