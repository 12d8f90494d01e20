__version__ = "13.2.0"
