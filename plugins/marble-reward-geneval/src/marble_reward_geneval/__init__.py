"""GenEval as a reward: objects, counts, colours and positions."""
