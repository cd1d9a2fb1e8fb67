"""A BERT sentence encoder in numpy: the forward pass of all-MiniLM-L6-v2, straight from mapped tensors.

Shapes in the comments: B sentences, T tokens, H hidden size (384), A heads (12), D = H / A.
Sources: Devlin et al. 2018 (BERT); the model's `config.json` and `1_Pooling/config.json` (mean).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class Weights:
    """Arrays by name over any mapping of tensors that numpy can view.

    An F32 tensor is used where it lies, no byte is copied. numpy has no fast matrix product for bf16 and fp8,
    so such a tensor is widened to F32 for the one product that needs it, and dropped again.
    """

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self.tensors = tensors

    def view(self, name: str) -> np.ndarray:
        """The tensor as it is stored."""
        return np.asarray(self.tensors[name])

    def float32(self, name: str) -> np.ndarray:
        """The tensor as F32; one quantised to fp8 is multiplied by its `NAME_scale`."""
        array = self.view(name)
        if array.dtype == np.float32:
            return array
        widened = array.astype(np.float32)
        scale = f"{name}_scale"
        return widened * self.view(scale) if scale in self.tensors else widened

    def rows(self, name: str, index: np.ndarray) -> np.ndarray:
        """Some rows of a table as F32: only those rows are read."""
        return self.view(name)[index].astype(np.float32)


def erf(x: np.ndarray) -> np.ndarray:
    """The error function to 1.5e-7, by formula 7.1.26 of Abramowitz and Stegun (numpy has none)."""
    t = 1.0 / (1.0 + 0.3275911 * np.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.sign(x) * (1.0 - series * np.exp(-x * x))


def gelu(x: np.ndarray) -> np.ndarray:
    """The exact GELU, x times the normal distribution function."""
    return 0.5 * x * (1.0 + erf(x * np.float32(0.5**0.5)))


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis, shifted so that it cannot overflow."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


class Encoder:
    """Sentence embeddings from a model's `config.json` (parsed) and its tensors."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        self.weights = Weights(tensors)
        self.layers: int = config["num_hidden_layers"]
        self.heads: int = config["num_attention_heads"]
        self.epsilon: float = config["layer_norm_eps"]
        self.pad: int = config["pad_token_id"]

    def embed(self, sentences: Sequence[Sequence[int]]) -> np.ndarray:
        """Token numbers of B sentences to a (B, H) array of unit-length F32 embeddings."""
        longest = max(len(ids) for ids in sentences)
        ids = np.array([[*row, *[self.pad] * (longest - len(row))] for row in sentences])  # (B, T)
        mask = np.array([[1.0] * len(row) + [0.0] * (longest - len(row)) for row in sentences], np.float32)
        hidden = self.token_embeddings(ids)
        for layer in range(self.layers):
            hidden = self.layer(f"encoder.layer.{layer}", hidden, mask)
        pooled = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

    def token_embeddings(self, ids: np.ndarray) -> np.ndarray:
        """Word plus position plus segment 0: (B, T) to (B, T, H)."""
        rows = self.weights.rows
        word = rows("embeddings.word_embeddings.weight", ids)
        position = rows("embeddings.position_embeddings.weight", np.arange(ids.shape[1]))
        segment = rows("embeddings.token_type_embeddings.weight", np.array([0]))
        return self.layer_norm("embeddings.LayerNorm", word + position + segment)

    def layer(self, name: str, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """One transformer block: attention and feed-forward, each added to its input and normalised."""
        attended = self.linear(f"{name}.attention.output.dense", self.attention(name, x, mask))
        x = self.layer_norm(f"{name}.attention.output.LayerNorm", x + attended)
        inner = gelu(self.linear(f"{name}.intermediate.dense", x))
        return self.layer_norm(f"{name}.output.LayerNorm", x + self.linear(f"{name}.output.dense", inner))

    def attention(self, name: str, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Every token looks at every real token of its sentence; padding gets no weight."""
        batch, tokens, width = x.shape

        def project(which: str) -> np.ndarray:  # (B, T, H) to (B, A, T, D)
            y = self.linear(f"{name}.attention.self.{which}", x)
            return y.reshape(batch, tokens, self.heads, width // self.heads).swapaxes(1, 2)

        query, key, value = project("query"), project("key"), project("value")
        scores = query @ key.swapaxes(2, 3) / np.float32((width // self.heads) ** 0.5)  # (B, A, T, T)
        blocked = np.where(mask[:, None, None, :] > 0, np.float32(0), np.float32(-1e9))
        mixed = softmax(scores + blocked) @ value
        return mixed.swapaxes(1, 2).reshape(batch, tokens, width)

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        """X W^T + b; the weight is stored (out, in)."""
        return x @ self.weights.float32(f"{name}.weight").T + self.weights.float32(f"{name}.bias")

    def layer_norm(self, name: str, x: np.ndarray) -> np.ndarray:
        """Each token to mean 0 and variance 1, then scaled and shifted by the layer's weights."""
        centred = x - x.mean(axis=-1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(self.epsilon))
        return normal * self.weights.float32(f"{name}.weight") + self.weights.float32(f"{name}.bias")
