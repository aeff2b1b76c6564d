"""Attention and copies over pages of remembered keys and values. Torch and Triton only: no host, no bookkeeping."""
