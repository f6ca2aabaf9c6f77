"""The torch part: agents, distributions and algorithms. Nothing below this package needs torch."""
