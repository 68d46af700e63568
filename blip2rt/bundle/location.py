"""Names of bundles -> their folders."""

import os

from ..errors import BundleError
from .reader import embedded


def locate(bundle: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    """The folder of a bundle: nano's for None and "nano", the cached one of hf://..., any other path as it is.

    A folder called nano comes before the embedded model. Raises BundleError.
    """
    if bundle == "":
        raise BundleError("the bundle is '': give its folder, or leave it out for nano")
    if bundle is None or (bundle == "nano" and not os.path.exists(bundle)):
        return embedded()
    if isinstance(bundle, str) and bundle.startswith("hf://"):
        from .hub import HubName, pull

        return HubName.parse(bundle).cached or pull(bundle)
    return bundle
