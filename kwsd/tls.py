"""Whom connections with TLS trust."""

import ssl
from pathlib import Path


def trusting(ca_file: Path | None = None) -> ssl.SSLContext:
    """A context for clients, that trusts those who sign for others by this file; by default those the system does.

    Raises OSError, of which ssl.SSLError is one, for a file that is none."""
    context = ssl.create_default_context(cafile=ca_file)
    # Python 3.13 refuses what openssl makes where nobody asks it for extensions, as most who sign for themselves.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
