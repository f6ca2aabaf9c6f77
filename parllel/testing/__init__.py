"""What tests of parllel and of packages built on it share: contracts, and what they run on."""
