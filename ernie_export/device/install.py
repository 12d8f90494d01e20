"""A bundle onto this device: fetched, checked, tried, and only then made the active one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ernie_export.bundle.manifest import FileEntry, Manifest
from ernie_export.bundle.verify import verify
from ernie_export.device.place import Installed, Pending, Place
from ernie_export.device.rules import require_guarded
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


class AlreadyActive(UserError):
    """What is offered is active here, whole, and nothing of it is unproved."""

    def __init__(self, name: str, installed: Installed):
        super().__init__(f"{name} is what is active here already", "There is nothing to do.")
        self.installed = installed


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

    What is active already is installed again where it is damaged: as a generation of its own, which takes its place.

    `observe`: seconds for which the service has to stay ready with it, once it has become so.

    Raises:
        AlreadyActive: it is installed already, and whole.
        UserError: it does not suit this device; nobody can tell whether it stays ready.
        WorkError: it is damaged, not signed as the policy wants, fails its trial, or the service does not
            become ready with it, or stay so (then the earlier one is active again).
    """
    progress = progress or Silent()
    require_observable(service, observe)
    with place.held() as blobs:
        with suppress(WorkError):  # `status` tells of it, and what is installed now may be the cure
            settle(place, service, progress)
        here = place.active_number()
        active = None if here is None else place.known(here)
        digest = offer.documents[Manifest.FILE].sha256
        again = active is not None and active.manifest_sha256 == digest
        if active and again and _stands(place.bundle(active.number), progress):
            raise AlreadyActive(offer.name, active)
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
            before=(active.before if again else active.number) if active else None,
            tried=tried,
            max_token_ms=policy.max_token_ms,
        )
        place.keep(place.partial(number), installed)
        activate(place, installed.number, here, service, progress, observe)
        place.collect()
        return installed


def settle(
    place: Place, service: Service | None = None, progress: Progress | None = None
) -> Installed | None:
    """Prove what a loss of power left unproved: the service becomes ready with the active bundle, or all goes back.

    Of a place that is held. `service`: in place of the one that was told of the switch.
    None: nothing was left.

    Raises:
        WorkError: it does not become ready; the earlier one is active again.
    """
    if (pending := place.pending()) is None:
        return None
    if service is None:
        require_guarded(place.root / Pending.FILE)
        service = pending.service
    number, back = pending.number, pending.before
    if reason := place.refused(number):  # it was on its way back
        raise WorkError(reason + _back(place, back, service), "Look at the service's log.")
    if place.active_number() == number:
        _prove(place, number, back, service, progress or Silent(), pending.observe)
    place.settled()  # also where the power went before the switch: then the service knows of nothing
    return place.active()


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
    chosen: int,
    back: int | None,
    service: Service | None,
    progress: Progress | None = None,
    observe: float = 0,
) -> None:
    """Switch, tell the service, and go back if it does not become ready, and stay so for `observe` seconds.

    Raises:
        WorkError: it did not; generation `back` is the active one again, or none, as it was.
    """
    progress = progress or Silent()
    if service:
        place.expect(Pending(number=chosen, before=back, service=service, observe=observe))
    with progress.step("Switch"):
        place.switch(chosen)
    if service:
        _prove(place, chosen, back, service, progress, observe)
    place.settled()


def _prove(
    place: Place, chosen: int, back: int | None, service: Service, progress: Progress, observe: float
) -> None:
    try:
        with progress.step("Start"):
            service.start_anew()
        observed(service, observe, progress)
    except WorkError as error:
        place.refuse(chosen, error.cause)
        raise WorkError(error.cause + _back(place, back, service), error.remedy) from error


def _back(place: Place, number: int | None, service: Service) -> str:
    """Make the earlier generation the active one again; how that went, in words."""
    if number is None:
        place.deactivate()
        place.settled()
        return ""
    place.switch(number)
    told = f"; generation {number} is active again"
    try:
        service.start_anew()
    except WorkError as error:
        told += f", and it is not well either ({error.cause})"
    place.settled()
    return told


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
        activate(place, earlier.number, active.number, service)
        return earlier


def _stands(bundle: Path, progress: Progress) -> bool:
    """Whether what is active is whole."""
    try:
        return not verify(bundle, progress)
    except UserError:  # no bundle any more
        return False


def _fetch_documents(offer: Offer, blobs: Blobs, bundle: Path) -> Manifest:
    """The manifest, and in the new folder `bundle` the documents beside it."""
    blobs.drop_damaged(offer.documents)
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
