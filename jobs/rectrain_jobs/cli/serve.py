"""`rectrain serve`: HTTP services that answer from a model bundle."""

import os

import click

_EPILOG = """\b
Examples:
  rectrain serve recall --bundle runs/beauty-mind-1a2b3c4d/bundle
  rectrain serve recall --bundle out/bundle --index index --items items.parquet
  rectrain serve recall --bundle s3://models/mind/bundle --index http://milvus:19530 --collection mind \\
    --host 0.0.0.0 --token-file /run/secrets/token --admin-token-file /run/secrets/admin-token
  curl -d '{"top_k": 10, "hist_item": [[43, 23, 65]]}' -H 'Content-Type: application/json' \\
    http://127.0.0.1:8000/rec/recall
"""


@click.group()
def serve() -> None:
    """Answer requests from a trained model over HTTP."""


@serve.command(epilog=_EPILOG)
@click.option("--bundle", required=True, metavar="URI", help="The model bundle that `rectrain run` left.")
@click.option(
    "--index",
    metavar="URI",
    help="The item index: a folder (FAISS), http://host:port (Milvus) or a file *.db (Milvus Lite). "
    "Default: one in memory, made from the bundle.",
)
@click.option("--collection", default="items", show_default=True, help="Milvus: name of the index.")
@click.option("--items", metavar="URI", help="Parquet file with attributes of items, which requests can filter by.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option(
    "--token-file", metavar="PATH", help="File with the token that callers need. [env: RECTRAIN_RECALL_TOKEN]"
)
@click.option(
    "--admin-token-file",
    metavar="PATH",
    help="File with the token for insert_data, drop and reload. [env: RECTRAIN_RECALL_ADMIN_TOKEN] Without it they are "
    "answered only where the service listens on loopback.",
)
@click.option("--max-top-k", default=1000, show_default=True, type=click.IntRange(1, 8000), help="Items for a user.")
@click.option("--max-users", default=256, show_default=True, type=click.IntRange(1, 10_000), help="Users in a request.")
@click.option(
    "--max-history", default=1000, show_default=True, type=click.IntRange(1, 8000), help="Items in a history."
)
@click.option(
    "--max-body-bytes",
    default=1 << 20,
    show_default=True,
    type=click.IntRange(1024, 1 << 30),
    help="Size of a request.",
)
@click.option(
    "--follow-seconds",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0, 86400),
    help="How often to look for a new bundle or index version; 0: only when /rec/reload is called.",
)
@click.option(
    "--threads", default=1, show_default=True, type=click.IntRange(1, 256), help="Threads of one search in FAISS."
)
@click.option("--endpoint-url", metavar="URL", help="Server of s3:// URIs, if other than AWS.")
@click.option("--region", help="Region of s3:// URIs.")
def recall(
    bundle: str,
    index: str | None,
    collection: str,
    items: str | None,
    host: str,
    port: int,
    token_file: str | None,
    admin_token_file: str | None,
    max_top_k: int,
    max_users: int,
    max_history: int,
    max_body_bytes: int,
    follow_seconds: float,
    threads: int,
    endpoint_url: str | None,
    region: str | None,
) -> None:
    """Find items for users by their histories: POST /rec/recall.

    GET /docs describes all calls. The bundle is that of a TwoTower or MIND model; no torch is needed. Bundle and index
    may be replaced while the service runs: it follows, and answers from the old ones until the new ones are loaded.
    """
    # Small products are slower on several threads; the libraries read this when they are imported.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads))
    from rectrain_jobs.logs import configure_logging
    from rectrain_jobs.serving.access import Access, is_loopback, read_token
    from rectrain_jobs.serving.recall_app import AppSettings, Limits, recall_app
    from rectrain_jobs.serving.recall_service import RecallService, RecallSettings
    from rectrain_jobs.serving.server import serve as serve_app
    from rectrain_jobs.storage import Storage

    configure_logging()
    access = Access(
        token=read_token("--token-file", os.environ.get("RECTRAIN_RECALL_TOKEN"), token_file),
        admin_token=read_token("--admin-token-file", os.environ.get("RECTRAIN_RECALL_ADMIN_TOKEN"), admin_token_file),
        admin_without_token=is_loopback(host),
    )
    storage = Storage(endpoint_url=endpoint_url, region=region)
    service = RecallService(RecallSettings(bundle, index, collection, items, storage))
    limits = Limits(max_top_k, max_users, max_history, max_body_bytes)
    serve_app(recall_app(service, AppSettings(limits, access, follow_seconds)), host, port)
