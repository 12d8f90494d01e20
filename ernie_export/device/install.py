"""A bundle onto this device: fetched, checked, tried, and only then made the active one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ernie_export.bundle.manifest import FileEntry, Manifest
from ernie_export.bundle.verify import verify
from ernie_export.device.place import Installed, Place
from ernie_export.device.service import Service
from ernie_export.device.trial import require_suited, try_out
from ernie_export.distribute.address import SCHEME, Address
from ernie_export.distribute.artifact import documents_of, files_of
from ernie_export.distribute.blobs import Blobs, FolderSource, RegistrySource, Source
from ernie_export.distribute.policy import Policy
from ernie_export.distribute.pull import fetch_documents
from ernie_export.distribute.registry import Registry
from ernie_export.distribute.signing import signer_of
from ernie_export.errors import UserError, WorkError
from ernie_export.progress import Progress, Silent
from ernie_export.validate.report import Report


@dataclass
class Offer:
    """A bundle that could be installed."""

    name: str
    """An address with its digest, or a folder."""
    documents: dict[str, FileEntry]
    source: Source

    @classmethod
    def find(cls, text: str, ca_file: Path | None = None, plain_http: bool = False) -> Offer:
        """What `text` names: oci://… or a folder.

        Raises:
            UserError: there is no bundle.
            WorkError: the registry does not answer; the folder holds links, pipes, or other files than it lists.
        """
        if text.startswith(SCHEME):
            registry = Registry(Address.parse(text), ca_file, plain_http)
            digest, data = registry.manifest()
            address = registry.address.at(digest)
            return cls(str(address), documents_of(data, address), RegistrySource(registry))
        folder = Path(text).absolute()
        manifest = Manifest.read(folder)
        _require_whole(folder, text)  # before anything of it is opened
        listed = {path for path in manifest.files}
        documents = {path: entry for path, entry in files_of(folder, manifest).items() if path not in listed}
        return cls(str(folder), documents, FolderSource(folder))


def install(
    offer: Offer,
    place: Place,
    policy: Policy,
    service: Service | None = None,
    progress: Progress | None = None,
) -> Installed:
    """Make a bundle the active one, or leave everything as it was.

    Raises:
        UserError: it does not suit this device, or it is installed already.
        WorkError: it is damaged, not signed as the policy wants, fails its trial, or the service does not
            become ready with it (then the earlier one is active again).
    """
    progress = progress or Silent()
    with place.held() as blobs:
        active = place.active()
        digest = offer.documents[Manifest.FILE].sha256
        if active and active.manifest_sha256 == digest:
            raise UserError(f"{offer.name} is what is active here already", "There is nothing to do.")
        number = place.next_number()
        bundle = place.partial(number) / "bundle"
        _fetch(offer, blobs, bundle, progress)
        signer = signer_of(bundle, policy, verified=True)
        manifest, report = Manifest.read(bundle), Report.read(bundle / Report.FILE)
        if active and not policy.downgrade and report.time < active.built:
            raise WorkError(
                f"{offer.name} is older ({report.time}) than what is active ({active.built})",
                "Install a newer one, roll back, or allow `downgrade` in the policy.",
            )
        if manifest.verdict != "passed" or report.verdict != "passed":
            raise WorkError(f"{offer.name} did not pass its own gates", "Install one that did.")
        require_suited(bundle, manifest)
        with progress.step("Try it"):
            tried = try_out(bundle, policy)
        installed = Installed(
            number=number,
            source=offer.name,
            manifest_sha256=digest,
            checkpoint=manifest.checkpoint.name,
            recipe=manifest.recipe,
            target=manifest.target,
            built=report.time,
            signer=signer,
            before=active.number if active else None,
            tried=tried,
            max_token_ms=policy.max_token_ms,
        )
        place.keep(place.partial(number), installed)
        with progress.step("Switch"):
            activate(place, installed, active, service)
        place.collect()
        return installed


def activate(place: Place, chosen: Installed, active: Installed | None, service: Service | None) -> None:
    """Switch, tell the service, and go back if it does not become ready.

    Raises:
        WorkError: it did not; `active` is the active one again, or none, as it was.
    """
    place.switch(chosen.number)
    if service is None:
        return
    try:
        service.start_anew()
    except WorkError as error:
        place.refuse(chosen.number, error.cause)
        if active is None:
            place.deactivate()
            raise
        place.switch(active.number)
        service.start_anew()
        raise WorkError(
            f"{error.cause}; generation {active.number} is active again", "Look at the service's log."
        ) from error


def rollback(place: Place, service: Service | None = None) -> Installed:
    """Make the generation before the active one the active one.

    Raises:
        UserError: there is none.
        WorkError: the service does not become ready with it either.
    """
    with place.held():
        active = place.active()
        if active is None:
            raise UserError(f"Nothing is active in {place.root}", "Install a bundle first.")
        earlier = place.earlier(active)
        activate(place, earlier, active, service)
        return earlier


def _fetch(offer: Offer, blobs: Blobs, bundle: Path, progress: Progress) -> None:
    """The bundle's files, each checked, in the new folder `bundle`."""
    _, manifest = fetch_documents(blobs, offer.documents, offer.source)
    files = offer.documents | manifest.files
    with progress.step("Fetch", sum(entry.size for entry in files.values()), "B") as step:
        blobs.fetch(files, offer.source, step)
    blobs.assemble(files, bundle)
    _require_whole(bundle, offer.name)


def _require_whole(folder: Path, name: str) -> None:
    """Names, sizes, manifest and report; the files are checked as they are copied."""
    if problems := verify(folder, content=False):
        raise WorkError(
            f"{name} is no whole bundle: {problems[0].path}: {problems[0].message}",
            "Fetch or build it again.",
        )
