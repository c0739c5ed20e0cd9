"""KFP components: one file per verb, each adapting one call of `unirg`.

Lightweight Python components over the project's own image: the body imports `unirg` and calls it, so the
local runner and the cluster run the same code. Artifacts travel as URIs: identity, caching and lineage are
`unirg.artifact`'s, not the orchestrator's, so KFP's own cache is off.
"""

from __future__ import annotations

import os

IMAGE = os.environ.get("UNIRG_IMAGE", "ghcr.io/unirg/toolbox:0.1.0")
"""Image of the components, fixed when a pipeline is compiled."""
