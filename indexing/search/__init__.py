"""Finding the nearest vectors: kinds of FAISS structure, made, stored and asked all alike."""
