//! Host memory pools, devices, copy engine and checksums for KV-cache blocks.
