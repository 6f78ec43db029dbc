"""Rewards of the CLIP family: clipscore, pickscore, hpsv2 and aesthetic."""
