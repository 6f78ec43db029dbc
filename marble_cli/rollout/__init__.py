"""From prompts to latents: ODE samplers over a velocity and the batches that they fill."""
