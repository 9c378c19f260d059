"""The training loop and the losses it minimizes."""
