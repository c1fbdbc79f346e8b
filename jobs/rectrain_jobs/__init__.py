"""What runs inside a worker pod or a laptop process: data, models, training, evaluation."""
