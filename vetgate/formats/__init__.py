"""What a submitted file may be: the submission's own file, its manifest, byte-level inspection, and loading.

Only `load` and the modules that it needs import torch; the rest runs in the host process.
"""
