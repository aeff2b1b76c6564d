"""LongReel outside a running ComfyUI: finding and booting a host, and the `longreel` command."""
