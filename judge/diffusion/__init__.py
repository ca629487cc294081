"""Detection inside the diffusion loop, after Wukong (arXiv 2508.00591), under categories chosen for this call."""
