"""The structural inspector: backdoors that are wired into a network's graph instead of trained into its weights.

A graph needs no training to hide a trigger: a few operators from the image to the logits suffice. What is looked at
are the steps of an OnnxModule, by what they compute and never by their names.
"""
