"""The study: train the embedded model with every balance, score the results and write the report."""
