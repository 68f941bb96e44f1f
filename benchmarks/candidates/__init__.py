"""Statistics on trial, one a file: `measure(subject) -> {column: scores (K,) a label or (1,) a model}`.

Higher is more suspicious. What is confirmed becomes a detector in vetgate/detect; the rest stays here with its figures.
"""
