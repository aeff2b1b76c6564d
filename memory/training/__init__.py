"""Training of the tiny demo model: a labelled cartoon world, its codec and its causal video model."""
