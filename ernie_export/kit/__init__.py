"""A kit: a bundle whose engine is built, checked and measured on the device that it is for.

`pack.py` makes one where bundles are built.  All else is the program that runs on the device, `kit.pyz`; it
needs Python, numpy and the runtime alone.
"""
