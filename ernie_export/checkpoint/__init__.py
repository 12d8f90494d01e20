"""Reading published checkpoints of ERNIE-4.5 text models, and the small one that comes with the package."""
