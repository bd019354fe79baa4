"""Training: what changes the weights. A job goes in, an adapter comes out."""
