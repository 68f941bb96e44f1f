"""The gate: judges evidence, signs, and takes down what people sign."""
