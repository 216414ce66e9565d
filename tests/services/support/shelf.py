"""What a trainer publishes to in a test: a shelf in memory, and a wait until it holds what is expected."""

from __future__ import annotations

import time

from pipelines import TIMEOUT_S

from millrace.services.pipeline.bundle import Bundle, open_bundle
from millrace.services.pipeline.instance import Instance
from millrace.services.training.current import Blob, Publication

SOON_S = float(TIMEOUT_S)


class Shelf:
    """Takes publications as ``Current`` does; forgets everything when it is told to."""

    def __init__(self, instance: Instance) -> None:
        self.bundles: list[Bundle] = []
        self.held: Publication | None = None
        self._schema = instance.loaded.pipeline.schema

    def __call__(self, publication: Publication, blob: Blob | None) -> bool:
        """A beat without a blob; False where the state is not held."""
        if blob is not None:
            self.bundles.append(open_bundle(blob.tobytes(), publication.sha256, self._schema).confirmed(publication.as_of_ms))
            self.held = publication
        return self.held is not None and self.held.identity == publication.identity


def soon(true) -> None:
    """Look again and again."""
    until_s = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < until_s
        time.sleep(0.01)
