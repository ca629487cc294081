"""`arbiter label` measured: inputs that are made for it, runs and their stages, and what people do without it."""
