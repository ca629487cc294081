"""How people use a judge: the command line."""
