"""Publish a trained LoRA on the Hugging Face hub: its folder, its model card, its upload."""
