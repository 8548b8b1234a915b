"""An S3-compatible server (moto's) for the tests, behind a door that can refuse requests as a store in trouble does."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

KEY_ID, SECRET = "test-key-id", "test-secret-never-to-be-written"
BUCKET = "runs"
Refusal = Callable[[dict[str, Any]], tuple[str, str] | None]


class Store:
    """A running server with one bucket. `refuse` sees each request (a WSGI environ) and may answer in its place with a
    status and an S3 error code."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *words: Any) -> None: ...

        self.refuse: Refusal = lambda request: None
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._door, threaded=True, request_handler=Quiet)
        self.port: int = self._server.server_port
        self.endpoint = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _door(self, request: dict[str, Any], start: Any) -> Any:
        refusal = self.refuse(request)
        if refusal is None:
            return self._app(request, start)
        request["wsgi.input"].read(int(request.get("CONTENT_LENGTH") or 0))
        start(refusal[0], [("Content-Type", "application/xml")])
        return [f"<Error><Code>{refusal[1]}</Code><Message>the test says so</Message></Error>".encode()]

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
        )

    def objects(self, prefix: str) -> dict[str, bytes]:
        """Every object below a prefix, folder markers left out."""
        client = self.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return {
            key.removeprefix(prefix): client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            for key in keys
            if not key.endswith("/")
        }

    def close(self) -> None:
        self._server.shutdown()


@contextmanager
def running_store() -> Iterator[Store]:
    """A store whose endpoint and credentials stand in the environment, as a user would give them."""
    before = dict(os.environ)
    store = Store()
    os.environ.update(
        AWS_ENDPOINT_URL=store.endpoint,
        AWS_ACCESS_KEY_ID=KEY_ID,
        AWS_SECRET_ACCESS_KEY=SECRET,
        AWS_DEFAULT_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true",
    )
    try:
        store.client().create_bucket(Bucket=BUCKET)
        yield store
    finally:
        store.close()
        os.environ.clear()
        os.environ.update(before)
