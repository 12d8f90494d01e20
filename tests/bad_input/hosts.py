"""Devices that cannot be deployed to, as far as one can tell without a device."""

from __future__ import annotations

from tests.bad_input.attack import Arguments, Attacks, Place

HOSTS = Attacks("Device to deploy to")


def deploy(place: Place, *words: str) -> Arguments:
    """Told by the configuration of ssh, not by the user's own."""
    config = place.root / "ssh_config"
    config.write_text("Host *\n  GlobalKnownHostsFile /dev/null\n  UserKnownHostsFile /dev/null\n")
    return ["deploy", place.bundle(), "--ssh-config", config, *words]


@HOSTS.add("a host name that is an option of ssh")
def _(place: Place) -> Arguments:
    return deploy(place, "--to", f"-oProxyCommand=touch {place.root / 'owned'}")


@HOSTS.add("a user that is an option of ssh")
def _(place: Place) -> Arguments:
    return deploy(place, "--to", "-oProxyCommand=id@host")


@HOSTS.add("a host name with a command in it")
def _(place: Place) -> Arguments:
    return deploy(place, "--to", "host;id")


@HOSTS.add("an empty host name")
def _(place: Place) -> Arguments:
    return deploy(place, "--to", "")


@HOSTS.add("a port beyond all ports")
def _(place: Place) -> Arguments:
    return deploy(place, "--to", "host:65536")


@HOSTS.add("the same device twice")
def _(place: Place) -> Arguments:
    return deploy(place, "--to", "a", "--to", "a")


@HOSTS.add("nothing but canaries")
def _(place: Place) -> Arguments:
    return deploy(place, "--to", "a", "--to", "b", "--canary", "2")


@HOSTS.add("no configuration of ssh where it is named")
def _(place: Place) -> Arguments:
    return [*deploy(place, "--to", "a")[:2], "--to", "a", "--ssh-config", place.root / "missing"]


@HOSTS.add("a configuration of ssh that is none", exit_code=1)
def _(place: Place) -> Arguments:
    words = deploy(place, "--to", "a", "--quiet")
    (place.root / "ssh_config").write_text("Sing a song\n")
    return words


@HOSTS.add("no host of that name", exit_code=1)
def _(place: Place) -> Arguments:
    return deploy(place, "--to", "nowhere.invalid", "--quiet")


@HOSTS.add("a host where no sshd runs", exit_code=1)
def _(place: Place) -> Arguments:
    return deploy(place, "--to", "127.0.0.1:1", "--quiet")


@HOSTS.add("no ssh client", under=("env", "PATH=/nowhere"))
def _(place: Place) -> Arguments:
    return deploy(place, "--to", "a", "--quiet")


@HOSTS.add("a folder that is no bundle")
def _(place: Place) -> Arguments:
    (place.root / "empty").mkdir()
    return ["deploy", place.root / "empty", "--to", "a"]


@HOSTS.add("a bundle that lacks a file", exit_code=1)
def _(place: Place) -> Arguments:
    words = deploy(place, "--to", "a")
    (place.root / "bundle" / "engine.json").unlink()
    return words
