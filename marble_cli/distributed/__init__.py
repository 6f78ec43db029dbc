"""The processes of a run: collectives of torch.distributed, and layouts of parameters."""
