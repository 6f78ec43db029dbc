"""Draw images: from prompts and noise to latents with an ODE solver over a velocity."""
