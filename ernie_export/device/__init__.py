"""What runs on the device: install, check, switch, roll back. Nothing here needs torch."""
