"""From a bundle to a device: registries."""
