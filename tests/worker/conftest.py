from milvus_server import milvus_server  # noqa: F401
from minio import bucket, minio  # noqa: F401
