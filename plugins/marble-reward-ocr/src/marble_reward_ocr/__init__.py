"""The `ocr` reward: legible text."""
