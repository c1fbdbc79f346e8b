from minio import bucket, minio  # noqa: F401
