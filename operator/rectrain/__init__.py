"""rectrain: Kubernetes-native distributed training of recommender models."""
