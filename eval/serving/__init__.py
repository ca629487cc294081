"""A server under load: what is asked, clients that ask it, and what its processes use."""
