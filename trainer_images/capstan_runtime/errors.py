"""Failures a trainer tells apart; each becomes an exit code of the contract."""


class ConfigError(Exception):
    """The run asks for something that cannot be: one line that names the field, the value, the rule and the fix."""


class PeerLost(Exception):
    """Another process of the world died, hung, or could not be reached in time."""


class GpuOutOfMemory(Exception):
    """The accelerator's memory does not suffice for the run as configured."""


class CorruptCheckpoint(Exception):
    """Bytes of a checkpoint are not those that were committed."""
