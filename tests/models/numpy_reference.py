"""The released model restated in float64 NumPy from the published description, loop by loop.

Shares nothing with the package but the parameters; written for reading, not for speed.
"""

import numpy as np


def layer_norm(x, p):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * p["scale"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def mlp(x, p):
    hidden = gelu(x @ p["fc1"]["kernel"] + p["fc1"]["bias"])
    return hidden @ p["fc2"]["kernel"] + p["fc2"]["bias"]


def attention(queries, inputs, p):
    """One image or text: queries [Q, D], inputs [K, D], all of them valid."""
    out = np.zeros((len(queries), queries.shape[1]))
    for head in range(p["query"]["kernel"].shape[1]):
        query, key, value = (
            x @ p[name]["kernel"][:, head] + p[name]["bias"][head]
            for name, x in (("query", queries), ("key", inputs), ("value", inputs))
        )
        scores = query @ key.T / np.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out += weights @ value @ p["out"]["kernel"][head]
    return out + p["out"]["bias"]


def encoder(x, p):
    depth = len(p["blocks"]["ln1"]["scale"])
    for i in range(depth):
        block = at_layer(p["blocks"], i)
        y = layer_norm(x, block["ln1"])
        x = x + attention(y, y, block["attn"])
        x = x + mlp(layer_norm(x, block["ln2"]), block["mlp"])
    return layer_norm(x, p["norm"])


def at_layer(tree, i):
    return {k: at_layer(v, i) if isinstance(v, dict) else v[i] for k, v in tree.items()}


def resize_matrix(size, table_size):
    """[size, table_size] antialiased linear interpolation, entry by entry."""
    matrix = np.zeros((size, table_size))
    scale = table_size / size
    for row in range(size):
        centre = (row + 0.5) * scale
        for column in range(table_size):
            distance = abs(column + 0.5 - centre) / max(scale, 1.0)
            matrix[row, column] = max(0.0, 1.0 - distance)
    return matrix / matrix.sum(1, keepdims=True)


def positions(table, rows, columns):
    """[rows * columns, D]"""
    vertical = resize_matrix(rows, table.shape[0])
    horizontal = resize_matrix(columns, table.shape[1])
    return np.einsum("yi,xj,ijd->yxd", vertical, horizontal, table).reshape(rows * columns, -1)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def encode_image(pixels, rows, columns, p):
    """One image without padding: patches [rows * columns, P] -> tokens, pooled, embedding."""
    x = pixels @ p["embed"]["kernel"] + p["embed"]["bias"]
    tokens = encoder(x + positions(p["pos"]["table"], rows, columns), p["encoder"])
    pooled = attention_pool(tokens, p["pool"])
    return tokens, pooled, unit(pooled)


def attention_pool(tokens, p):
    """The MAP head: tokens [N, D] -> one vector [D]."""
    pooled = attention(p["probe"][0], tokens, p["attn"])
    return (pooled + mlp(layer_norm(pooled, p["norm"]), p["mlp"]))[0]


def encode_text(ids, p):
    """One text [T] -> embedding."""
    tokens = encoder(p["embed"]["table"][ids] + p["pos"]["table"], p["encoder"])
    pooled = attention_pool(tokens, p["pool"]) if "pool" in p else tokens[-1]
    return unit(pooled @ p["head"]["kernel"] + p["head"]["bias"])
