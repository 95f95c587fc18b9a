"""The page of `mutoscope play`: worlds to steer, generation to watch, and interfaces for other programs."""
