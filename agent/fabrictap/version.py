"""The version of fabrictap, read by the build and exported as ``service.version``."""

VERSION = "0.1.0"
