"""The item index: item vectors of a model in a vector store, in versions of which one is searched."""
