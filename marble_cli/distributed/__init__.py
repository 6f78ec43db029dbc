"""Processes of one job: torch.distributed behind the few verbs that the trainer needs."""
