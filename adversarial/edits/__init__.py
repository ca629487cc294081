"""Changes that are no small perturbation: what platforms and users do to pictures, weather and noise, writing."""
