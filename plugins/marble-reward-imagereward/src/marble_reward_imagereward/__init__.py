"""The ImageReward reward."""
