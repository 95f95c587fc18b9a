"""Video tokenizers: pixels to tokens or latents and back."""
