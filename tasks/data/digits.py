"""The embedded default data set: scikit-learn's digits, 1797 grey images of 8 x 8, as a .npz with a fixed split."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np

TEST_SHARE = 0.2


def write_digits(path: Path) -> None:
    """Write the digits to `path`: the same bytes on every machine."""
    # the bundled table is read in place: importing scikit-learn costs seconds
    found = importlib.util.find_spec("sklearn")
    assert found is not None and found.origin is not None
    with gzip.open(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as table:
        values = np.loadtxt(table, delimiter=",", dtype=np.int64)
    x = np.rint(values[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    y = values[:, -1]
    random = np.random.RandomState(0)
    test = np.zeros(len(y), bool)
    for label in range(10):
        rows = random.permutation(np.flatnonzero(y == label))
        test[rows[: round(TEST_SHARE * len(rows))]] = True
    names = np.array([str(label) for label in range(10)])
    np.savez(path, x_train=x[~test], y_train=y[~test], x_test=x[test], y_test=y[test], class_names=names)
