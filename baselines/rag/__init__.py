"""Retrieval: chunks, a FAISS index over sentence embeddings, and answering with what it finds."""
