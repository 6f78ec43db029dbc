"""Turn rewards into losses: advantages and the DiffusionNFT loss, as pure functions of tensors."""
