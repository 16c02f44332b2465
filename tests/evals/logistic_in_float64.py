"""Logistic regression in float64, by Newton's method and by SciPy's L-BFGS, and its examples."""

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax


def examples(count, width=5, classes=3, noise=2.0, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(count) % classes)
    means = np.random.default_rng(99).standard_normal((classes, width))
    return (means[y] + rng.standard_normal((count, width)) * noise).astype(np.float32), y


def objective(flat, x, y, classes, l2):
    """Mean cross-entropy + l2 / 2 |weights|^2 and its gradient, in float64 and all at once."""
    x, weights = x.astype(np.float64), flat.reshape(-1, classes).astype(np.float64)
    log_p = log_softmax(x @ weights[:-1] + weights[-1], axis=1)
    onehot = np.eye(classes)[y]
    error = (np.exp(log_p) - onehot) / len(x)
    gradient = np.vstack([x.T @ error + l2 * weights[:-1], error.sum(0)])
    value = -np.sum(log_p * onehot) / len(x) + l2 / 2 * np.sum(weights[:-1] ** 2)
    return value, gradient.ravel()


def in_float64(x, y, classes, l2):
    """The minimum by SciPy, with weights and bias in one array."""
    options = {"maxiter": 2000, "maxcor": 20, "ftol": 1e-15, "gtol": 1e-8}
    zeros = np.zeros((x.shape[1] + 1) * classes)
    given = (x, y, classes, l2)
    found = minimize(objective, zeros, given, jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(-1, classes)


def newton(x, y, classes, l2):
    """The minimum with the whole Hessian."""
    inputs = np.column_stack([x.astype(np.float64), np.ones(len(x))])
    n, width = inputs.shape
    onehot = np.eye(classes)[y]
    penalty = np.repeat([l2] * (width - 1) + [0.0], classes)
    flat = np.zeros(width * classes)
    for _ in range(50):
        p = softmax(inputs @ flat.reshape(width, classes), axis=1)
        gradient = (inputs.T @ (p - onehot) / n).ravel() + penalty * flat
        spread = np.einsum("nk,kj->nkj", p, np.eye(classes)) - p[:, :, None] * p[:, None]
        hessian = np.einsum("ni,nj,nkl->ikjl", inputs, inputs, spread) / n
        hessian = hessian.reshape(flat.size, flat.size) + np.diag(penalty)
        # The biases' common shift is free: least squares leaves it alone.
        flat -= np.linalg.lstsq(hessian, gradient, rcond=1e-12)[0]
    assert np.abs(gradient).max() < 1e-12
    return flat.reshape(width, classes)
