"""Embeddings: unit vectors, each distinct text computed once, and a broken model is an error that says so."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals.engines.embed import Embedder
from evals.errors import AdvisorError


def test_vectors_are_of_unit_length_and_in_order(tiny_embeddings: Path) -> None:
    embedder = Embedder(str(tiny_embeddings))
    texts = [f"text {number} " * (number % 5 + 1) for number in range(70)]
    vectors = embedder.encode(texts)
    assert (vectors.shape, vectors.dtype) == ((70, 32), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    alone = Embedder(str(tiny_embeddings))
    for at in (0, 33, 69):
        np.testing.assert_allclose(alone.encode([texts[at]])[0], vectors[at], atol=1e-5)


def test_each_text_is_embedded_once(tiny_embeddings: Path) -> None:
    embedder, seen = Embedder(str(tiny_embeddings)), []
    encode = embedder._model.encode

    def counting(batch: Sequence[str], **options: Any) -> Any:
        seen.extend(batch)
        return encode(batch, **options)

    embedder._model.encode = counting
    first = embedder.encode(["a", "b", "a"])
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(embedder.encode(["b", "c"])[0], first[1])
    assert sorted(seen) == ["a", "b", "c"]


def test_no_texts_give_no_rows(tiny_embeddings: Path) -> None:
    assert Embedder(str(tiny_embeddings)).encode([]).shape == (0, 32)


def test_a_broken_embedding_model_is_an_error_with_its_place(tiny_embeddings: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_embeddings, tmp_path / "e")
    (tmp_path / "e" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(AdvisorError, match="the embedding model cannot be loaded") as caught:
        Embedder(str(tmp_path / "e")).encode(["a"])
    assert caught.value.where == str(tmp_path / "e")


def test_word_pieces_have_a_unit_vector_each(tiny_embeddings: Path) -> None:
    embedder = Embedder(str(tiny_embeddings))
    texts = [f"text {number}" for number in range(70)]
    ids, vectors = embedder.piece_ids(texts), embedder.piece_vectors(texts)
    assert [len(one) for one in ids] == [len(text) for text in texts], "the tiny model reads characters"
    assert [one.shape for one in vectors] == [(len(text), 32) for text in texts]
    for one in vectors:
        np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5)
    # A text's own vector is the mean of its pieces' (mean pooling), before they were made unit vectors: the direction agrees.
    assert float(embedder.encode([texts[0]])[0] @ vectors[0].mean(axis=0)) > 0
    assert embedder.piece_vectors([]) == []
