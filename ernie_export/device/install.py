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
from ernie_export.distribute.signing import signer_of_listed
from ernie_export.errors import UserError, WorkError
from ernie_export.kit.build import Settings, build
from ernie_export.kit.document import KitPlan
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
    observe: float = 0,
) -> Installed:
    """Make a bundle the active one, or leave everything as it was.

    `observe`: seconds for which the service has to stay ready with it, once it has become so.

    Raises:
        UserError: it does not suit this device, or it is installed already; nobody can tell whether it stays ready.
        WorkError: it is damaged, not signed as the policy wants, fails its trial, or the service does not
            become ready with it, or stay so (then the earlier one is active again).
    """
    progress = progress or Silent()
    require_observable(service, observe)
    with place.held() as blobs:
        active = place.active()
        digest = offer.documents[Manifest.FILE].sha256
        if active and active.manifest_sha256 == digest:
            raise UserError(f"{offer.name} is what is active here already", "There is nothing to do.")
        number = place.next_number()
        bundle = place.partial(number) / "bundle"
        manifest = _fetch_documents(offer, blobs, bundle)
        report = Report.read(bundle / Report.FILE)
        # Before the rest is fetched: a stranger does not fill this disk.
        signer = signer_of_listed(bundle, policy)
        if active and not policy.downgrade and report.time < active.built:
            raise WorkError(
                f"{offer.name} is older ({report.time}) than what is active ({active.built})",
                "Install a newer one, roll back, or allow `downgrade` in the policy.",
            )
        if manifest.verdict != "passed" or report.verdict != "passed":
            raise WorkError(f"{offer.name} did not pass its own gates", "Install one that did.")
        _fetch(offer, manifest, blobs, bundle, progress)
        is_kit = KitPlan.FILE in manifest.files
        if is_kit:
            kit = place.partial(number) / "kit"
            bundle.rename(kit)
            place.built.mkdir(exist_ok=True)
            made = build(kit, place.built / digest, Settings(), progress, replace=True, checked=True)
            made.bundle.rename(bundle)
        require_suited(bundle, manifest)
        with progress.step("Try it"):
            tried = try_out(bundle, policy)
        installed = Installed(
            number=number,
            source=offer.name,
            manifest_sha256=digest,
            kit=digest if is_kit else None,
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
        activate(place, installed, active, service, progress, observe)
        place.collect()
        return installed


def require_observable(service: Service | None, observe: float) -> None:
    """Raises UserError where something is to be observed, and no service is known."""
    if observe and service is None:
        raise UserError(
            "Nobody can tell here whether the service stays ready: there is no service.toml",
            "Write one (`ernie-export device unit` does), or do without --observe.",
        )


def observed(service: Service, seconds: float, progress: Progress) -> None:
    """Raises WorkError where the service does not stay ready for so long."""
    if seconds:
        with progress.step("Observe", seconds, "s") as step:
            service.stay_ready(seconds, step)


def activate(
    place: Place,
    chosen: Installed,
    active: Installed | None,
    service: Service | None,
    progress: Progress | None = None,
    observe: float = 0,
) -> None:
    """Switch, tell the service, and go back if it does not become ready, and stay so for `observe` seconds.

    Raises:
        WorkError: it did not; `active` is the active one again, or none, as it was.
    """
    progress = progress or Silent()
    with progress.step("Switch"):
        place.switch(chosen.number)
    if service is None:
        return
    try:
        with progress.step("Start"):
            service.start_anew()
        observed(service, observe, progress)
    except WorkError as error:
        place.refuse(chosen.number, error.cause)
        if active is None:
            place.deactivate()
            raise
        place.switch(active.number)
        again = f"{error.cause}; generation {active.number} is active again"
        try:
            service.start_anew()
        except WorkError as second:
            again += f", and it is not well either ({second.cause})"
        raise WorkError(again, "Look at the service's log.") from error


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


def _fetch_documents(offer: Offer, blobs: Blobs, bundle: Path) -> Manifest:
    """The manifest, and in the new folder `bundle` the documents beside it."""
    _, manifest = fetch_documents(blobs, offer.documents, offer.source)
    blobs.assemble(offer.documents, bundle)
    return manifest


def _fetch(offer: Offer, manifest: Manifest, blobs: Blobs, bundle: Path, progress: Progress) -> None:
    """The files that the manifest lists, each checked, in the folder `bundle`; also those that are here already."""
    with progress.step("Check what is here"):
        blobs.drop_damaged(manifest.files)
    with progress.step("Fetch", sum(entry.size for entry in manifest.files.values()), "B") as step:
        blobs.fetch(manifest.files, offer.source, step)
    blobs.assemble(manifest.files, bundle)
    _require_whole(bundle, offer.name)


def _require_whole(folder: Path, name: str) -> None:
    """Names, sizes, manifest and report; the files are checked as they are copied."""
    if problems := verify(folder, content=False):
        raise WorkError(
            f"{name} is no whole bundle: {problems[0].path}: {problems[0].message}",
            "Fetch or build it again.",
        )
