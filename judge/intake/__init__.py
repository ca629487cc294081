"""How encoded images come in from strangers: data URLs, allowed hosts, and worker processes that decode."""
