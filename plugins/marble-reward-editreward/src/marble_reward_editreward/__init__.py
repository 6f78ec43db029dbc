"""The EditReward reward."""
