"""Figures with their protocol: Fréchet distance, PSNR, and the judge of the built-in world."""
