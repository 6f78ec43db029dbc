"""The `objects` reward: coloured shapes, recognised without a neural network."""
