"""What runs a model in the visitor's browser: onnxruntime-web, from its npm package, put into the store once.

    gallery/sampler/<version>/ort.wasm.bundle.min.mjs, ort-wasm-simd-threaded.wasm

Its files must have the digests that stand here, so that a visitor's browser runs what was tested and nothing else.
They are under the MIT licence, as their head says.
"""

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from pipeline.artifacts import file_entry
from pipeline.errors import AtelierError, IntegrityError, NotFound, UserError
from pipeline.pages.content import Sampler
from pipeline.store import Store

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
MODULE = "ort.wasm.bundle.min.mjs"  # the wasm backend alone, with its loader
FILES = {
    MODULE: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
FOLDER = f"gallery/sampler/{VERSION}"
MAX_FILE_BYTES = 64 << 20
NPM_SECONDS = 300
ADD = "to add it, install Node.js with npm and run `atelier gallery` again"


def provide(store: Store, at: str) -> Sampler:
    """The sampler's runtime in the store, fetched where it is not there; `at` is the way from a page to the gallery.

    Where it cannot be had the answer says why. Raises IntegrityError where npm gives other files than were tested.
    """
    if not all(_there(store, name, digest) for name, digest in FILES.items()):
        try:
            files = _fetched()
        except IntegrityError:
            raise
        except AtelierError as error:  # no npm, or none that answers: the pages do without, and say so
            return Sampler(why_not=str(error))
        for name, data in files.items():
            store.put(f"{FOLDER}/{name}", data)
    return Sampler(runtime=f"{at}sampler/{VERSION}/{MODULE}")


def _there(store: Store, name: str, digest: str) -> bool:
    try:
        return file_entry(name, store.get(f"{FOLDER}/{name}")).sha256 == digest
    except NotFound:
        return False


def _fetched() -> dict[str, bytes]:
    """The files by npm. Raises UserError without npm, AtelierError where it fails, IntegrityError."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"npm is not installed; {ADD}")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", folder, "--silent", "--ignore-scripts"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=NPM_SECONDS, cwd=folder)
        except subprocess.CalledProcessError as error:
            said = " ".join(error.stderr.split())[:160]
            raise AtelierError(f"npm did not give {PACKAGE} {VERSION} ({said}); {ADD}") from None
        except subprocess.TimeoutExpired:
            raise AtelierError(f"npm did not give {PACKAGE} {VERSION} in {NPM_SECONDS} s; {ADD}") from None
        (archive,) = Path(folder).glob("*.tgz")
        return _unpacked(archive)


def _unpacked(archive: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.removeprefix("package/dist/")
            file = tar.extractfile(member) if name in FILES and member.size <= MAX_FILE_BYTES else None
            if file is not None:
                found[name] = file.read()
    for name, digest in FILES.items():
        got = file_entry(name, found.get(name, b"")).sha256
        if got != digest:
            raise IntegrityError(
                f"{PACKAGE} {VERSION}, {name}: expected SHA-256 {digest}, got {got}; the package is not the one that "
                "was tested: ask whoever runs your npm registry"
            )
    return found
