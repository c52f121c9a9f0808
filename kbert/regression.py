"""Figures of numbers that are predicted: numpy and scipy alone, neither TensorFlow nor Keras."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats


def regression_report(numbers: np.ndarray, predictions: np.ndarray) -> dict[str, Any]:
    """All figures of a split for metrics.json.

    - pearson and spearman: correlations of scipy's; None where either side is all the same.
    - mse, mae: mean squared and mean absolute error.

    Args:
        numbers: What is right, (rows,), with a row at least.
        predictions: (rows,).
    """
    numbers, predictions = np.asarray(numbers, np.float64), np.asarray(predictions, np.float64)
    errors = predictions - numbers
    related = np.ptp(numbers) > 0 and np.ptp(predictions) > 0
    return {
        "pearson": float(stats.pearsonr(numbers, predictions).statistic) if related else None,
        "spearman": float(stats.spearmanr(numbers, predictions).statistic) if related else None,
        "mse": float(np.mean(errors**2)),
        "mae": float(np.mean(np.abs(errors))),
        "rows": len(numbers),
    }
