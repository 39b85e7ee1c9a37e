"""Pictures steered by rewards: sampler.py what is steered; the others what is asked for, and what is kept of it."""
