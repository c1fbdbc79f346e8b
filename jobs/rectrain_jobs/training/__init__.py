"""Training: the trainer, its sharding plan, optimizers and checkpoints."""
