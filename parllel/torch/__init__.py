"""The torch part: agents, models, distributions, algorithms. Nothing below it needs torch."""
