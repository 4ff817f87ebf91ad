//! The PegaFlow node: index, leases, eviction, shared-memory pools, gRPC server and client.
