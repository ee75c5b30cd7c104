"""SparseGPT from its formulas in NumPy float64: the inverse and its Cholesky factor by SciPy."""

import numpy as np
import scipy.linalg


def minmax_grid(w, bits):
    """Asymmetric grid a row of w [out, in]: (scale, zero, levels), each [out]."""
    levels = 2**bits - 1
    low, high = np.minimum(w.min(1), 0), np.maximum(w.max(1), 0)
    flat = low == high
    low, high = np.where(flat, -1.0, low), np.where(flat, 1.0, high)
    scale = (high - low) / levels
    return scale, np.round(-low / scale), levels


def on_grid(column, grid):
    scale, zero, levels = grid
    return scale * (np.clip(np.round(column / scale) + zero, 0, levels) - zero)


def sparsegpt(kernel, second, budget, damping=0.01, pattern=None, bits=None, block=128):
    """(kernel, keep, U) for kernel [in, out]; `second` is E[x xᵀ]."""
    w = kernel.astype(np.float64).T.copy()
    grid = minmax_grid(w, bits) if bits else None
    h = 2 * second.astype(np.float64)
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h += damping * np.mean(np.diag(h)) * np.eye(len(h))
    u = scipy.linalg.cholesky(scipy.linalg.inv(h), lower=False)
    outputs, inputs = w.shape
    keep = np.ones(w.shape, bool)
    if pattern:
        block = block // pattern[1] * pattern[1]
    for start in range(0, inputs, block):
        end = min(start + block, inputs)
        if not pattern:
            scores = (w[:, start:end] / np.diag(u)[start:end]) ** 2
            count = budget * end // inputs - budget * start // inputs
            lowest = np.argsort(scores.T.ravel(), kind="stable")[:count]
            gone = np.zeros(scores.size, bool)
            gone[lowest] = True
            keep[:, start:end] = ~gone.reshape(end - start, outputs).T
        for i in range(start, end):
            if pattern and i % pattern[1] == 0:
                n, m = pattern
                scores = (w[:, i : i + m] / np.diag(u)[i : i + m]) ** 2
                lowest = np.argsort(scores, axis=1, kind="stable")[:, : m - n]
                np.put_along_axis(keep, i + lowest, False, axis=1)
            new = on_grid(w[:, i], grid) if bits else w[:, i].copy()
            new[~keep[:, i]] = 0
            error = (w[:, i] - new) / u[i, i]
            w[:, i + 1 :] -= np.outer(error, u[i, i + 1 :])
            w[:, i] = new
    return w.T, keep.T, u


def largest(scores, count, pattern):
    """Keep mask of the largest |scores|: all but `count` of the matrix, or n of m inputs."""
    scores = np.abs(scores)
    if pattern is None:
        keep = np.ones(scores.size, bool)
        keep[np.argsort(scores.ravel(), kind="stable")[:count]] = False
        return keep.reshape(scores.shape)
    n, m = pattern
    groups = scores.reshape(-1, m, scores.shape[1])
    ranks = np.argsort(np.argsort(groups, axis=1, kind="stable"), axis=1, kind="stable")
    return (ranks >= m - n).reshape(scores.shape)


def alps(kernel, second, budget, damping=0.01, pattern=None):
    """(kernel, keep) of ALPS for a kernel [in, out], refit exactly; `second` is E[x xᵀ]."""
    h = 2 * second.astype(np.float64)
    h += damping * np.mean(np.diag(h)) * np.eye(len(h))
    scale = np.sqrt(np.diag(h))
    h, w = h / np.outer(scale, scale), kernel.astype(np.float64) * scale[:, None]
    keep = seen = largest(w, budget, pattern)
    d, v, rho, goal = np.where(keep, w, 0), np.zeros(w.shape), 0.1, h @ w
    for t in range(300):
        b = scipy.linalg.solve(h + rho * np.eye(len(h)), goal - v + rho * d)
        keep = largest(b + v / rho, budget, pattern)
        d = np.where(keep, b + v / rho, 0)
        v += rho * (b - d)
        if t % 3 == 2:
            changed = (keep != seen).sum() / keep.sum()
            if changed == 0:
                break
            rho *= 1.3 if changed > 0.1 else 1.2 if changed > 0.005 else 1.1
            seen = keep
    for o in range(w.shape[1]):
        at = np.flatnonzero(keep[:, o])
        d[at, o] = scipy.linalg.solve(h[np.ix_(at, at)], goal[at, o])
    return d / scale[:, None], keep
