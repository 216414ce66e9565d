"""What millrace is installed as, and how an extra is had where it runs: in a checkout, from a wheel, in an image.

``millrace`` on the public index is somebody else's package, so no message may send anybody there. The distribution has another
name, which is on no index; the module stays ``millrace``.

Source of ``direct_url.json``, where an installation came from: PEP 610. Of ``NAME[EXTRA] @ URL``: PEP 508.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from .errors import MillraceError

NAME = "learning-millrace"
IMAGE_EXTRAS = "share/millrace/extras"  # in an image, below its environment: the extras that it was built with
IN_IMAGES = frozenset({"avro", "backbone", "kafka", "mlflow", "onnx", "parquet", "serve", "torch"})  # SHIPPED of the Makefile
IN_SETUP = IN_IMAGES | {"demo", "llm"}  # TESTED of the Makefile: what `make setup EXTRAS=` takes


def release() -> str:
    """This release, such as ``0.1.0``.

    Raises: MillraceError where this environment has no distribution of our name, as one set up before it was renamed.
    """
    try:
        return version(NAME)
    except PackageNotFoundError as missing:
        raise MillraceError(
            f"This environment has millrace, but not as {NAME}: it was set up for an earlier release. "
            f"In a checkout run `make setup`; else install the wheel of {NAME}."
        ) from missing


def how_to_get(extras: str) -> str:
    """A sentence with the command, between backticks, that adds ``extras`` to what runs: names with commas between."""
    packed = Path(sys.prefix) / IMAGE_EXTRAS
    if packed.is_file():
        return _in_image(extras, packed.read_text(encoding="utf-8").strip())
    origin = _origin()
    if origin.get("dir_info", {}).get("editable"):
        return _in_checkout(extras, _path(origin["url"]))
    return _from_wheel(extras, origin)


def requirement(extras: str) -> str:
    """The lines of a requirements.txt that ask for this release with ``extras``, the same wherever it is installed."""
    remark = f"# {NAME} is on no public index: pip install --find-links FOLDER -r requirements.txt, its wheel being in FOLDER"
    return f"{remark}\n{NAME}[{extras}]=={release()}\n"


def _in_image(extras: str, has: str) -> str:
    """Nothing can be installed in an image, so another is built."""
    if not IN_IMAGES.issuperset(extras.split(",")):
        return f"No image may have {extras}; a checkout may, or an environment with the wheel."
    wanted = ",".join(dict.fromkeys(filter(None, [*has.split(","), *extras.split(",")])))
    return (
        f"This image is without it: in a checkout of {release()} run `make image EXTRAS={wanted}`, and start what that builds."
    )


def _in_checkout(extras: str, root: Path) -> str:
    """By the locked versions where the lock has them and the environment is the checkout's own."""
    make = f"make -C {shlex.quote(str(root))}"
    if "llm-cpu" in extras.split(","):
        return f"Run `{make} .venv-llm/.installed`, and then .venv-llm/bin/millrace there."
    if IN_SETUP.issuperset(extras.split(",")) and Path(sys.prefix).resolve() == (root / ".venv").resolve():
        return f"Run `{make} setup EXTRAS={extras}`."
    return f"Run `{_installer(root)} --editable {shlex.quote(f'{root}[{extras}]')}`."


def _from_wheel(extras: str, origin: dict[str, Any]) -> str:
    """From the file, folder, repository or address that ``origin`` names, where it still is."""
    url = origin.get("url", "")
    if not url:
        return f"Install the wheel of {NAME} {release()} again, by its path or address: pip install '{NAME}[{extras}] @ WHEEL'."
    if url.startswith("file:") and not _path(url).exists():
        return f"{_path(url)}, which was installed, is gone: put it back, then run `{_by(origin, extras)}`."
    return f"Run `{_by(origin, extras)}`."


def _by(origin: dict[str, Any], extras: str) -> str:
    url, repository = origin["url"], origin.get("vcs_info")
    if repository:
        url = f"{repository['vcs']}+{url}@{repository['commit_id']}"
    return f"{_installer(None)} {shlex.quote(f'{NAME}[{extras}] @ {url}')}"


def _installer(root: Path | None) -> str:
    """The command that installs into this environment: the checkout's uv, its own pip, any uv, or pip once it is there."""
    python = shlex.quote(sys.executable)
    local = root / ".tools" / "bin" / "uv" if root else None
    if local and local.is_file():
        return f"{shlex.quote(str(local))} pip install --python {python}"
    if find_spec("pip"):
        return f"{python} -m pip install"
    if shutil.which("uv"):
        return f"uv pip install --python {python}"
    return f"{python} -m ensurepip && {python} -m pip install"


def _origin() -> dict[str, Any]:
    """What the installer wrote of where it had us from; empty where it wrote nothing, as for a package of an index.

    A Python started in a checkout also finds what building left there, which says nothing of it.
    """
    stated = (found.read_text("direct_url.json") for found in distributions(name=NAME))
    origin: dict[str, Any] = json.loads(next(filter(None, stated), "{}"))
    return origin


def _path(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))
