"""Examples from any source, and the one door through which every image enters."""
