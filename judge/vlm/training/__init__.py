"""Training the judge: packed batches, shared policies, the trainer, and adversarial training."""
