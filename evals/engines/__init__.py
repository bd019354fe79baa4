"""Who answers: the protocol, the transformers engine, embeddings, and how a name becomes weights."""
