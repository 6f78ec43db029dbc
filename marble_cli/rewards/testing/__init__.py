"""Check a reward against the contract, and scaffold a new one."""
