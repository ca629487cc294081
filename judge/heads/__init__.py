"""Small heads on frozen encoders: the cross-attention student and what it is compared with."""
