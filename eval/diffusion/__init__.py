"""How early, how surely and at what cost detectors inside the diffusion loop find what is unsafe."""
