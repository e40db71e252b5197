"""The verb `evaluate`: what a dataset is worth, told by students that learn from it."""
