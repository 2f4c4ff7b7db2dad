//! Topologies on one machine, from a YAML file.
