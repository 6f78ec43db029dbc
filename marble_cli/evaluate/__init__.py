"""Judging policies: held-out prompts, fixed noise, every reward, paired intervals."""
