"""What earlier versions left: a checkpoint of each command, and the losses of each method.

`python -m tests.training.earlier.make` wrote these files. They are written anew only where a change
breaks with them on purpose, which is to be said in the changelog.
"""
