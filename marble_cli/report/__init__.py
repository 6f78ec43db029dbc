"""The report: one HTML file about one run or several that opens without a network."""
