"""Take one optimizer step: batches, reward signal, gradients, direction."""
