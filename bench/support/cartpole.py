"""The example that benches take environments and networks from: examples/cartpole_ppo.py."""

import sys
from pathlib import Path

# A bench that is run as a script finds its own folder only.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import cartpole_ppo

__all__ = ["cartpole_ppo"]
