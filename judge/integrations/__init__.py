"""The judge where moderators already work: inside other people's tools, each under its own contract."""
